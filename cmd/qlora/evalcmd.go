package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"qlora/internal/atomicfile"
	"qlora/model/data"
	"qlora/model/eval"
	"qlora/model/infer"
	"qlora/model/lora"
)

// evalCmd is `qlora eval`.
type evalCmd struct {
	modelFlags
	blendFlags
	randomFlags
	deviceFlags
	WithBase bool     `name:"with_base" group:"Model" help:"Measure the base too, beside the adapters. Several adapters without --adapter_weights, --html and --markdown imply it."`
	Dataset  []string `name:"dataset" group:"Data" sep:"none" placeholder:"DATA..." help:"Rows with answers, asked and measured: datasets, as qlora data --help describes them."`
	General  []string `name:"general" group:"Data" sep:"none" placeholder:"DATA..." help:"Rows that training should not have touched: the perplexity of their answers without and with the adapters, and the KL divergence from the base. builtin:general is a small such set."`
	Choices  string   `name:"choices" group:"Data" placeholder:"FILE" help:"A .jsonl file of questions with several answers: the likeliest is picked. A line is {\"question\": \"...\", \"choices\": [\"...\", \"...\"], \"answer\": 0}, answer the index of the right one. builtin:choices is a small such set."`
	rowFlags
	MaxNewTokens int    `name:"max_new_tokens" group:"Generation" default:"256" help:"Tokens of an answer at most."`
	MaxBatchSize int    `name:"max_batch_size" group:"Generation" default:"8" help:"Questions answered together."`
	Answers      bool   `name:"answers" group:"Report" help:"Print every question with the answer wanted and the answer given."`
	JSON         bool   `name:"json" group:"Report" help:"Print one JSON object: identity_accuracy, nll, perplexity, label_tokens, general, choices, and the answers with --answers; of several models, one of them each in the list models."`
	Markdown     string `name:"markdown" group:"Report" placeholder:"FILE" help:"Write the report as Markdown. The file must not exist."`
	HTML         string `name:"html" group:"Report" placeholder:"FILE" help:"Write the report as one HTML page, answers beside each other and differences marked. The file must not exist."`
}

func (evalCmd) Help() string {
	return `identity_accuracy is the share of questions that greedy search answers word for word as the row does;
nll the mean negative log-likelihood of the answers' tokens in nats, perplexity its exponential.
general.kl is the mean over its answers' tokens of KL(base || tuned): what training moved that it was
not about. Of choices the likeliest is picked, accuracy_norm by likelihood a byte. Several adapters are
measured one after the other on one model in memory.

Examples
  qlora eval --model MODEL --dataset builtin:self-cognition
  qlora eval --adapters CHECKPOINT --dataset val.jsonl --json
  qlora eval --adapters CHECKPOINT --dataset val.jsonl --general builtin:general --choices builtin:choices --with_base
  qlora eval --adapters pure=RUN1/checkpoint-9 mixed=RUN2/checkpoint-9 --dataset val.jsonl --html page.html`
}

// measured is one of the models of a report.
type measured struct {
	name    string
	weights []float64 // of the adapters; nil where there are none
}

// tasks are the data of an evaluation.
type tasks struct {
	samples, general data.Samples
	questions        []eval.Question
	choices          []eval.Choice
	choiceSamples    []data.Sample
	prompts          int // tokens of the longest question
}

func (c *evalCmd) Run(e *env) error {
	list, err := c.restoreAll(e)
	if err != nil {
		return err
	}
	if err := c.checkFlags(list); err != nil {
		return err
	}
	b, err := c.openBase(e, &c.modelFlags, slices.Concat(c.Dataset, c.General)...)
	if err != nil {
		return err
	}
	defer b.Close()
	models, err := c.models(b, list)
	if err != nil {
		return err
	}
	t, err := c.read(e, b)
	if err != nil {
		return err
	}
	longest := 0
	for _, s := range slices.Concat(t.samples, t.general, t.choiceSamples) {
		longest = max(longest, len(s.IDs))
	}
	g, err := b.load(e, list, &c.deviceFlags, capacity{sequences: c.MaxBatchSize, context: c.context(b, t), row: longest, compare: len(t.general) > 0})
	if err != nil {
		return err
	}
	defer g.backend.Close()
	report := &eval.Report{Model: lora.PortableName(b.HubID, c.Model), Dataset: strings.Join(c.Dataset, ", "), General: strings.Join(c.General, ", "), Choices: c.Choices}
	for _, m := range models {
		if m.weights != nil {
			if err := g.use(m.weights); err != nil {
				return usageError{fmt.Errorf("--adapter_weights: %w", err)}
			}
		}
		one, err := c.measure(e, g, m, t)
		if err != nil {
			return err
		}
		report.Models = append(report.Models, one)
	}
	return c.write(e, report)
}

func (c *evalCmd) checkFlags(list []namedDir) error {
	switch {
	case len(c.Dataset)+len(c.General) == 0 && c.Choices == "":
		return usageError{errors.New("--dataset is missing: write `--dataset` and one or more files, or builtin:self-cognition; or measure --general or --choices alone")}
	case c.MaxBatchSize < 1 || c.MaxNewTokens < 1:
		return usageError{errors.New("--max_batch_size and --max_new_tokens must be at least 1")}
	case len(c.AdapterWeights) > 0 && len(list) == 0:
		return usageError{errors.New("--adapter_weights: there are no --adapters that they could be of")}
	}
	for _, path := range []string{c.Markdown, c.HTML} {
		if path != "" && exists(path) {
			return usageError{fmt.Errorf("%s is there already: choose another name, or remove it", path)}
		}
	}
	return nil
}

// models are what is measured, the base first: each adapter alone, or the sum that weights ask for.
func (c *evalCmd) models(b *base, list []namedDir) ([]measured, error) {
	if len(list) == 0 {
		return []measured{{name: lora.PortableName(b.HubID, c.Model)}}, nil
	}
	base := measured{"base", make([]float64, len(list))}
	withBase := c.WithBase || c.HTML != "" || c.Markdown != "" || len(list) > 1 && len(c.AdapterWeights) == 0
	var all []measured
	if withBase {
		all = append(all, base)
	}
	if len(list) == 1 || len(c.AdapterWeights) > 0 {
		weights, err := c.blendFlags.shares(list)
		if err != nil {
			return nil, err
		}
		name := list[0].name
		if len(c.AdapterWeights) > 0 {
			var parts []string
			for i, a := range list {
				parts = append(parts, fmt.Sprintf("%s=%g", a.name, weights[i]))
			}
			name = strings.Join(parts, " ")
		}
		return append(all, measured{name, weights}), nil
	}
	for i, a := range list {
		weights := make([]float64, len(list))
		weights[i] = 1
		all = append(all, measured{a.name, weights})
	}
	return all, nil
}

// read finds the samples to measure and the questions to ask; of random tokens there are no questions.
func (c *evalCmd) read(e *env, b *base) (*tasks, error) {
	t := &tasks{}
	var err error
	if t.samples, err = c.samples(e, b, "dataset", c.Dataset); err != nil {
		return nil, err
	}
	if t.general, err = c.samples(e, b, "general", c.General); err != nil {
		return nil, err
	}
	if c.Choices != "" {
		if t.choices, err = eval.ReadChoices(c.Choices); err != nil {
			return nil, usageError{fmt.Errorf("--choices: %w", err)}
		}
		if t.choiceSamples, err = eval.ChoiceSamples(t.choices, b.chat); err != nil {
			return nil, fmt.Errorf("--choices %s: %w", c.Choices, err)
		}
	}
	if len(c.Dataset) == 0 || slices.ContainsFunc(c.Dataset, isRandom) {
		return t, nil
	}
	opt, err := c.columnFlags.reading()
	if err != nil {
		return nil, err
	}
	questions, _, err := readQuestions(c.Dataset, 0, opt, b.chat) // load has reported the rows left out
	if err != nil {
		return nil, fmt.Errorf("--dataset: %w", err)
	}
	for _, q := range questions {
		if q.want != nil {
			t.questions = append(t.questions, eval.Question{Text: q.text(), Prompt: q.prompt, Want: *q.want})
			t.prompts = max(t.prompts, len(q.prompt))
		}
	}
	if len(t.questions) == 0 {
		return nil, errors.New("--dataset: no row brings an answer to compare with")
	}
	return t, nil
}

// samples reads the datasets of a flag.
func (c *evalCmd) samples(e *env, b *base, flag string, datasets []string) (data.Samples, error) {
	if len(datasets) == 0 {
		return nil, nil
	}
	opt, err := c.rowFlags.options(b)
	if err != nil {
		return nil, err
	}
	if random, ok, err := randomSamples(datasets, b, opt, randomSeed); ok {
		return random, err
	}
	return c.rowFlags.load(e, b, flag, datasets)
}

// context is the room that the longest question and its answer need, as far as the model has it.
func (c *evalCmd) context(b *base, t *tasks) int {
	return min(t.prompts+c.MaxNewTokens, b.Config.MaxPositionEmbeddings)
}

// measure runs all tasks on the model as it is in use.
func (c *evalCmd) measure(e *env, g *engine, m measured, t *tasks) (eval.Measured, error) {
	out := eval.Measured{Name: m.name}
	r := &eval.Runner{Backend: g.backend, Model: g.model}
	for _, task := range []struct {
		on   bool
		what string
		run  func() error
	}{
		{len(t.samples) > 0, "tokens of --dataset", func() error {
			loss, err := r.Measure(e.ctx, t.samples)
			out.NLL, out.Perplexity, out.LabelTokens = loss.NLL, loss.Perplexity, loss.LabelTokens
			return err
		}},
		{len(t.general) > 0, "tokens of --general", func() error {
			f, err := r.Compare(e.ctx, t.general)
			out.General = &f
			return err
		}},
		{len(t.choices) > 0, "tokens of --choices", func() error {
			chosen, err := r.Choose(e.ctx, t.choices, t.choiceSamples)
			out.Choices = &chosen
			return err
		}},
		{len(t.questions) > 0, "answers", func() error {
			greedy := infer.Options{MaxNewTokens: c.MaxNewTokens, StopIDs: g.chat.StopIDs(), VocabLimit: g.tok.VocabSize()}
			answers, err := eval.Answer(e.ctx, g.generator, t.questions, greedy, g.tok.DecodeSkipSpecial, func(n int) { r.Progress(n, len(t.questions)) })
			accuracy := eval.Accuracy(answers)
			out.Answers, out.IdentityAccuracy = answers, &accuracy
			return err
		}},
	} {
		if !task.on {
			continue
		}
		shown := newCounter(e, m.name+": "+task.what, 0, 1, rows)
		r.Progress = func(done, total int) { shown.total = int64(total); shown.at(int64(done)) }
		err := task.run()
		shown.end()
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// write prints the report, and writes its pages.
func (c *evalCmd) write(e *env, r *eval.Report) error {
	for _, page := range []struct {
		path  string
		write func(io.Writer) error
	}{{c.Markdown, r.Markdown}, {c.HTML, r.HTML}} {
		if page.path == "" {
			continue
		}
		if err := atomicfile.WriteFile(page.path, page.write); err != nil {
			return err
		}
		e.logf("report: %s", page.path)
	}
	if !c.Answers {
		for i := range r.Models {
			r.Models[i].Answers = nil
			if chosen := r.Models[i].Choices; chosen != nil {
				chosen.Picked = nil
			}
		}
	}
	if c.JSON {
		if len(r.Models) > 1 {
			return writeJSON(e, r)
		}
		r.Models[0].Name = ""
		return writeJSON(e, r.Models[0])
	}
	for _, m := range r.Models {
		if len(r.Models) > 1 {
			fmt.Fprintf(e.out, "%s\n", m.Name)
		}
		printMeasured(e, m)
	}
	return nil
}

// printMeasured prints the figures of one model, a line each.
func printMeasured(e *env, m eval.Measured) {
	for _, a := range m.Answers {
		mark := " "
		if a.Exact {
			mark = "="
		}
		fmt.Fprintf(e.out, "? %s\n  wanted %s\n%s given  %s\n", a.Question, a.Want, mark, a.Got)
	}
	if m.IdentityAccuracy != nil {
		fmt.Fprintf(e.out, "identity_accuracy %.4f\n", *m.IdentityAccuracy)
	}
	if m.LabelTokens > 0 {
		fmt.Fprintf(e.out, "nll %.6f\nperplexity %.4f\nlabel_tokens %d\n", m.NLL, m.Perplexity, m.LabelTokens)
	}
	if f := m.General; f != nil {
		fmt.Fprintf(e.out, "general_kl %.6f\ngeneral_perplexity %.4f\ngeneral_base_perplexity %.4f\ngeneral_label_tokens %d\n", f.KL, f.Perplexity, f.BasePerplexity, f.LabelTokens)
	}
	if c := m.Choices; c != nil {
		fmt.Fprintf(e.out, "choice_accuracy %.4f\nchoice_accuracy_norm %.4f\nchoice_questions %d\n", c.Accuracy, c.AccuracyNorm, c.Questions)
	}
}
