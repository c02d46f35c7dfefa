// Package compare says which times of a new result differ from those of an old one, and which only seem to.
package compare

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"qlora/bench/result"
	"qlora/bench/stat"
)

// Options of a comparison. The zero value compares runs of one device, and asks for differences beyond stat.Margin.
type Options struct {
	Margin     float64 // 0: stat.Margin
	AnyDevice  bool    // also of different devices or settings: what differs is said, and nothing is blamed on the code
	LeastPairs int     // samples a row needs on each side; 0: 4, below which no U test is significant
}

// Line is one row that both sides have.
type Line struct {
	Key     string
	Test    stat.Test  // of seconds
	Cycles  *stat.Test // of cycles, seconds times the clock in each sample; nil where a clock is not known
	Verdict stat.Verdict
	Why     string // what stands behind the verdict, where the test alone does not
}

// Report is a comparison, by row.
type Report struct {
	Lines            []Line
	OnlyOld, OnlyNew []string // rows without a partner
	Notices          []string
}

// Refused is why two results cannot be compared.
type Refused struct{ Reasons []string }

func (e *Refused) Error() string {
	return "cannot compare: " + strings.Join(e.Reasons, "; ")
}

// Files compares results. Several of one key on a side are runs of it. It fails with *Refused.
func Files(old, new []*result.File, o Options) (*Report, error) {
	if o.Margin == 0 {
		o.Margin = stat.Margin
	}
	if o.LeastPairs == 0 {
		o.LeastPairs = 4
	}
	if len(old) == 0 || len(new) == 0 {
		return nil, &Refused{[]string{"a side has no result"}}
	}
	r := &Report{}
	if differ := r.settings(old, new); len(differ) > 0 {
		if !o.AnyDevice {
			return nil, &Refused{append(differ, "--any_device compares all the same")}
		}
		r.Notices = append(r.Notices, differ...)
	}
	a, b := pool(old), pool(new)
	few := 0
	for _, key := range a.order {
		x, y := a.rows[key], b.rows[key]
		switch {
		case y == nil:
			r.OnlyOld = append(r.OnlyOld, key)
		case x.samples() < o.LeastPairs || y.samples() < o.LeastPairs:
			few++
		default:
			r.Lines = append(r.Lines, line(key, x, y))
		}
	}
	for _, key := range b.order {
		if a.rows[key] == nil {
			r.OnlyNew = append(r.OnlyNew, key)
		}
	}
	if few > 0 {
		r.Notices = append(r.Notices, fmt.Sprintf("%d rows have fewer than %d samples on a side, which no test can tell apart", few, o.LeastPairs))
	}
	if len(r.Lines) == 0 {
		return nil, &Refused{append([]string{fmt.Sprintf("no row with samples on both sides (%d rows against %d)", len(a.order), len(b.order))}, r.Notices...)}
	}
	r.judge(o.Margin)
	return r, nil
}

// side is what one of the two has of a row, run by run.
type side struct {
	seconds, cycles [][]float64 // no cycles where a clock is not known
}

// samples is how many there are in all runs.
func (s *side) samples() int { return len(slices.Concat(s.seconds...)) }

// pooled are the rows of a side.
type pooled struct {
	order []string
	rows  map[string]*side
}

func pool(files []*result.File) pooled {
	p := pooled{rows: map[string]*side{}}
	for _, f := range files {
		for _, r := range f.Rows {
			if len(r.Seconds) == 0 {
				continue
			}
			key := string(f.Kind) + " " + r.Key()
			s := p.rows[key]
			if s == nil {
				s = &side{}
				p.order, p.rows[key] = append(p.order, key), s
			}
			s.seconds = append(s.seconds, r.Seconds)
			if c := cycles(&r); c != nil {
				s.cycles = append(s.cycles, c)
			}
		}
	}
	return p
}

func line(key string, x, y *side) Line {
	l := Line{Key: key, Test: stat.Compare(x.seconds, y.seconds)}
	if len(x.cycles) == len(x.seconds) && len(y.cycles) == len(y.seconds) {
		t := stat.Compare(x.cycles, y.cycles)
		l.Cycles = &t
	}
	return l
}

// cycles are the millions of them in each sample; nil where the clock is not known.
func cycles(r *result.Row) []float64 {
	if len(r.MHz) != len(r.Seconds) || len(r.MHz) == 0 {
		return nil
	}
	c := make([]float64, len(r.MHz))
	for i, mhz := range r.MHz {
		c[i] = mhz * r.Seconds[i]
	}
	return c
}

// judge gives the verdicts. Where seconds and cycles disagree the clock has moved: a difference of time alone is the
// clock's, and one of cycles alone may be hidden by it, or be that of a kernel that waits for memory.
func (r *Report) judge(margin float64) {
	times, counts := make([]stat.Test, len(r.Lines)), make([]stat.Test, len(r.Lines))
	for i, l := range r.Lines {
		times[i], counts[i].P = l.Test, 1
		if l.Cycles != nil {
			counts[i] = *l.Cycles
		}
	}
	stat.Holm(times)
	stat.Holm(counts)
	for i := range r.Lines {
		l := &r.Lines[i]
		l.Test = times[i]
		l.Verdict = l.Test.Verdict(margin)
		if l.Cycles == nil {
			continue
		}
		*l.Cycles = counts[i]
		called := func(v stat.Verdict) bool { return v == stat.Slower || v == stat.Faster }
		inCycles := l.Cycles.Verdict(margin)
		if inCycles == l.Verdict || !called(l.Verdict) && !called(inCycles) {
			continue
		}
		before, after := l.Cycles.Old.Median/l.Test.Old.Median, l.Cycles.New.Median/l.Test.New.Median
		l.Why = fmt.Sprintf("clock drift, %.0f to %.0f MHz: %s in cycles", before, after, percent(l.Cycles.Ratio))
		l.Verdict = stat.Unsure
	}
}

// percent writes a ratio as a difference: "+5.0 %".
func percent(ratio float64) string { return fmt.Sprintf("%+.1f %%", 100*(ratio-1)) }

// Geomean is the geometric mean of the ratios of new to old.
func (r *Report) Geomean() float64 {
	sum := 0.0
	for _, l := range r.Lines {
		sum += math.Log(l.Test.Ratio)
	}
	return math.Exp(sum / float64(len(r.Lines)))
}

// Count is how many lines have a verdict.
func (r *Report) Count(v stat.Verdict) int {
	n := 0
	for _, l := range r.Lines {
		if l.Verdict == v {
			n++
		}
	}
	return n
}
