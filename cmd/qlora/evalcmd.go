package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"qlora/model/data"
	"qlora/model/eval"
	"qlora/model/infer"
)

// evalCmd is `qlora eval`.
type evalCmd struct {
	modelFlags
	randomFlags
	deviceFlags
	Dataset []string `name:"dataset" group:"Data" sep:"none" placeholder:"DATA..." help:"Rows with answers: datasets, as qlora data --help describes them."`
	rowFlags
	MaxNewTokens int  `name:"max_new_tokens" group:"Generation" default:"256" help:"Tokens of an answer at most."`
	MaxBatchSize int  `name:"max_batch_size" group:"Generation" default:"8" help:"Questions answered together."`
	Answers      bool `name:"answers" group:"Report" help:"Print every question with the answer wanted and the answer given."`
	JSON         bool `name:"json" group:"Report" help:"Print one JSON object: identity_accuracy, nll, perplexity, label_tokens, and the answers with --answers."`
}

func (evalCmd) Help() string {
	return `identity_accuracy is the share of questions that greedy search answers word for word as the row does;
nll the mean negative log-likelihood of the answers' tokens in nats, perplexity its exponential.

Examples
  qlora eval --model MODEL --dataset builtin:self-cognition
  qlora eval --adapters CHECKPOINT --dataset val.jsonl --json`
}

// evalResult is the object that --json prints.
type evalResult struct {
	IdentityAccuracy *float64        `json:"identity_accuracy,omitempty"` // nil of random tokens
	NLL              float64         `json:"nll"`                         // nats a label token
	Perplexity       float64         `json:"perplexity"`
	LabelTokens      int             `json:"label_tokens"`
	Answers          []eval.Answered `json:"answers,omitempty"`
}

func (c *evalCmd) Run(e *env) error {
	list, err := c.restoreAll(e)
	if err != nil {
		return err
	}
	switch {
	case len(c.Dataset) == 0:
		return usageError{errors.New("--dataset is missing: write `--dataset` and one or more files, or builtin:self-cognition")}
	case c.MaxBatchSize < 1 || c.MaxNewTokens < 1:
		return usageError{errors.New("--max_batch_size and --max_new_tokens must be at least 1")}
	}
	b, err := c.openBase(&c.modelFlags, c.Dataset...)
	if err != nil {
		return err
	}
	defer b.Close()
	samples, questions, err := c.read(e, b)
	if err != nil {
		return err
	}
	longest := 0
	for _, s := range samples {
		longest = max(longest, len(s.IDs))
	}
	g, err := b.load(e, list, &c.deviceFlags, c.MaxBatchSize, c.context(b, questions), longest)
	if err != nil {
		return err
	}
	defer g.backend.Close()
	if g.blend != nil {
		if err := g.use([]float64{1}); err != nil {
			return err
		}
	}
	result, err := c.measure(e.ctx, g, samples, questions)
	if err != nil {
		return err
	}
	return c.print(e, result)
}

// read finds the samples to measure and the questions to ask; of random tokens there are no questions.
func (c *evalCmd) read(e *env, b *base) (data.Samples, []question, error) {
	opt, err := c.rowFlags.options(b)
	if err != nil {
		return nil, nil, err
	}
	if random, ok, err := randomSamples(c.Dataset, b, opt, randomSeed); ok {
		return random, nil, err
	}
	samples, err := c.rowFlags.load(e, b, "dataset", c.Dataset)
	if err != nil {
		return nil, nil, err
	}
	if opt, err = c.columnFlags.reading(); err != nil {
		return nil, nil, err
	}
	questions, _, err := readQuestions(c.Dataset, 0, opt, b.chat) // load has reported the rows left out
	if err != nil {
		return nil, nil, fmt.Errorf("--dataset: %w", err)
	}
	return samples, questions, nil
}

// context is the room that the longest question and its answer need, as far as the model has it.
func (c *evalCmd) context(b *base, questions []question) int {
	n := 0
	for _, q := range questions {
		n = max(n, len(q.prompt))
	}
	return min(n+c.MaxNewTokens, b.Config.MaxPositionEmbeddings)
}

func (c *evalCmd) measure(ctx context.Context, g *engine, samples []data.Sample, questions []question) (evalResult, error) {
	loss, err := eval.Measure(ctx, g.backend, g.model, samples)
	if err != nil {
		return evalResult{}, err
	}
	result := evalResult{NLL: loss.NLL, Perplexity: loss.Perplexity, LabelTokens: loss.LabelTokens}
	if slices.ContainsFunc(c.Dataset, isRandom) {
		return result, nil
	}
	var asked []eval.Question
	for _, q := range questions {
		if q.want != nil {
			asked = append(asked, eval.Question{Text: q.text(), Prompt: q.prompt, Want: *q.want})
		}
	}
	if len(asked) == 0 {
		return result, errors.New("--dataset: no row brings an answer to compare with")
	}
	greedy := infer.Options{MaxNewTokens: c.MaxNewTokens, StopIDs: g.chat.StopIDs(), VocabLimit: g.tok.VocabSize()}
	result.Answers, err = eval.Answer(ctx, g.generator, g.sequences, asked, greedy, g.tok.DecodeSkipSpecial)
	accuracy := eval.Accuracy(result.Answers)
	result.IdentityAccuracy = &accuracy
	return result, err
}

func (c *evalCmd) print(e *env, r evalResult) error {
	if c.JSON {
		if !c.Answers {
			r.Answers = nil
		}
		return writeJSON(e, r)
	}
	if c.Answers {
		for _, a := range r.Answers {
			mark := " "
			if a.Exact {
				mark = "="
			}
			fmt.Fprintf(e.out, "? %s\n  wanted %s\n%s given  %s\n", a.Question, a.Want, mark, a.Got)
		}
	}
	if r.IdentityAccuracy != nil {
		fmt.Fprintf(e.out, "identity_accuracy %.4f of %d questions\n", *r.IdentityAccuracy, len(r.Answers))
	}
	_, err := fmt.Fprintf(e.out, "nll %.6f\nperplexity %.4f\nlabel_tokens %d\n", r.NLL, r.Perplexity, r.LabelTokens)
	return err
}
