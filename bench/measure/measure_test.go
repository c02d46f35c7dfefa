package measure

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"qlora/model/cpu"
)

// idle is a probe whose sensors the test writes.
type idle struct{ *Host }

func (idle) Others() []string { return []string{"python3 (1 GiB)"} }

func watching(readings ...Reading) *Watch {
	return &Watch{probe: idle{NewHost(nil)}, stop: make(chan struct{}), readings: readings, others: map[string]bool{}}
}

func at(ms int) time.Time { return time.UnixMilli(int64(ms)) }

func TestDuring(t *testing.T) {
	w := watching(Reading{At: at(0), SMClock: 1000}, Reading{At: at(20), SMClock: 1200, Void: []string{"heat"}}, Reading{At: at(40), SMClock: 1400},
		Reading{At: at(60), SMClock: 1600, Void: []string{"heat", "power brake"}})
	for _, c := range []struct {
		from, to int
		mhz      float64
		void     string
	}{
		{10, 30, 1200, "heat"},
		{0, 41, 1200, "heat"},
		{25, 26, 1300, "heat"}, // between two readings: both
		{41, 42, 1500, "heat power brake"},
		{30, 100, 1500, "heat power brake"},
		{70, 80, 1600, "heat power brake"}, // behind the last
		{-9, -5, 1000, ""},
	} {
		mhz, void := w.During(at(c.from), at(c.to))
		if mhz != c.mhz || strings.Join(void, " ") != c.void {
			t.Errorf("%d to %d: %v MHz, void %q; want %v, %q", c.from, c.to, mhz, void, c.mhz, c.void)
		}
	}
	if mhz, void := watching().During(at(0), at(1)); mhz != 0 || void != nil {
		t.Errorf("without readings: %v, %v", mhz, void)
	}
}

func TestWatchSummary(t *testing.T) {
	w := watching(Reading{SMClock: 1000, Power: 300, Throttled: []string{"power cap"}}, Reading{SMClock: 1500, Power: 600, TempC: 50, Throttled: []string{"power cap", "heat"}},
		Reading{SMClock: 2000, Power: 700, TempC: 60}, Reading{SMClock: 1600, Power: 650, TempC: 55})
	w.look(true)
	s := w.summary()
	if s.Readings != 4 || s.SMClock.Min != 1000 || s.SMClock.Max != 2000 || s.SMClock.Median != 1550 || s.TempC.Min != 50 || s.MemClock.Max != 0 ||
		s.Throttled["power cap"] != 0.5 || s.Throttled["heat"] != 0.25 || !slices.Equal(s.Others, []string{"python3 (1 GiB)"}) {
		t.Errorf("%+v", s)
	}
}

// TestWatchInBackground reads by itself until it is stopped.
func TestWatchInBackground(t *testing.T) {
	n := make(chan int, 1000)
	w := StartWatch(&counting{idle{NewHost(nil)}, n})
	for range 3 {
		<-n
	}
	if s := w.Stop(); s.Readings < 3 || len(s.Others) != 1 {
		t.Errorf("%+v", s)
	}
}

type counting struct {
	idle
	n chan int
}

func (c *counting) Sense() (Reading, bool) {
	select {
	case c.n <- 1:
	default:
	}
	return Reading{At: time.Now(), SMClock: 1}, true
}

// script gives out times, the last one again and again.
func script(times ...float64) (Take, *int) {
	n := 0
	return func() (float64, error) {
		n++
		return times[min(n, len(times))-1], nil
	}, &n
}

func sampler(rule Rule) *Sampler {
	b := cpu.New[float32]()
	return &Sampler{Backend: b, Probe: NewHost(b), Watch: watching(), Rule: rule}
}

func TestStopRule(t *testing.T) {
	rule := Rule{Least: 10, Noise: 0.005, Most: 60, Time: time.Hour}
	steady, n := script(1)
	s, err := sampler(rule).Sample(context.Background(), steady)
	if err != nil || *n != 10 || len(s[0].Seconds) != 10 || s[0].Cap != "" || s[0].MHz != nil {
		t.Errorf("a steady time: %d samples, %+v, %v", *n, s, err)
	}
	// noise of 3 %: the median of n is known to 1.25·3 %/√n·1.96, which is 0.5 % at some 215 samples: the cap comes first
	r := rand.New(rand.NewPCG(1, 1))
	count := 0
	noisy := func() (float64, error) { count++; return 1 + 0.03*r.NormFloat64(), nil }
	s, err = sampler(rule).Sample(context.Background(), noisy)
	if err != nil || count != 60 || s[0].Cap != "60 samples" {
		t.Errorf("a noisy time: %d samples, cap %q, %v", count, s[0].Cap, err)
	}
	rule.Most = 1000
	count = 0
	if s, err = sampler(rule).Sample(context.Background(), noisy); err != nil || count < 100 || count > 500 || s[0].Cap != "" {
		t.Errorf("a noisy time with patience: %d samples, cap %q, %v", count, s[0].Cap, err)
	}
	rule.Time = time.Nanosecond
	if s, err = sampler(rule).Sample(context.Background(), noisy); err != nil || len(s[0].Seconds) != 10 || s[0].Cap != "1ns" {
		t.Errorf("no time: %d samples, cap %q, %v", len(s[0].Seconds), s[0].Cap, err)
	}
}

// TestTurns: works take turns, and another begins each round.
func TestTurns(t *testing.T) {
	var order strings.Builder
	take := func(name string) Take {
		return func() (float64, error) { order.WriteString(name); return 1, nil }
	}
	s, err := sampler(Rule{Least: 4, Noise: 1, Most: 4, Time: time.Hour}).Sample(context.Background(), take("a"), take("b"), take("c"))
	if err != nil || order.String() != "abcbcacababc" || len(s) != 3 || len(s[2].Seconds) != 4 {
		t.Errorf("%s, %v, %v", order.String(), s, err)
	}
}

// TestVoid: what is sampled while the device throttles does not count, and all of it is an error.
func TestVoid(t *testing.T) {
	s := sampler(Rule{Least: 10, Noise: 0.005, Most: 30, Time: time.Hour})
	n := 0
	take := func() (float64, error) {
		r := Reading{At: time.Now(), SMClock: 1500}
		if n++; n <= 5 {
			r.SMClock, r.Void = 900, []string{"heat"}
		}
		s.Watch.readings = append(s.Watch.readings, r)
		return 1, nil
	}
	all, err := s.Sample(context.Background(), take)
	if err != nil || n != 15 || len(all[0].Seconds) != 10 || all[0].Void["heat"] != 5 || all[0].MHz[0] != 1500 {
		t.Errorf("%d taken, %+v, %v", n, all, err)
	}
	s.Watch.readings, n = nil, -1000
	var void *AllVoid
	if _, err = s.Sample(context.Background(), take); !errors.As(err, &void) || void.Reasons["heat"] != 30 {
		t.Errorf("all void: %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	take := func() (float64, error) { cancel(); return 1, nil }
	if _, err := sampler(Default).Sample(ctx, take); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestHost measures the processor's own roofs.
func TestHost(t *testing.T) {
	s := sampler(Rule{Least: 2, Noise: 1, Most: 2, Time: time.Minute})
	defer s.Backend.Close()
	roofs, err := s.Roofs(context.Background())
	if err != nil || len(roofs) != 3 {
		t.Fatalf("%v, %v", roofs, err)
	}
	for _, r := range roofs {
		t.Logf("%s: %.3g", r.Name, r.Rate())
		if r.Rate() < 1e8 || r.Rate() > 1e14 {
			t.Errorf("%s: %v a second", r.Name, r.Rate())
		}
	}
	if m, ok := s.Probe.Memory(); !ok || m < 1<<20 {
		t.Errorf("memory %d, %v", m, ok)
	}
}

// TestColdAndHot: before comes before every sample, the flush before a cold one.
func TestColdAndHot(t *testing.T) {
	s := sampler(Default)
	defer s.Backend.Close()
	h := s.Probe.(*Host)
	calls, refreshed := 0, 0
	run := func() { calls++; time.Sleep(0) }
	before := func() error { refreshed++; return nil }
	if _, err := s.Cold(run, before)(); err != nil || calls != 1 || refreshed != 1 || h.dirty[len(h.dirty)-1] != 1 {
		t.Errorf("cold: %d calls, %d refreshed, %v", calls, refreshed, err)
	}
	calls, refreshed = 0, 0
	take, err := s.Hot(run, before)
	if err != nil || calls != 2 || refreshed != 2 {
		t.Errorf("hot with a refresh: %d calls, %d refreshed, %v", calls, refreshed, err)
	}
	if _, err := take(); err != nil || calls != 3 || refreshed != 3 {
		t.Errorf("hot with a refresh: %d calls, %d refreshed, %v", calls, refreshed, err)
	}
	calls = 0
	if take, err = s.Hot(run, nil); err != nil {
		t.Fatal(err)
	}
	calls = 0
	if _, err := take(); err != nil || calls != 501 { // a call of nothing is repeated to the limit, and once before
		t.Errorf("hot: %d calls, %v", calls, err)
	}
	if len(h.marks) != 0 {
		t.Errorf("%d marks are kept", len(h.marks))
	}
}
