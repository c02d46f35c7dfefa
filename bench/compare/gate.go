package compare

import (
	"fmt"
	"math"
	"regexp"
	"strconv"

	"qlora/bench/stat"
)

// Gate is a rule for CI: a metric of a row may grow by a share at most. It closes on rows that are SLOWER, so that noise
// and a clock that drifted do not close it.
type Gate struct {
	Metric string // median, mean, min, p10 or p90
	Most   float64
}

// metrics are those a gate knows.
var metrics = map[string]func(stat.Summary) float64{
	"median": func(s stat.Summary) float64 { return s.Median },
	"mean":   func(s stat.Summary) float64 { return s.Mean },
	"min":    func(s stat.Summary) float64 { return s.Min },
	"p10":    func(s stat.Summary) float64 { return s.P10 },
	"p90":    func(s stat.Summary) float64 { return s.P90 },
}

var gateText = regexp.MustCompile(`^\s*([a-z0-9]+)\s*>\s*([0-9.]+)\s*%\s*$`)

// ParseGate reads "median>3%".
func ParseGate(text string) (Gate, error) {
	m := gateText.FindStringSubmatch(text)
	if m == nil {
		return Gate{}, fmt.Errorf("%q is no rule: write METRIC>PERCENT%%, such as 'median>3%%'", text)
	}
	most, err := strconv.ParseFloat(m[2], 64)
	if err != nil || math.IsInf(most, 0) {
		return Gate{}, fmt.Errorf("%q: %s is no number", text, m[2])
	}
	if metrics[m[1]] == nil {
		return Gate{}, fmt.Errorf("%q: %s is no metric: choose median, mean, min, p10 or p90", text, m[1])
	}
	return Gate{m[1], most / 100}, nil
}

// String is the rule as it is read.
func (g Gate) String() string {
	return fmt.Sprintf("%s>%s%%", g.Metric, strconv.FormatFloat(100*g.Most, 'g', 6, 64))
}

// Closed lists the lines that break the rule.
func (g Gate) Closed(r *Report) []Line {
	var all []Line
	value := metrics[g.Metric]
	for _, l := range r.Lines {
		if l.Verdict == stat.Slower && value(l.Test.New) > value(l.Test.Old)*(1+g.Most) {
			all = append(all, l)
		}
	}
	return all
}
