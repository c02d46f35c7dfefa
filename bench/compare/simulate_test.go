package compare

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"qlora/bench/result"
	"qlora/bench/stat"
)

// A simulated run of kernels on a card, with all that has been seen of them: noise, a clock that drifts through the run
// and differs between runs, steps (a stretch of samples at another level), heavy tails.
type world struct {
	r       *rand.Rand
	rows    int
	samples int
	level   float64 // MHz
	between float64 // what runs of one kernel differ by, besides the clock: memory laid out elsewhere, neighbours
}

// run makes the rows of a file. slower multiplies the time of row 0.
func (w world) run(slower float64) *result.File {
	f := &result.File{Schema: result.Schema, Kind: result.Kernels, Environment: result.Environment{Backend: "cuda", Card: &result.Card{Name: "NVIDIA H200"}}}
	level := w.level + 12*w.r.NormFloat64() // MHz: of this run
	slope := 15 * w.r.NormFloat64()         // over the whole run
	phase := w.r.Float64() * 2 * math.Pi
	for i := range w.rows {
		row := result.Row{Name: fmt.Sprint("kernel ", i)}
		cycles := 1e5 * math.Pow(1.3, float64(i%10))
		if w.between > 0 {
			cycles *= math.Exp(w.between * w.r.NormFloat64())
		}
		noise := []float64{0.002, 0.005, 0.01, 0.02}[i%4]
		if i == 0 {
			cycles *= slower
		}
		n := w.samples + w.r.IntN(w.samples)
		stepAt, stepLen, step := w.r.IntN(n), w.r.IntN(n/3), 1.0
		if w.r.Float64() < 0.3 {
			step = 1 + 0.03*w.r.NormFloat64()
		}
		for s := range n {
			at := (float64(i) + float64(s)/float64(n)) / float64(w.rows)
			mhz := level + slope*at + 8*math.Sin(phase+9*at)
			t := cycles / (mhz * 1e6) * math.Exp(noise*w.r.NormFloat64())
			if s >= stepAt && s < stepAt+stepLen {
				t *= step
			}
			if w.r.Float64() < 0.05 {
				t *= 1 + 0.1*w.r.ExpFloat64()
			}
			row.Seconds = append(row.Seconds, t)
			row.MHz = append(row.MHz, math.Round((mhz+5*w.r.NormFloat64())/15)*15) // as NVML tells it
		}
		f.Rows = append(f.Rows, row)
	}
	return f
}

func alarms(t *testing.T, a, b *result.File) (slower int, report *Report) {
	t.Helper()
	report, err := Files([]*result.File{a}, []*result.File{b}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return report.Count(stat.Slower) + report.Count(stat.Faster), report
}

// TestNoAlarm compares A with A: of 20 comparisons of 40 kernels none gives an alarm, and of 200 at most 5 %, which is the
// family-wise error that Holm's correction promises.
func TestNoAlarm(t *testing.T) {
	wrong := 0
	const families = 200
	for i := range families {
		w := world{r: rand.New(rand.NewPCG(uint64(i), 7)), rows: 40, samples: 15, level: 1600}
		n, r := alarms(t, w.run(1), w.run(1))
		if n > 0 {
			wrong++
			if i < 20 {
				t.Errorf("comparison %d: %d alarms of A against A", i, n)
				for _, l := range r.Lines {
					if l.Verdict == stat.Slower || l.Verdict == stat.Faster {
						t.Logf("%s %s: %.4f [%.4f, %.4f]", l.Key, l.Verdict, l.Test.Ratio, l.Test.Lo, l.Test.Hi)
					}
				}
			}
		}
	}
	rate := float64(wrong) / families
	t.Logf("family-wise error: %.4f of %d comparisons of 40 kernels", rate, families)
	if rate > stat.Alpha {
		t.Errorf("%.4f of the comparisons of A with A give an alarm, more than %v", rate, stat.Alpha)
	}
}

// TestSlowdownCaught: one kernel of 40 becomes 5 % slower, 20 times of 20 seen, and nothing else is called.
func TestSlowdownCaught(t *testing.T) {
	for i := range 20 {
		w := world{r: rand.New(rand.NewPCG(uint64(i), 8)), rows: 40, samples: 15, level: 1600}
		n, r := alarms(t, w.run(1), w.run(1.05))
		l := r.Lines[0]
		if l.Verdict != stat.Slower || n != 1 {
			t.Errorf("run %d: %s at %.4f [%.4f, %.4f], p %.4f (%s), %d alarms", i, l.Verdict, l.Test.Ratio, l.Test.Lo, l.Test.Hi, l.Test.Adjusted, l.Why, n)
		}
		gate, err := ParseGate("median>2%")
		if err != nil {
			t.Fatal(err)
		}
		if closed := gate.Closed(r); len(closed) != 1 || closed[0].Key != "kernels kernel 0" {
			t.Errorf("run %d: %s closes on %d lines", i, gate, len(closed))
		}
	}
}

// rounds are several runs, as of `bench ab`.
func (w world) rounds(n int, slower float64) (all []*result.File) {
	for range n {
		all = append(all, w.run(slower))
	}
	return all
}

// TestRounds: six runs a side that differ by a tenth among themselves, though the samples of each agree, give no more
// alarms than promised; and where they agree to 0.3 %, a slowdown of 5 % is seen.
func TestRounds(t *testing.T) {
	const families, rounds = 100, 6
	wrong := 0
	for i := range families {
		w := world{r: rand.New(rand.NewPCG(uint64(i), 10)), rows: 20, samples: 12, level: 1600, between: 0.1}
		r, err := Files(w.rounds(rounds, 1), w.rounds(rounds, 1), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Count(stat.Slower)+r.Count(stat.Faster) > 0 {
			wrong++
		}
	}
	rate := float64(wrong) / families
	t.Logf("family-wise error: %.4f of %d comparisons of 20 kernels in %d runs a side", rate, families, rounds)
	if rate > stat.Alpha {
		t.Errorf("%.4f of the comparisons of A with A give an alarm, more than %v", rate, stat.Alpha)
	}
	for i := range 20 {
		w := world{r: rand.New(rand.NewPCG(uint64(i), 11)), rows: 5, samples: 12, level: 1600, between: 0.003}
		r, err := Files(w.rounds(rounds, 1), w.rounds(rounds, 1.05), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if l := r.Lines[0]; l.Verdict != stat.Slower || r.Count(stat.Slower)+r.Count(stat.Faster) != 1 {
			t.Errorf("run %d: %s at %.4f [%.4f, %.4f], p %.4f (%s)", i, l.Verdict, l.Test.Ratio, l.Test.Lo, l.Test.Hi, l.Test.Adjusted, l.Why)
		}
	}
}

// TestClockDrift: a clock 6 % lower makes all kernels slower, and none is called so; a slowdown that a higher clock hides is
// not called SAME.
func TestClockDrift(t *testing.T) {
	w := world{r: rand.New(rand.NewPCG(1, 9)), rows: 40, samples: 15, level: 1600}
	old := w.run(1)
	w.level = 1500
	n, r := alarms(t, old, w.run(1))
	drift := 0
	for _, l := range r.Lines {
		if strings.HasPrefix(l.Why, "clock drift, ") {
			drift++
		}
	}
	if n != 0 || drift < 30 {
		t.Errorf("a lower clock: %d alarms, %d of 40 named clock drift", n, drift)
	}
	w.level = 1680
	if _, r = alarms(t, old, w.run(1.05)); r.Lines[0].Verdict != stat.Unsure || !strings.Contains(r.Lines[0].Why, "clock drift") {
		t.Errorf("a slowdown behind a higher clock: %s (%s)", r.Lines[0].Verdict, r.Lines[0].Why)
	}
}
