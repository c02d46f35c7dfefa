package eval

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"

	"qlora/internal/strictjson"
	"qlora/model/data"
)

// Choice is a question with several answers, one of which is right.
type Choice struct {
	Question string   `json:"question"`
	Choices  []string `json:"choices"`
	Answer   int      `json:"answer"` // index of the right one, from 0
	Row      int      `json:"-"`      // line of the file
}

// BuiltinChoices names the set that is part of the program: 60 questions that a child can answer, of our own writing.
const BuiltinChoices = "builtin:choices"

//go:embed choices.jsonl
var builtinChoices []byte

// maxChoices bounds the size of a file of choices; maxChoiceLine that of one of its lines.
const maxChoices, maxChoiceLine = 64 << 20, 1 << 20

// ReadChoices reads a .jsonl file, an object with question, choices and answer a line, or the set of the program.
func ReadChoices(path string) ([]Choice, error) {
	text := builtinChoices
	if path != BuiltinChoices {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if text, err = io.ReadAll(io.LimitReader(f, maxChoices+1)); err != nil {
			return nil, err
		}
		if len(text) > maxChoices {
			return nil, fmt.Errorf("%s: larger than %d MiB", path, maxChoices>>20)
		}
	}
	var all []Choice
	row := 0
	for line := range bytes.Lines(text) {
		row++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		c := Choice{Answer: -1, Row: row}
		if err := strictjson.Unmarshal(line, maxChoiceLine, &c); err != nil {
			return nil, fmt.Errorf("%s, row %d: %w", path, row, err)
		}
		switch {
		case c.Question == "":
			return nil, fmt.Errorf("%s, row %d: question is missing", path, row)
		case len(c.Choices) < 2:
			return nil, fmt.Errorf("%s, row %d: %d choices: there must be two or more", path, row, len(c.Choices))
		case c.Answer < 0 || c.Answer >= len(c.Choices):
			return nil, fmt.Errorf("%s, row %d: answer must be the index of the right choice, from 0 to %d", path, row, len(c.Choices)-1)
		}
		for i, text := range c.Choices {
			if text == "" {
				return nil, fmt.Errorf("%s, row %d: choice %d is empty", path, row, i)
			}
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no questions", path)
	}
	return all, nil
}

// Chosen is how a model did at choices. A choice is the assistant's whole turn, and its likelihood that of its text and of
// the end of the turn.
type Chosen struct {
	Accuracy     float64 `json:"accuracy"`      // the right choice is the likeliest
	AccuracyNorm float64 `json:"accuracy_norm"` // the likeliest a byte of text, which long choices do not suffer by
	Chance       float64 `json:"chance"`        // of one who guesses
	Questions    int     `json:"questions"`
	Picked       []int   `json:"picked,omitempty"` // by likelihood, of each question
}

// ChoiceSamples writes each choice of each question as a sample, in order.
func ChoiceSamples(all []Choice, chat *data.Chat) ([]data.Sample, error) {
	var samples []data.Sample
	for _, c := range all {
		for _, text := range c.Choices {
			ids, labels, err := chat.Encode(data.Conversation{Messages: []data.Message{{Role: data.User, Content: c.Question}, {Role: data.Assistant, Content: text}}})
			if err != nil {
				return nil, fmt.Errorf("row %d: %w", c.Row, err)
			}
			samples = append(samples, data.Sample{IDs: ids, Labels: labels, File: "choices", Row: c.Row})
		}
	}
	return samples, nil
}

// Choose finds the likeliest choice of each question; samples are those of ChoiceSamples.
func (r *Runner) Choose(ctx context.Context, all []Choice, samples []data.Sample) (Chosen, error) {
	nll := make([]float64, len(samples))
	err := r.rows(ctx, samples, func(row data.Row) error {
		r.Model.Forward()
		r.Model.Loss()
		each, err := r.read(r.Model.NLL)
		for i, v := range each {
			nll[row.Sample[row.Rows[i]]] += float64(v)
		}
		return err
	})
	if err != nil {
		return Chosen{}, err
	}
	c := Chosen{Questions: len(all)}
	right, rightNorm, at := 0, 0, 0
	for _, q := range all {
		best, bestNorm := 0, 0
		norm := func(i int) float64 { return nll[at+i] / float64(len(q.Choices[i])) }
		for i := range q.Choices {
			if nll[at+i] < nll[at+best] {
				best = i
			}
			if norm(i) < norm(bestNorm) {
				bestNorm = i
			}
		}
		c.Picked = append(c.Picked, best)
		if best == q.Answer {
			right++
		}
		if bestNorm == q.Answer {
			rightNorm++
		}
		c.Chance += 1 / float64(len(q.Choices)) / float64(len(all))
		at += len(q.Choices)
	}
	c.Accuracy, c.AccuracyNorm = float64(right)/float64(len(all)), float64(rightNorm)/float64(len(all))
	return c, nil
}
