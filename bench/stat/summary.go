// Package stat says what samples of a time tell, and what they do not.
//
// Nothing is assumed of their distribution: times of kernels have long tails, two or three levels (clocks), and drift. So
// the middle is the median, its interval comes from order statistics, two samples are compared by the Mann-Whitney U test,
// and the ratio of two by Hodges and Lehmann's estimate with the interval that inverts that test. What runs of one program
// differ by counts beside what samples of a run do, where there are several runs.
package stat

import (
	"slices"

	"github.com/montanaflynn/stats"
	"golang.org/x/perf/benchmath"
)

// Confidence is that of every interval.
const Confidence = 0.95

// Summary is a sample in a few numbers, in the sample's own unit.
type Summary struct {
	N             int
	Median, Mean  float64
	Min, P10, P90 float64
	Lo, Hi        float64 // interval of the median; infinite where there are too few samples for one
}

// Summarize needs at least one sample.
func Summarize(v []float64) Summary {
	own := slices.Clone(v)
	b := benchmath.AssumeNothing.Summary(benchmath.NewSample(own, &benchmath.DefaultThresholds), Confidence) // sorts own
	s := Summary{N: len(v), Median: b.Center, Lo: b.Lo, Hi: b.Hi, Min: own[0]}
	s.P10, _ = stats.Percentile(own, 10) // these fail on no samples alone
	s.P90, _ = stats.Percentile(own, 90)
	s.Mean, _ = stats.Mean(own)
	return s
}

// Noise is half the width of the median's interval in parts of the median: how well the median is known. It is infinite
// where there are too few samples to say.
func (s Summary) Noise() float64 { return (s.Hi - s.Lo) / 2 / s.Median }

// Scale is the summary of the sample times f > 0.
func (s Summary) Scale(f float64) Summary {
	for _, v := range []*float64{&s.Median, &s.Mean, &s.Min, &s.P10, &s.P90, &s.Lo, &s.Hi} {
		*v *= f
	}
	return s
}
