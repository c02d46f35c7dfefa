package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/train"
	"qlora/model/weights"
)

// Training is a training run to be measured: a model, an adapter, and the shape of a step.
type Training struct {
	Name     string // of the model, for the rows
	Source   *weights.Model
	DType    ops.DType
	Adapter  lora.Config
	Tokens   int     // of a row
	Segments int     // samples packed into a row
	Rows     int     // rows of a step
	Labels   float64 // share of the tokens that are trained on
	Budget   int64   // bytes the process may hold on the device; 0: what there is
}

// check says what is wrong with the shape.
func (t Training) check() error {
	switch {
	case t.Tokens < 2 || t.Segments < 1 || t.Rows < 1:
		return errors.New("a step needs rows of at least 2 tokens and 1 sample")
	case t.Tokens%t.Segments != 0 || t.Tokens/t.Segments < 2:
		return fmt.Errorf("%d tokens do not make %d samples of one length, of at least 2 tokens", t.Tokens, t.Segments)
	case !(t.Labels > 0 && t.Labels <= 1):
		return fmt.Errorf("a share of %v label tokens: it is above 0 and at most 1", t.Labels)
	case t.Source.Config.MaxPositionEmbeddings > 0 && t.Tokens/t.Segments > t.Source.Config.MaxPositionEmbeddings:
		return fmt.Errorf("samples of %d tokens: the model was made for %d", t.Tokens/t.Segments, t.Source.Config.MaxPositionEmbeddings)
	}
	return nil
}

// method is how the weights are stored.
func (t Training) method() string {
	if t.Source != nil && t.Source.Quantized {
		return methods[ops.NF4]
	}
	return methods[t.DType]
}

var methods = map[ops.DType]string{ops.BF16: "bf16", ops.F32: "f32", ops.NF4: "nf4"}

// params set the run apart from others.
func (t Training) params() map[string]string {
	p := map[string]string{"model": t.Name, "method": t.method(), "rank": strconv.Itoa(t.Adapter.R), "targets": strings.Join(t.Adapter.Targets, ","),
		"dropout": strconv.FormatFloat(t.Adapter.Dropout, 'g', -1, 64), "tokens": strconv.Itoa(t.Tokens), "samples": strconv.Itoa(t.Segments),
		"rows": strconv.Itoa(t.Rows), "labels": strconv.FormatFloat(t.Labels, 'g', -1, 64)}
	if t.Budget > 0 {
		p["budget"] = fmt.Sprintf("%.4g GiB", gib(t.Budget))
	}
	return p
}

// WithParams is the training that a row's parameters describe, on the model of t.
func (t Training) WithParams(p map[string]string) (Training, error) {
	var err error
	number := func(name string, into any) {
		text := p[name]
		var failed error
		switch into := into.(type) {
		case *int:
			*into, failed = strconv.Atoi(text)
		case *float64:
			*into, failed = strconv.ParseFloat(text, 64)
		}
		if failed != nil && err == nil {
			err = fmt.Errorf("parameter %s=%q of a step is no number", name, text)
		}
	}
	number("rank", &t.Adapter.R)
	number("dropout", &t.Adapter.Dropout)
	number("tokens", &t.Tokens)
	number("samples", &t.Segments)
	number("rows", &t.Rows)
	number("labels", &t.Labels)
	t.Adapter.Alpha, t.Adapter.Targets = float64(4*t.Adapter.R), strings.Split(p["targets"], ",")
	for d, name := range methods {
		if name == p["method"] {
			t.DType = d
			return t, err
		}
	}
	return t, fmt.Errorf("a step by method %q cannot be run here", p["method"])
}

// trainer is a run in memory.
type trainer struct {
	Training
	run     *train.Run
	samples data.Samples
	step    int
}

// rate is a learning rate that changes the adapter and leaves the loss finite.
const rate = 1e-4

// pool is how many different steps there are data for.
const pool = 4

// seed is that of random tokens and of the adapter.
const seed = 42

// build makes the model, with an adapter that starts as sft's does, on a backend. how says what it keeps less of, and
// whether its memory is watched.
func (t Training) build(b ops.Backend, how qwen2.Options, progress func(done, total int64)) (*trainer, error) {
	set, err := lora.New(t.Source.Config, t.Adapter)
	if err != nil {
		return nil, err
	}
	o := t.options(set)
	o.Saving, o.Watch, o.Progress = how.Saving, how.Watch, progress
	m, err := qwen2.Build(b, t.Source, o)
	if err != nil {
		return nil, err
	}
	if err := ops.WriteF32(b, m.Params, set.Init(seed)); err != nil {
		return nil, err
	}
	m.ParamsChanged()
	for _, zero := range []ops.Tensor{m.Moment1, m.Moment2} {
		b.Zero(zero)
	}
	rows := data.RandomRows{Length: t.Tokens / t.Segments, Rows: pool * t.Rows * t.Segments, Labels: t.Labels}
	tr := &trainer{Training: t, samples: rows.Samples(t.Source.Config.VocabSize, seed)}
	tr.run = &train.Run{Backend: b, Model: m, Set: set, Options: train.Options{Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, MaxGradNorm: 1, LRRatio: 1, Seed: seed}}
	return tr, b.Sync()
}

// next runs one optimizer step.
func (t *trainer) next(ctx context.Context) error {
	n := t.Rows * t.Segments
	at := t.step % pool * n
	t.step++
	return t.run.Step(ctx, t.step, t.samples[at:at+n], rate)
}

// tokens and labels of a step.
func (t *trainer) tokens() (tokens, labels int) {
	n := t.Rows * t.Segments
	return t.Rows * t.Tokens, data.LabelTokens(t.samples[:n])
}

func gib(bytes int64) float64 { return float64(bytes) / (1 << 30) }
