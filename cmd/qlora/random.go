package main

import (
	"errors"
	"fmt"
	"strings"

	"qlora/model/data"
	"qlora/model/weights"
)

// This file is what `qlora sft` and `qlora eval` make up to be measured by: random weights and random tokens.

type randomFlags struct {
	RandomWeights bool `name:"random_weights" group:"Model" help:"Random weights in the shape that --model names (qwen2.5-0.5b, 1.5b, 3b, 7b, 14b or 32b), made where they are needed: to measure speed and memory without a model's files. Always the same numbers. The data must be random too: --dataset random:2048x12."`
}

// randomSeed is that of random weights, and of random tokens where no flag says another.
const randomSeed = 42

// openBase opens the model, or makes random weights. Those have no tokenizer, and no language: all the data must be
// random tokens.
func (f *randomFlags) openBase(e *env, m *modelFlags, datasets ...string) (*base, error) {
	if !f.RandomWeights {
		return m.open(e)
	}
	for _, name := range datasets {
		if !isRandom(name) {
			return nil, usageError{fmt.Errorf("--random_weights: such a model has no tokenizer to read %s with: say --dataset random:2048x12 (rows of 2048 tokens x 12 rows)", name)}
		}
	}
	model, err := weights.NewRandom(m.Model, randomSeed)
	if err != nil {
		return nil, usageError{fmt.Errorf("--model %s --random_weights: %w", m.Model, err)}
	}
	return &base{Model: model, chat: &data.Chat{}}, nil
}

func isRandom(dataset string) bool { return strings.HasPrefix(dataset, data.RandomPrefix) }

// randomSamples makes the rows of a dataset of random tokens; ok is false where the data are of another kind.
func randomSamples(datasets []string, b *base, opt data.Options, seed uint64) (samples data.Samples, ok bool, err error) {
	for _, name := range datasets {
		if !isRandom(name) {
			continue
		}
		rows, err := data.ParseRandomRows(name)
		switch {
		case err != nil:
			return nil, true, err
		case len(datasets) > 1:
			return nil, true, fmt.Errorf("%s stands alone: leave out the other datasets", name)
		case opt.SplitRatio > 0:
			return nil, true, errors.New("random tokens are not split: leave out --split_dataset_ratio")
		case rows.Length > opt.MaxLength:
			return nil, true, fmt.Errorf("%s: rows are longer than the %d tokens of --max_length, or of the model", name, opt.MaxLength)
		}
		return rows.Samples(b.Config.VocabSize, seed), true, nil
	}
	return nil, false, nil
}
