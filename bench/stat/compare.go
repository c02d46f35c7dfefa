package stat

import (
	"cmp"
	"math"
	"slices"

	"github.com/aclements/go-moremath/stats"
	simple "github.com/montanaflynn/stats"
	"golang.org/x/perf/benchmath"
)

// Verdict says how a time compares with an older one.
type Verdict string

const (
	Same   Verdict = "SAME"   // within the margin, with the confidence of the interval
	Faster Verdict = "FASTER" // beyond it, and significant
	Slower Verdict = "SLOWER"
	Unsure Verdict = "UNSURE" // the samples do not say
)

// Alpha is the chance of one false verdict of FASTER or SLOWER in a whole family of tests.
const Alpha = 0.05

// Margin is the difference that counts for none: between two runs of one program clocks, memory layout and neighbours
// make as much.
const Margin = 0.01

// Test compares two samples of one time.
type Test struct {
	Old, New Summary
	P        float64 // of the Mann-Whitney U test, two-sided; of several runs a side, no less than that of a t-test of the runs
	Adjusted float64 // P, corrected for the family it belongs to by Holm
	// Ratio of new to old: the median of all ratios of a new to an old sample (Hodges and Lehmann, 1963), and the interval of
	// all ratios that the U test at 5 % would not reject, and the t-test, where there is one.
	Ratio, Lo, Hi float64
}

// Compare tests new against old, each in one run or several. Holm corrects a family of tests.
func Compare(old, new [][]float64) Test {
	t := Test{Old: Summarize(slices.Concat(old...)), New: Summarize(slices.Concat(new...))}
	a, b := independent(old), independent(new)
	sample := func(v []float64) *benchmath.Sample {
		return benchmath.NewSample(slices.Clone(v), &benchmath.DefaultThresholds)
	}
	t.P = benchmath.AssumeNothing.Compare(sample(a), sample(b)).P
	t.Ratio, t.Lo, t.Hi = ratio(a, b)
	if len(old) > 1 && len(new) > 1 {
		t.between(old, new)
	}
	t.Adjusted = t.P
	return t
}

// between widens P and the interval by what runs of one side differ from each other, which samples of a run share: Welch's
// t-test of the logarithms of the runs' medians.
func (t *Test) between(old, new [][]float64) {
	a, b := middles(old), middles(new)
	r, err := stats.TwoSampleWelchTTest(a, b, stats.LocationDiffers)
	if err != nil { // the runs of both sides are the same to the last bit
		return
	}
	t.P = max(t.P, r.P)
	middle := b.Mean() - a.Mean()
	wide := stats.InvCDF(stats.TDist{V: r.DoF})((1+Confidence)/2) * math.Sqrt(a.Variance()/a.Weight()+b.Variance()/b.Weight())
	t.Lo, t.Hi = min(t.Lo, math.Exp(middle-wide)), max(t.Hi, math.Exp(middle+wide))
}

// middles are the logarithms of the medians of runs.
func middles(runs [][]float64) stats.Sample {
	var s stats.Sample
	for _, run := range runs {
		m, _ := simple.Median(run) // fails on no samples alone
		s.Xs = append(s.Xs, math.Log(m))
	}
	return s
}

// leastBlocks is how many numbers a sample is reduced to at least.
const leastBlocks = 10

// independent reduces the samples of each run that resemble their neighbours, because a clock drifts, to medians of
// blocks: as many as a first-order autoregression of that correlation is worth, (1-r)/(1+r) of the samples. The U test
// counts every sample as evidence of its own. A correlation that as many independent samples would show by chance counts
// for none.
func independent(runs [][]float64) []float64 {
	var all []float64
	for _, v := range runs {
		all = append(all, thinned(v)...)
	}
	return all
}

func thinned(v []float64) []float64 {
	r, err := simple.AutoCorrelation(v, 1)
	if err != nil || !(r > 2/math.Sqrt(float64(len(v)))) {
		return v
	}
	n := max(int(float64(len(v))*(1-r)/(1+r)), leastBlocks)
	if n >= len(v) {
		return v
	}
	blocks := make([]float64, n)
	for i := range blocks {
		blocks[i], _ = simple.Median(v[i*len(v)/n : (i+1)*len(v)/n]) // fails on no samples alone
	}
	return blocks
}

// ratio is Hodges and Lehmann's estimate of new over old with its interval, from zero to infinity where there are too
// few samples.
func ratio(old, new []float64) (mid, lo, hi float64) {
	all := make([]float64, 0, len(old)*len(new))
	for _, a := range old {
		for _, b := range new {
			all = append(all, b/a)
		}
	}
	slices.Sort(all)
	mid, _ = simple.Median(all)
	k := rejected(len(old), len(new))
	if k < 0 {
		return mid, 0, math.Inf(1)
	}
	return mid, all[k], all[len(all)-1-k]
}

// exactLimit is up to how many samples the distribution of U is computed, not approximated.
const exactLimit = 20

// rejected is how many of the sorted ratios lie outside the interval on either side: the largest k for which U < k has at
// most half of 1 - Confidence; -1 for none.
func rejected(n1, n2 int) int {
	tail := (1 - Confidence) / 2
	if n1 <= exactLimit && n2 <= exactLimit {
		d, k := stats.UDist{N1: n1, N2: n2}, -1
		for k < n1*n2/2 && d.CDF(float64(k+1)) <= tail {
			k++
		}
		return k
	}
	n, m := float64(n1), float64(n2)
	return int(n*m/2 - stats.InvCDF(stats.StdNormal)(1-tail)*math.Sqrt(n*m*(n+m+1)/12) - 0.5)
}

// Holm corrects P of a family for the number of its tests (Holm, 1979): the chance that any of those true to the null
// hypothesis is called significant stays below Alpha, however they depend on each other.
func Holm(family []Test) {
	order := make([]int, len(family))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(family[a].P, family[b].P) })
	most := 0.0
	for rank, i := range order {
		most = max(most, min(1, family[i].P*float64(len(family)-rank)))
		family[i].Adjusted = most
	}
}

// Verdict says what the test shows, of differences beyond a margin.
func (t Test) Verdict(margin float64) Verdict {
	slow, fast := 1+margin, 1/(1+margin)
	switch {
	case t.Adjusted < Alpha && t.Lo > slow:
		return Slower
	case t.Adjusted < Alpha && t.Hi < fast:
		return Faster
	case t.Lo >= fast && t.Hi <= slow:
		return Same
	}
	return Unsure
}
