// Package eval measures a model on a dataset: the loss of its label tokens, and how many of its answers are
// the reference, word for word.
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

// Loss is the mean negative log-likelihood of a dataset's label tokens.
type Loss struct {
	NLL         float64 // nats a label token
	Perplexity  float64 // exp(NLL)
	TokenAcc    float64 // share of label tokens with the largest logit
	LabelTokens int
}

// Measure runs the samples without gradient, packed into rows as large as the model has room for.
func Measure(ctx context.Context, b ops.Backend, m *qwen2.Model, samples []data.Sample) (Loss, error) {
	rows, err := data.Pack(samples, m.Batch.MaxT, data.Pad{})
	if err != nil {
		return Loss{}, err
	}
	var nll, hits float64
	labels := 0
	for _, row := range rows {
		if err := ctx.Err(); err != nil {
			return Loss{}, err
		}
		err := m.Load(ops.HostBatch{IDs: row.IDs, Pos: row.Pos, Sample: row.Sample, SegStart: row.SegStart, Rows: row.Rows, Targets: row.Targets})
		if err != nil {
			return Loss{}, err
		}
		m.Forward()
		m.Loss()
		n := len(row.Rows)
		each, err := ops.ReadF32(b, m.NLL.Rows(0, n))
		if err != nil {
			return Loss{}, err
		}
		hit, err := ops.ReadF32(b, m.Hit.Rows(0, n))
		if err != nil {
			return Loss{}, err
		}
		if err := b.Sync(); err != nil {
			return Loss{}, err
		}
		for i := range each {
			nll += float64(each[i])
			hits += float64(hit[i])
		}
		labels += n
	}
	if labels == 0 {
		return Loss{}, fmt.Errorf("eval: the dataset has no label tokens")
	}
	mean := nll / float64(labels)
	return Loss{NLL: mean, Perplexity: math.Exp(mean), TokenAcc: hits / float64(labels), LabelTokens: labels}, nil
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

// Answer asks every question, as many at a time as the generator has sequences. An answer is exact when it
// is the wanted one but for white space around it.
func Answer(ctx context.Context, g *infer.Generator, sequences int, questions []Question, o infer.Options, decode func([]int32) string) ([]Answered, error) {
	var all []Answered
	for from := 0; from < len(questions); from += sequences {
		some := questions[from:min(from+sequences, len(questions))]
		prompts := make([][]int32, len(some))
		for i, q := range some {
			prompts[i] = q.Prompt
		}
		answers, err := g.Generate(ctx, prompts, o, infer.Hooks{})
		if err != nil {
			return all, err
		}
		for i, a := range answers {
			got := strings.TrimSpace(decode(a.IDs))
			all = append(all, Answered{some[i].Text, some[i].Want, got, got == strings.TrimSpace(some[i].Want)})
		}
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
