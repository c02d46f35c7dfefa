package measure

import (
	"slices"
	"sync"
	"time"

	"qlora/bench/result"
	"qlora/bench/stat"
)

// Watch reads a device's sensors in the background while something else is timed: to read them costs milliseconds, which
// between the samples would let the device cool and its clock recover.
type Watch struct {
	stop chan struct{}
	done sync.WaitGroup

	sensing sync.Mutex // held while the probe is asked
	probe   Probe      // nil for a while: see Change

	mu       sync.Mutex
	readings []Reading
	others   map[string]bool
}

// pollInterval is how often sensors are read. NVML itself looks every 20 to 100 ms, depending on the card.
const pollInterval = 20 * time.Millisecond

// othersEvery is after how many readings other processes are looked for.
const othersEvery = 50

// StartWatch begins to watch; Stop ends it.
func StartWatch(p Probe) *Watch {
	w := &Watch{probe: p, stop: make(chan struct{}), others: map[string]bool{}}
	w.look(true)
	w.done.Go(func() {
		tick := time.NewTicker(pollInterval)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-w.stop:
				return
			case <-tick.C:
				w.look(n%othersEvery == 0)
			}
		}
	})
	return w
}

// look takes a reading.
func (w *Watch) look(others bool) {
	w.sensing.Lock()
	defer w.sensing.Unlock()
	if w.probe == nil {
		return
	}
	r, ok := w.probe.Sense()
	var found []string
	if others {
		found = w.probe.Others()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.readings = append(w.readings, r)
	}
	for _, o := range found {
		w.others[o] = true
	}
}

// During is the mean clock of the readings from one moment to another, or that of the reading nearest to them, and what
// makes a time of that stretch worthless. The clock is 0 where there are no sensors.
func (w *Watch) During(from, to time.Time) (mhz float64, void []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.readings) == 0 {
		return 0, nil
	}
	at := func(t time.Time) int {
		i, _ := slices.BinarySearchFunc(w.readings, t, func(r Reading, t time.Time) int { return r.At.Compare(t) })
		return i
	}
	lo, hi := at(from), at(to)
	if lo == hi { // none between: take the one before and the one behind
		lo, hi = max(lo-1, 0), min(hi+1, len(w.readings))
	}
	for _, r := range w.readings[lo:hi] {
		mhz += r.SMClock / float64(hi-lo)
		for _, reason := range r.Void {
			if !slices.Contains(void, reason) {
				void = append(void, reason)
			}
		}
	}
	return mhz, void
}

// Last is the newest reading, taken now; ok is false without sensors.
func (w *Watch) Last() (Reading, bool) {
	w.look(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.readings) == 0 {
		return Reading{}, false
	}
	return w.readings[len(w.readings)-1], true
}

// Stop ends the watch and sums it up.
func (w *Watch) Stop() result.Watch {
	w.look(true)
	close(w.stop)
	w.done.Wait()
	return w.summary()
}

func (w *Watch) summary() result.Watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := result.Watch{Readings: len(w.readings)}
	of := func(get func(Reading) float64) result.Range {
		var v []float64
		for _, r := range w.readings {
			if x := get(r); x > 0 {
				v = append(v, x)
			}
		}
		if len(v) == 0 {
			return result.Range{}
		}
		return result.Range{Min: slices.Min(v), Median: stat.Summarize(v).Median, Max: slices.Max(v)}
	}
	s.SMClock = of(func(r Reading) float64 { return r.SMClock })
	s.MemClock = of(func(r Reading) float64 { return r.MemClock })
	s.Power = of(func(r Reading) float64 { return r.Power })
	s.TempC = of(func(r Reading) float64 { return r.TempC })
	for _, r := range w.readings {
		for _, reason := range r.Throttled {
			if s.Throttled == nil {
				s.Throttled = map[string]float64{}
			}
			s.Throttled[reason] += 1 / float64(len(w.readings))
		}
	}
	for o := range w.others {
		s.Others = append(s.Others, o)
	}
	slices.Sort(s.Others)
	return s
}

// Change turns to another probe of the same device, or with nil to none until the next Change. The old one is asked
// nothing more once it returns.
func (w *Watch) Change(p Probe) {
	w.sensing.Lock()
	defer w.sensing.Unlock()
	w.probe = p
}
