package measure

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"qlora/bench/result"
	"qlora/bench/stat"
	"qlora/model/ops"
)

// Rule says when enough samples are taken: Least of them at least, and more until the noise is down to Noise, or until one
// of the caps.
type Rule struct {
	Least int
	Noise float64       // of the median: see stat.Summary.Noise
	Most  int           // cap on the samples
	Time  time.Duration // cap on the wall clock
}

// Default is the rule of nvbench, with the median in place of the mean.
var Default = Rule{Least: 10, Noise: 0.005, Most: 400, Time: 4 * time.Second}

// Sampler takes samples on a device.
type Sampler struct {
	Backend ops.Backend
	Probe   Probe
	Watch   *Watch
	Rule    Rule
}

// Series is what was sampled of one work.
type Series struct {
	Seconds result.Samples
	MHz     result.Samples // nil where the clock is not known
	Cap     string         // the cap that ended it; "" where the noise is low
	Void    map[string]int // samples thrown away, by reason
}

// Take takes one sample: seconds of one call.
type Take func() (seconds float64, err error)

// once is a sample with its place in time.
type once struct {
	seconds  float64
	from, to time.Time
}

// Sample takes samples of several works, in turns, so that all of them see the same clock and heat. The first decides when
// there are enough.
func (s *Sampler) Sample(ctx context.Context, takes ...Take) ([]Series, error) {
	taken := make([][]once, len(takes))
	begun, limit := time.Now(), ""
	for n := 0; limit == ""; n++ {
		for j := range takes {
			i := (n + j) % len(takes) // another begins each round
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			o := once{from: time.Now()}
			var err error
			if o.seconds, err = takes[i](); err != nil {
				return nil, err
			}
			o.to = time.Now()
			taken[i] = append(taken[i], o)
		}
		if n+1 < s.Rule.Least {
			continue
		}
		first := s.series(taken[0])
		switch {
		case len(first.Seconds) >= s.Rule.Least && stat.Summarize(first.Seconds).Noise() <= s.Rule.Noise:
			limit = "enough"
		case n+1 >= s.Rule.Most:
			limit = fmt.Sprintf("%d samples", s.Rule.Most)
		case time.Since(begun) >= s.Rule.Time:
			limit = s.Rule.Time.String()
		}
	}
	all := make([]Series, len(takes))
	for i := range takes {
		all[i] = s.series(taken[i])
		if limit != "enough" {
			all[i].Cap = limit
		}
		if len(all[i].Seconds) == 0 {
			return nil, &AllVoid{all[i].Void}
		}
	}
	return all, nil
}

// AllVoid is a work of which no sample counts.
type AllVoid struct{ Reasons map[string]int }

func (e *AllVoid) Error() string {
	return fmt.Sprintf("every sample is void: %v: let the device cool, see to its air and power, and measure again", e.Reasons)
}

// series keeps the samples that count.
func (s *Sampler) series(taken []once) Series {
	var r Series
	known := true
	for _, o := range taken {
		mhz, void := s.Watch.During(o.from, o.to)
		for _, reason := range void {
			if r.Void == nil {
				r.Void = map[string]int{}
			}
			r.Void[reason]++
		}
		if len(void) > 0 {
			continue
		}
		r.Seconds, r.MHz = append(r.Seconds, o.seconds), append(r.MHz, mhz)
		known = known && mhz > 0
	}
	if !known {
		r.MHz = nil
	}
	return r
}

// Time is the device's time of f, which enqueues n calls, a call.
func (s *Sampler) Time(n int, f func()) (seconds float64, err error) {
	defer s.Probe.Forget()
	from, err := s.Probe.Mark()
	if err != nil {
		return 0, err
	}
	f()
	to, err := s.Probe.Mark()
	if err := errors.Join(err, s.Backend.Sync()); err != nil {
		return 0, err
	}
	seconds, err = s.Probe.Seconds(from, to)
	if err == nil && !(seconds > 0) {
		err = fmt.Errorf("measure: a call took %v seconds by the device's clock", seconds)
	}
	return seconds / float64(n), err
}

// Cold takes samples of single calls whose operands are in no cache. before, which may be nil, puts back what a call
// changes.
func (s *Sampler) Cold(run func(), before func() error) Take {
	return func() (float64, error) {
		if before != nil {
			if err := before(); err != nil {
				return 0, err
			}
		}
		s.Probe.Flush() // the host is ahead when it ends, so that the call's launch is not waited for
		return s.Time(1, run)
	}
}

// hotSeconds is how long a sample of calls back to back lasts about, at least.
const hotSeconds = 2e-3

// Hot takes samples of calls back to back, which find in the caches what fits there.
func (s *Sampler) Hot(run func(), before func() error) (Take, error) {
	once := func(n int) (float64, error) {
		if before != nil {
			if err := before(); err != nil {
				return 0, err
			}
			return s.Time(1, run)
		}
		run() // while it runs, the host launches the next
		return s.Time(n, func() {
			for range n {
				run()
			}
		})
	}
	if _, err := once(1); err != nil { // the first call pays for what is done once
		return nil, err
	}
	estimate, err := once(1)
	if err != nil {
		return nil, err
	}
	n := int(min(max(math.Ceil(hotSeconds/estimate), 1), 500))
	return func() (float64, error) { return once(n) }, nil
}

// Row is the series as a row of a file.
func (s Series) Row(name string, params map[string]string) result.Row {
	return result.Row{Name: name, Params: params, Seconds: s.Seconds, MHz: s.MHz, Cap: s.Cap, Void: s.Void}
}

// Roofs measures what the device does at most.
func (s *Sampler) Roofs(ctx context.Context) ([]result.Roof, error) {
	loads, done, err := s.Probe.Loads()
	var roofs []result.Roof
	for _, l := range loads {
		if err != nil {
			break
		}
		var roof result.Roof
		if roof, err = s.roof(ctx, l); err != nil {
			err = fmt.Errorf("roof %s: %w", l.Name, err)
		}
		roofs = append(roofs, roof)
	}
	if done != nil {
		err = errors.Join(err, done())
	}
	return roofs, err
}

func (s *Sampler) roof(ctx context.Context, l Load) (result.Roof, error) {
	take, err := s.Hot(l.Run, nil)
	if err != nil {
		return result.Roof{}, err
	}
	begun := time.Now()
	series, err := s.Sample(ctx, take)
	if err != nil {
		return result.Roof{}, err
	}
	row := series[0].Row(l.Name, nil)
	row.FLOPs, row.Bytes = l.FLOPs, l.Bytes
	return result.Roof{Name: l.Name, Unit: l.Unit, Row: row, Power: s.Watch.power(begun)}, nil
}

// power is the middle of the readings since a moment.
func (w *Watch) power(since time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var v []float64
	for _, r := range w.readings {
		if r.At.After(since) && r.Power > 0 {
			v = append(v, r.Power)
		}
	}
	if len(v) == 0 {
		return 0
	}
	return stat.Summarize(v).Median
}
