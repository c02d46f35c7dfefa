package stat

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*math.Abs(b) }

// The interval of the median of 10 is from the 2nd to the 9th: the binomial distribution gives it 97.9 %, and one
// rank less on each side 89.1 %.
func TestSummarize(t *testing.T) {
	s := Summarize([]float64{7, 1, 3, 2, 10, 5, 4, 6, 9, 8})
	if s.N != 10 || s.Median != 5.5 || s.Mean != 5.5 || s.Min != 1 || !near(s.P10, 1.9) || !near(s.P90, 9.1) || s.Lo != 2 || s.Hi != 9 {
		t.Errorf("%+v", s)
	}
	if got := s.Noise(); !near(got, 3.5/5.5) {
		t.Errorf("noise %v", got)
	}
	if s = s.Scale(2); s.Median != 11 || s.Hi != 18 || s.N != 10 {
		t.Errorf("doubled: %+v", s)
	}
	if few := Summarize([]float64{1, 2, 3}); !math.IsInf(few.Noise(), 1) {
		t.Errorf("three samples know the median to %v", few.Noise())
	}
	if one := Summarize([]float64{4}); one.Median != 4 || one.P90 != 4 {
		t.Errorf("%+v", one)
	}
	in := []float64{3, 1, 2}
	if Summarize(in); !slices.Equal(in, []float64{3, 1, 2}) {
		t.Error("the samples were put in another order")
	}
}

// P, ratio and interval as counting all 48,620 ways to split the ranks gives them.
func TestCompareByHand(t *testing.T) {
	a := []float64{1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30}
	b := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06001, 3.14, 1.29001}
	got := Compare([][]float64{a}, [][]float64{b})
	if !near(got.P, 0.13591114767585355) || !near(got.Ratio, 0.6753846153846154) || !near(got.Lo, 0.4174193548387097) || !near(got.Hi, 1.265432098765432) {
		t.Errorf("%+v", got)
	}
	// The table of U at 5 % two-sided for 9 and 9 is 17: the interval leaves out 17 ratios on either side.
	if k := rejected(9, 9); k != 17 {
		t.Errorf("%d of the ratios are left out, want 17", k)
	}
	for n, want := range map[[2]int]int{{3, 3}: -1, {4, 4}: 0, {5, 5}: 2, {10, 10}: 23, {8, 13}: 24, {20, 20}: 127} {
		if k := rejected(n[0], n[1]); k != want {
			t.Errorf("%v: %d, want %d as tables of U have it", n, k, want)
		}
	}
	if exact, normal := 127, rejected(20, 21); normal < exact || normal > exact+9 {
		t.Errorf("20 and 21 samples: %d; 20 and 20: %d", normal, exact)
	}
}

// TestRatioCovers: the interval holds the true ratio in about 95 of 100 samples.
func TestRatioCovers(t *testing.T) {
	r, hit := rand.New(rand.NewPCG(1, 2)), 0
	const runs, truth = 2000, 1.03
	for range runs {
		a, b := make([]float64, 15), make([]float64, 30)
		for i := range a {
			a[i] = math.Exp(0.02 * r.NormFloat64())
		}
		for i := range b {
			b[i] = truth * math.Exp(0.02*r.NormFloat64())
		}
		if _, lo, hi := ratio(a, b); lo <= truth && truth <= hi {
			hit++
		}
	}
	if share := float64(hit) / runs; share < 0.94 || share > 0.965 {
		t.Errorf("%.3f of the intervals hold the ratio, want 0.95", share)
	}
}

func TestHolm(t *testing.T) {
	family := []Test{{P: 0.01}, {P: 0.04}, {P: 0.03}, {P: 0.005}}
	Holm(family)
	for i, want := range []float64{0.03, 0.06, 0.06, 0.02} { // as R's p.adjust
		if !near(family[i].Adjusted, want) {
			t.Errorf("%d: %v, want %v", i, family[i].Adjusted, want)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		t    Test
		want Verdict
	}{
		{Test{Adjusted: 0.001, Lo: 1.02, Hi: 1.04}, Slower},
		{Test{Adjusted: 0.001, Lo: 0.90, Hi: 0.95}, Faster},
		{Test{Adjusted: 0.001, Lo: 1.002, Hi: 1.004}, Same},
		{Test{Adjusted: 0.9, Lo: 0.995, Hi: 1.005}, Same},
		{Test{Adjusted: 0.001, Lo: 1.005, Hi: 1.02}, Unsure},
		{Test{Adjusted: 0.2, Lo: 1.02, Hi: 1.04}, Unsure},
		{Test{Adjusted: 1, Lo: 0, Hi: math.Inf(1)}, Unsure},
	} {
		if got := c.t.Verdict(Margin); got != c.want {
			t.Errorf("%+v: %s, want %s", c.t, got, c.want)
		}
	}
}

// TestBetweenRuns: P and interval of Welch's t-test, as a numerical integral of Student's density gives them; and samples
// that agree within each run say nothing against runs that do not.
func TestBetweenRuns(t *testing.T) {
	runs := func(medians ...float64) (all [][]float64) {
		for _, m := range medians {
			run := make([]float64, 50)
			for i := range run {
				run[i] = m * (1 + 1e-4*float64(i%5-2))
			}
			all = append(all, run)
		}
		return all
	}
	got := Compare(runs(1, 1.1, 0.9, 1.05), runs(1.2, 1.25, 1.15, 1.3))
	for name, pair := range map[string][2]float64{"P": {got.P, 0.012603906788784}, "from": {got.Lo, 1.0643410377902}, "to": {got.Hi, 1.3799812050067}} {
		if math.Abs(pair[0]-pair[1]) > 1e-7 {
			t.Errorf("%s %.12f, want %.12f", name, pair[0], pair[1])
		}
	}
	if one := Compare(runs(1), runs(1.2)); one.P > 1e-9 || one.Lo < 1.19 {
		t.Errorf("one run a side: %+v", one)
	}
	if same := Compare(runs(1, 1), runs(1, 1)); same.Verdict(Margin) != Same {
		t.Errorf("the same runs: %+v", same)
	}
}

// Independent samples stay as they are; a drifting row is worth less than it is long.
func TestIndependent(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	noise, drift := make([]float64, 200), make([]float64, 200)
	for i := range noise {
		noise[i] = 1 + 0.01*r.NormFloat64()
		drift[i] = 1 + 0.05*math.Sin(float64(i)/40) + 0.001*r.NormFloat64()
	}
	if n := len(thinned(noise)); n < 150 {
		t.Errorf("200 independent samples became %d", n)
	}
	if n := len(thinned(drift)); n != leastBlocks {
		t.Errorf("200 samples that drift became %d", n)
	}
}
