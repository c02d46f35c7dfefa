// Package eval measures a model: the loss of a dataset's label tokens, how many of its answers are the reference word
// for word, how far an adapter moved it from its base on what it should not have touched, and which of several answers
// it finds likeliest. Reports put several models beside each other, as JSON, Markdown and one HTML page.
package eval

import (
	"context"
	"fmt"
	"math"
	"strings"

	"qlora/model/data"
	"qlora/model/infer"
	"qlora/model/ops"
	"qlora/model/qwen2"
)

// Runner runs packed rows through a model.
type Runner struct {
	Backend  ops.Backend
	Model    *qwen2.Model
	Progress func(done, total int) // tokens; may be nil
}

// Loss is the mean negative log-likelihood of a dataset's label tokens.
type Loss struct {
	NLL         float64 // nats a label token
	Perplexity  float64 // exp(NLL)
	TokenAcc    float64 // share of label tokens with the largest logit
	LabelTokens int
}

// rows packs samples into rows as large as the model has room for, and calls run for each after it was loaded.
func (r *Runner) rows(ctx context.Context, samples []data.Sample, run func(row data.Row) error) error {
	rows, err := data.Pack(samples, r.Model.Batch.MaxT, data.Pad{})
	if err != nil {
		return err
	}
	done, total := 0, 0
	for _, s := range samples {
		total += len(s.IDs)
	}
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(row.Rows) > 0 {
			err := r.Model.Load(ops.HostBatch{IDs: row.IDs, Pos: row.Pos, Sample: row.Sample, SegStart: row.SegStart, Rows: row.Rows, Targets: row.Targets})
			if err != nil {
				return err
			}
			if err := run(row); err != nil {
				return err
			}
			if err := r.Backend.Sync(); err != nil {
				return err
			}
		}
		if done += len(row.IDs); r.Progress != nil {
			r.Progress(done, total)
		}
	}
	return nil
}

// read returns what an op wrote for the label rows.
func (r *Runner) read(t ops.Tensor) ([]float32, error) {
	return ops.ReadF32(r.Backend, t.Rows(0, r.Model.Batch.N))
}

// sum adds float32 values in float64, in order.
func sum(values []float32) (s float64) {
	for _, v := range values {
		s += float64(v)
	}
	return s
}

// Measure runs the samples without gradient.
func (r *Runner) Measure(ctx context.Context, samples []data.Sample) (Loss, error) {
	var nll, hits float64
	labels := 0
	err := r.rows(ctx, samples, func(row data.Row) error {
		r.Model.Forward()
		r.Model.Loss()
		each, err := r.read(r.Model.NLL)
		if err != nil {
			return err
		}
		hit, err := r.read(r.Model.Hit)
		nll, hits, labels = nll+sum(each), hits+sum(hit), labels+len(each)
		return err
	})
	if err != nil {
		return Loss{}, err
	}
	if labels == 0 {
		return Loss{}, fmt.Errorf("eval: the dataset has no label tokens")
	}
	mean := nll / float64(labels)
	return Loss{NLL: mean, Perplexity: math.Exp(mean), TokenAcc: hits / float64(labels), LabelTokens: labels}, nil
}

// Fidelity says how far an adapter moved a model from its base, on a dataset's label tokens.
type Fidelity struct {
	KL               float64 `json:"kl"` // mean of KL(base ‖ tuned), nats a label token
	NLL              float64 `json:"nll"`
	BaseNLL          float64 `json:"base_nll"`
	Perplexity       float64 `json:"perplexity"`
	BasePerplexity   float64 `json:"base_perplexity"`
	PerplexityChange float64 `json:"perplexity_change"` // tuned over base, less 1
	LabelTokens      int     `json:"label_tokens"`
}

// Compare runs the samples without the adapter and with it. The model must have been built to compare.
func (r *Runner) Compare(ctx context.Context, samples []data.Sample) (Fidelity, error) {
	var f Fidelity
	err := r.rows(ctx, samples, func(row data.Row) error {
		m := r.Model
		m.ForwardBase()
		m.LossBase()
		base, err := r.read(m.NLL)
		if err != nil {
			return err
		}
		m.Forward()
		m.Loss()
		tuned, err := r.read(m.NLL)
		if err != nil {
			return err
		}
		m.KL()
		kl, err := r.read(m.Divergence)
		f.KL, f.NLL, f.BaseNLL, f.LabelTokens = f.KL+sum(kl), f.NLL+sum(tuned), f.BaseNLL+sum(base), f.LabelTokens+len(kl)
		return err
	})
	if err != nil {
		return Fidelity{}, err
	}
	if f.LabelTokens == 0 {
		return Fidelity{}, fmt.Errorf("eval: the dataset has no label tokens")
	}
	n := float64(f.LabelTokens)
	f.KL, f.NLL, f.BaseNLL = f.KL/n, f.NLL/n, f.BaseNLL/n
	f.Perplexity, f.BasePerplexity = math.Exp(f.NLL), math.Exp(f.BaseNLL)
	f.PerplexityChange = math.Exp(f.NLL-f.BaseNLL) - 1
	return f, nil
}

// Question is a prompt and the answer wanted.
type Question struct {
	Text   string // as a person reads it
	Prompt []int32
	Want   string
}

// Answered is a question with the model's answer.
type Answered struct {
	Question string `json:"question"`
	Want     string `json:"want"`
	Got      string `json:"got"`
	Exact    bool   `json:"exact"`
}

// Answer asks every question. An answer is exact when it is the wanted one but for white space around it. done, which may
// be nil, is told how many have their answers.
func Answer(ctx context.Context, g *infer.Generator, questions []Question, o infer.Options, decode func([]int32) string, done func(n int)) ([]Answered, error) {
	prompts := make([][]int32, len(questions))
	for i, q := range questions {
		prompts[i] = q.Prompt
	}
	n := 0
	answers, err := g.Generate(ctx, prompts, o, infer.Hooks{Done: func(int, infer.Answer) error {
		if n++; done != nil {
			done(n)
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	all := make([]Answered, len(questions))
	for i, a := range answers {
		got := strings.TrimSpace(decode(a.IDs))
		all[i] = Answered{questions[i].Text, questions[i].Want, got, got == strings.TrimSpace(questions[i].Want)}
	}
	return all, nil
}

// Accuracy is the share of exact answers.
func Accuracy(all []Answered) float64 {
	exact := 0
	for _, a := range all {
		if a.Exact {
			exact++
		}
	}
	return float64(exact) / float64(max(len(all), 1))
}
