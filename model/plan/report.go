package plan

import (
	"errors"
	"fmt"

	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/qwen2"
)

// Report is all that `qlora plan` says.
type Report struct {
	Model     string `json:"model"`
	Method    string `json:"method"`
	Length    int    `json:"length"`
	Samples   int    `json:"samples"` // of a packed row
	Card      string `json:"card"`
	CardTitle string `json:"card_title"`

	Budget    int64        `json:"budget_bytes"`   // for the process
	Context   int64        `json:"context_bytes"`  // of it, at most
	Block     int64        `json:"block_bytes"`    // and the run's one block
	Host      int64        `json:"host_bytes"`     // of the host's memory, pinned
	Rows      []TableRow   `json:"fullest_moment"` // the block by category
	Keeps     []Layers     `json:"layers"`         // what they keep for the backward
	Saving    qwen2.Saving `json:"keeps_less"`
	Fallbacks []Fallback   `json:"fallbacks,omitempty"`

	LongestPlain  int `json:"longest_row_nothing_made_again"` // tokens of a packed row
	LongestFrugal int `json:"longest_row"`

	Prediction Prediction `json:"prediction"`
}

// TableRow is a line of the table.
type TableRow struct {
	Category string `json:"category"`
	Bytes    int64  `json:"bytes"`
}

// Layers is a run of layers that keep the same.
type Layers struct {
	First int    `json:"first"`
	Last  int    `json:"last"`
	Kept  string `json:"kept"`
	Again string `json:"made_again,omitempty"`
	Where string `json:"where"`
}

// Prediction is the time of a step, and how far such predictions were off.
type Prediction struct {
	StepSeconds     float64          `json:"step_seconds"`
	TokensPerSecond float64          `json:"tokens_per_second"`
	BusSeconds      float64          `json:"waiting_for_the_bus_seconds"`
	Ops             map[string]*Work `json:"ops"`
	MeasuredOn      string           `json:"shares_of_peak_measured_on"`
	Runs            int              `json:"runs_compared"`
	MedianError     float64          `json:"median_error"`
	WorstError      float64          `json:"worst_error"`
	CardMeasured    bool             `json:"card_measured"` // this very card
}

// LayersOf groups the layers of a model by what they keep.
func LayersOf(s qwen2.Saving, n int) []Layers {
	of := func(l int) Layers {
		k := Layers{First: l, Last: l, Kept: "x, qkv, o, lse, x mid, gate, up", Where: "card"}
		if l < s.GateUp {
			k.Kept, k.Again = "x, qkv, o, lse, x mid", "gate, up"
		}
		if l < s.Whole {
			k.Kept, k.Again = "x", "qkv, o, lse, x mid, gate, up"
		}
		if l < s.Offload {
			k.Where = "host"
		}
		return k
	}
	var all []Layers
	for l := range n {
		k := of(l)
		if i := len(all) - 1; i >= 0 && all[i].Kept == k.Kept && all[i].Where == k.Where {
			all[i].Last = l
			continue
		}
		all = append(all, k)
	}
	return all
}

// NewReport plans a run of rows of so many samples of a length each. budget is for the process. A run that does not fit has a
// report too, beside its *NoFit: of what it would take with everything kept.
func NewReport(r Request, length, samples int, budget int64) (*Report, error) {
	r.Budget = max(budget-Context, 1)
	rep := &Report{Length: length, Samples: samples, Card: r.Card.Name, CardTitle: r.Card.Title, Budget: budget, Context: Context}
	choice, refused := Choose(r)
	var no *NoFit
	if errors.As(refused, &no) {
		all := r
		all.Budget = 0
		var err error
		if choice, err = Choose(all); err != nil {
			return nil, err
		}
	} else if refused != nil {
		return nil, refused
	}
	rep.memory(choice, r.Src.Config.NumHiddenLayers)
	var err error
	rep.LongestPlain, rep.LongestFrugal, err = Longest(r, func(T int) ops.HostBatch { return rowsOf(length, T) })
	if err != nil {
		return nil, err
	}
	rep.predict(r, choice)
	return rep, refused
}

// rowsOf is a row of T tokens in samples of a length.
func rowsOf(length, T int) ops.HostBatch {
	h := Row(T, 1, 1)
	h.SegStart = nil
	for at := 0; at < T; at += length {
		h.SegStart = append(h.SegStart, int32(at))
	}
	h.SegStart = append(h.SegStart, int32(T))
	return h
}

func (rep *Report) memory(c *Choice, layers int) {
	rep.Block, rep.Host, rep.Saving, rep.Fallbacks = c.Plan.Bytes, c.Plan.HostBytes, c.Saving, c.Fallbacks
	rep.Keeps = LayersOf(c.Saving, layers)
	var sum int64
	for i, bytes := range c.Plan.Fullest() {
		if bytes > 0 {
			rep.Rows = append(rep.Rows, TableRow{memory.Category(i).String(), bytes})
			sum += bytes
		}
	}
	if gaps := c.Plan.Bytes - sum; gaps > 0 {
		rep.Rows = append(rep.Rows, TableRow{"between buffers", gaps})
	}
}

func (rep *Report) predict(r Request, c *Choice) {
	measured := c.Meter.Measured
	p := Prediction{StepSeconds: c.Meter.Seconds, TokensPerSecond: float64(len(r.Batch.IDs)) / c.Meter.Seconds, BusSeconds: c.Meter.Waited,
		Ops: c.Meter.Ops, MeasuredOn: measured.Card, Runs: len(measured.Runs)}
	p.MedianError, p.WorstError = measured.Accuracy()
	for _, run := range measured.Runs {
		p.CardMeasured = p.CardMeasured || run.Card == r.Card.Name
	}
	rep.Prediction = p
}

// Words say how far a prediction can be trusted.
func (p Prediction) Words() string {
	text := fmt.Sprintf("a prediction: a roofline at the shares of the peak that kernels reached on the %s. Of %d measured runs there it is off by %.1f %% in the median, %.1f %% at most",
		p.MeasuredOn, p.Runs, 100*p.MedianError, 100*p.WorstError)
	if !p.CardMeasured {
		text += ". This card has never been run"
	}
	return text
}

// Article is the memory table of the article that 24 GB fine-tuning guides repeat, in decimal GB and in its order, for
// Qwen2.5-7B in 16 bits and LoRA of rank 8.
var Article = []float64{13.8, 2.1, 0.24, 1.8, 2.6, 1.2}

// ArticleSum is what it adds up to.
const ArticleSum = 21.74

// ArticleFaults are where its arithmetic cannot be right, whatever its rows are called.
func ArticleFaults() []string {
	const (
		parameters = 7_615_616_512 // of Qwen2.5-7B
		adapter    = 20_185_088    // of rank 8 on all linear layers
	)
	return []string{
		fmt.Sprintf("13.8 cannot be the weights: %.3f billion numbers of 2 bytes are %.2f GB (%.2f GiB)", parameters/1e9, 2*parameters/1e9, 2*parameters/float64(1<<30)),
		fmt.Sprintf("0.24 is the adapter and AdamW's two moments in float32: %.1f million numbers x 12 bytes = %.2f GB; their gradient is %.2f GB more", adapter/1e6, 12*adapter/1e9, 4*adapter/1e9),
		"so no row of 1.8 or 2.6 can be gradients or optimizer state, which frozen weights have none of",
	}
}
