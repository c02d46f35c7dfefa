package plan

import (
	_ "embed"
	"encoding/json"
	"math"
	"slices"
	"sync"

	"github.com/montanaflynn/stats"
)

// Measured is what results/ says of the kernels, kept in measured.json: `go test ./model/plan -update` makes it anew, and a
// test says when it is stale.
type Measured struct {
	Card    string   `json:"card"`    // that all was measured on
	Sources []string `json:"sources"` // files of results/
	// Share is each op's least time on that card over the time it took, where the least time is that of its products and of
	// its traffic at the card's peaks, whichever is more.
	Share map[string]float64 `json:"share"`
	// Attention is how the rate of attention grows with the tokens of a row, over that at 2048.
	Attention []AttentionRate `json:"attention"`
	// Launch is the seconds between two ops.
	Launch float64 `json:"launch_seconds"`
	// Runs are steps that were measured and what is predicted of them.
	Runs []Run `json:"runs"`
}

// AttentionRate is the rate of a row of T tokens.
type AttentionRate struct {
	T       int     `json:"T"`
	Forward float64 `json:"forward"`
	Back    float64 `json:"back"`
}

// Run is a measured step beside its prediction.
type Run struct {
	File      string  `json:"file"`
	Card      string  `json:"card"`
	Model     string  `json:"model"`
	Tokens    int     `json:"tokens"`
	Seconds   float64 `json:"seconds"`
	Predicted float64 `json:"predicted_seconds"`
}

// Error is how far the prediction is off, of the measured time.
func (r Run) Error() float64 { return r.Predicted/r.Seconds - 1 }

//go:embed measured.json
var measuredJSON []byte

// Results is what was measured so far.
var Results = sync.OnceValue(func() *Measured {
	var m Measured
	if err := json.Unmarshal(measuredJSON, &m); err != nil {
		panic("plan: measured.json: " + err.Error()) // of our own making, and tested
	}
	return &m
})

// share is the share of the peak of an op that was measured, and of any other a cautious half.
func (m *Measured) share(op string) float64 {
	if s, ok := m.Share[op]; ok && s > 0 {
		return s
	}
	return 0.5
}

// attention is the rate of a row over that at 2048, between lengths measured by their logarithms.
func (m *Measured) attention(T float64, back bool) float64 {
	rate := func(a AttentionRate) float64 {
		if back {
			return a.Back
		}
		return a.Forward
	}
	all := m.Attention
	switch {
	case len(all) == 0:
		return 1
	case T <= float64(all[0].T):
		return rate(all[0]) * T / float64(all[0].T) // tiles that do not fill the card
	}
	for i := range len(all) - 1 {
		if lo, hi := float64(all[i].T), float64(all[i+1].T); T <= hi {
			x := math.Log(T/lo) / math.Log(hi/lo)
			return rate(all[i])*(1-x) + rate(all[i+1])*x
		}
	}
	return rate(all[len(all)-1])
}

// Accuracy is the median and the largest of the absolute errors of all runs, 0 where there are none.
func (m *Measured) Accuracy() (median, worst float64) {
	var errs []float64
	for _, r := range m.Runs {
		errs = append(errs, math.Abs(r.Error()))
	}
	if len(errs) == 0 {
		return 0, 0
	}
	median, _ = stats.Median(errs) // fails of none
	return median, slices.Max(errs)
}
