package main

import (
	"errors"
	"fmt"
	"strings"

	"qlora/model/data"
	"qlora/model/weights"
)

// This file is what `qlora sft` makes up to be measured by: random weights and random tokens.

// openBase opens the model, or makes random weights. Those have no tokenizer, and no language.
func (c *sftCmd) openBase() (*base, error) {
	if !c.RandomWeights {
		return c.open()
	}
	if c.randomRows() == "" || len(c.ValDataset) > 0 {
		return nil, usageError{errors.New("--random_weights: such a model has no tokenizer: say --dataset random:2048x12 (rows of tokens x rows), and no --val_dataset")}
	}
	m, err := weights.NewRandom(c.Model, randomSeed)
	if err != nil {
		return nil, usageError{fmt.Errorf("--model %s --random_weights: %w", c.Model, err)}
	}
	return &base{Model: m, chat: &data.Chat{}}, nil
}

// randomSeed is that of random weights: a run is told by its shape alone.
const randomSeed = 42

// randomRows is the dataset of random tokens, "" where the data are of another kind.
func (c *sftCmd) randomRows() string {
	for _, name := range c.Dataset {
		if strings.HasPrefix(name, data.RandomPrefix) {
			return name
		}
	}
	return ""
}

// randomSamples makes the rows of a dataset of random tokens.
func (c *sftCmd) randomSamples(b *base, opt data.Options) (data.Samples, error) {
	rows, err := data.ParseRandomRows(c.randomRows())
	switch {
	case err != nil:
		return nil, err
	case len(c.Dataset) > 1:
		return nil, fmt.Errorf("%s stands alone: leave out the other datasets", c.randomRows())
	case c.LazyTokenize || opt.SplitRatio > 0:
		return nil, fmt.Errorf("%s: leave out --lazy_tokenize and --split_dataset_ratio", c.randomRows())
	case rows.Length > opt.MaxLength:
		return nil, fmt.Errorf("%s: rows are longer than the %d tokens of --max_length, or of the model", c.randomRows(), opt.MaxLength)
	}
	return rows.Samples(b.Config.VocabSize, c.DataSeed), nil
}
