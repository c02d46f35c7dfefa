package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"qlora/model/data"
	"qlora/model/infer"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
)

// inferCmd is `qlora infer`.
type inferCmd struct {
	modelFlags
	deviceFlags
	sampleFlags
	columnFlags
	LoadArgs  bool  `name:"load_args" group:"Model" default:"true" help:"Take model, template and system from the adapter's args.json where the flags leave them out."`
	MaxLength int   `name:"max_length" group:"Generation" help:"Tokens of prompt and answer together. By default 4096, or less if the model was made for less."`
	Stream    *bool `name:"stream" group:"Generation" help:"Show an answer as it grows. By default in a conversation, not for --val_dataset."`

	ValDataset       []string `name:"val_dataset" group:"Batch" sep:"none" placeholder:"DATA..." help:"Answer the last question of every row and write the answers to --result_path. Datasets are as qlora data --help describes them."`
	ValDatasetSample int      `name:"val_dataset_sample" group:"Batch" help:"Answer this many rows, from the first. By default all."`
	MaxBatchSize     int      `name:"max_batch_size" group:"Batch" default:"1" help:"Rows answered together."`
	ResultPath       string   `name:"result_path" group:"Batch" placeholder:"FILE" help:"A .jsonl file of answers. By default infer_result/ of the adapter, or of the working folder, and the time."`
}

// sampleFlags choose the next token, by the stages of transformers in their order.
type sampleFlags struct {
	MaxNewTokens      int      `name:"max_new_tokens" group:"Generation" help:"Tokens of an answer at most. By default until --max_length."`
	Temperature       *float64 `name:"temperature" group:"Generation" help:"0 takes the likeliest token every time. By default that of generation_config.json, or 0."`
	TopK              *int     `name:"top_k" group:"Generation" help:"Draw from this many likeliest tokens; 0 from all. Default likewise."`
	TopP              *float64 `name:"top_p" group:"Generation" help:"Draw from the likeliest tokens that together have this probability. Default likewise."`
	RepetitionPenalty *float64 `name:"repetition_penalty" group:"Generation" help:"Divides the logits of tokens that occurred. Default likewise."`
	StopWords         []string `name:"stop_words" group:"Generation" sep:"none" help:"Control tokens, beside the template's, that end an answer."`
	Seed              uint32   `name:"seed" group:"Generation" default:"42" help:"Seed of the draws."`
}

func (inferCmd) Help() string {
	return `Without --val_dataset it is a conversation: a line is a question; exit or quit ends it, clear
forgets the conversation, reset-system asks for a new system prompt, multi-line takes questions of
several lines that end with #, and single-line ends that. When standard input is no terminal each
line is a question on its own turn of the conversation, and answers alone go to standard output.

Examples
  qlora infer --adapters output/v0-20250405-142300/checkpoint-10 --stream true --temperature 0 --max_new_tokens 2048
  echo 'Who are you?' | qlora infer --model MODEL --temperature 0
  qlora infer --adapters CHECKPOINT --val_dataset questions.jsonl --max_batch_size 8 --result_path answers.jsonl`
}

// options are the settings of a generation: the flags, else the model's generation_config.json, else
// greedy search.
func (f *sampleFlags) options(b *base) (infer.Options, error) {
	o := infer.Options{MaxNewTokens: f.MaxNewTokens, Seed: f.Seed, StopIDs: b.chat.StopIDs(), VocabLimit: b.tok.VocabSize()}
	if g := b.Generation; g != nil {
		o.TopK, o.TopP, o.RepetitionPenalty = g.TopK, g.TopP, g.RepetitionPenalty
		if g.DoSample {
			o.Temperature = g.Temperature
		}
	}
	set(&o.Temperature, f.Temperature)
	set(&o.TopK, f.TopK)
	set(&o.TopP, f.TopP)
	set(&o.RepetitionPenalty, f.RepetitionPenalty)
	for _, word := range f.StopWords {
		id, ok := b.tok.ID(word)
		if !ok {
			return o, fmt.Errorf("--stop_words %q: not a token of the vocabulary", word)
		}
		o.StopIDs = append(o.StopIDs, id)
	}
	switch {
	case !(o.Temperature >= 0) || math.IsInf(o.Temperature, 0):
		return o, fmt.Errorf("--temperature %v: must not be negative", o.Temperature)
	case o.TopK < 0:
		return o, fmt.Errorf("--top_k %d: must not be negative; 0 is no limit", o.TopK)
	case !(o.TopP >= 0 && o.TopP <= 1):
		return o, fmt.Errorf("--top_p %v: must be from 0 to 1; 1 is no limit", o.TopP)
	case !(o.RepetitionPenalty >= 0) || math.IsInf(o.RepetitionPenalty, 0):
		return o, fmt.Errorf("--repetition_penalty %v: must be positive; 1 is none", o.RepetitionPenalty)
	case o.MaxNewTokens < 0:
		return o, fmt.Errorf("--max_new_tokens %d: must be positive", o.MaxNewTokens)
	}
	return o, nil
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

// defaultContext is the room of a sequence where --max_length is not given: the cache is
// made whole at the start.
const defaultContext = 4096

// promptTokens is how many tokens of prompts are run together.
const promptTokens = 512

// engine is a model ready to answer.
type engine struct {
	*base
	backend   ops.Backend
	model     *qwen2.Model
	generator *infer.Generator
	set       *lora.Set // nil without an adapter
	sequences int
}

// load builds the model, with the adapter if there is one, for this many sequences together of so many
// tokens (0: the default). rowTokens is the room of a packed row where more than prompts are run.
func (b *base) load(e *env, m *modelFlags, d *deviceFlags, sequences, context, rowTokens int) (*engine, error) {
	limit := b.Config.MaxPositionEmbeddings
	switch {
	case context < 0 || limit > 0 && context > limit:
		return nil, usageError{fmt.Errorf("--max_length %d: must be from 1 to %d, which the model was made for", context, limit)}
	case context == 0 && limit > 0:
		context = min(defaultContext, limit)
	case context == 0:
		context = defaultContext
	}
	if err := d.restore(e, m); err != nil {
		return nil, err
	}
	dtype, err := d.dtype(b)
	if err != nil {
		return nil, err
	}
	g := &engine{base: b, sequences: sequences}
	room := max(min(promptTokens, context), sequences, rowTokens)
	o := qwen2.Options{DType: dtype, Single: !d.DoubleQuant, MaxT: room, MaxS: room, MaxN: room, Sequences: sequences, Context: context}
	var params []float32
	if dir := m.adapterDir(); dir != "" {
		if g.set, params, err = loadAdapter(b, dir); err != nil {
			return nil, err
		}
		g.set.SetDropout(false)
		o.Adapter = g.set
	}
	if g.backend, err = openBackend(e, *d); err != nil {
		return nil, err
	}
	if err := d.fit(e, g.backend, b.Model, &o); err != nil {
		return nil, err
	}
	shown := newProgress(e)
	o.Progress = shown.loading
	g.model, err = qwen2.Build(g.backend, b.Model, o)
	shown.end()
	if err != nil {
		return nil, err
	}
	if g.set != nil {
		if err := ops.WriteF32(g.backend, g.model.Params, params); err != nil {
			return nil, err
		}
		g.model.ParamsChanged()
	}
	g.generator = infer.New(g.backend, g.model, sequences, context)
	return g, nil
}

func (c *inferCmd) Run(e *env) error {
	c.ignoreArgs = !c.LoadArgs
	if err := c.restore(e); err != nil {
		return err
	}
	if c.MaxBatchSize < 1 || c.ValDatasetSample < 0 {
		return usageError{errors.New("--max_batch_size must be at least 1, and --val_dataset_sample positive")}
	}
	b, err := c.open(e)
	if err != nil {
		return err
	}
	defer b.Close()
	o, err := c.options(b)
	if err != nil {
		return usageError{err}
	}
	sequences := 1
	if len(c.ValDataset) > 0 {
		sequences = c.MaxBatchSize
	}
	g, err := b.load(e, &c.modelFlags, &c.deviceFlags, sequences, c.MaxLength, 0)
	if err != nil {
		return err
	}
	defer g.backend.Close()
	if len(c.ValDataset) > 0 {
		return c.batch(e, g, o)
	}
	stream := c.Stream == nil || *c.Stream
	return newChat(e, g, o, stream).run()
}

// answerLine is a line of the results, as ms-swift writes it.
type answerLine struct {
	Response string        `json:"response"`
	Labels   *string       `json:"labels"` // the row's own answer, null where it has none
	LogProbs any           `json:"logprobs"`
	Messages []messageLine `json:"messages"`
}

type messageLine struct {
	Role    data.Role `json:"role"`
	Content string    `json:"content"`
}

// batch answers the rows of --val_dataset.
func (c *inferCmd) batch(e *env, g *engine, o infer.Options) error {
	opt, err := c.columnFlags.reading()
	if err != nil {
		return err
	}
	questions, dropped, err := readQuestions(c.ValDataset, c.ValDatasetSample, opt, g.chat)
	for _, fault := range dropped {
		e.logf("dropped: %v", fault)
	}
	if err != nil {
		return fmt.Errorf("--val_dataset: %w", err)
	}
	marked := 0
	for _, q := range questions {
		if q.marked {
			marked++
		}
	}
	c.notice(e, "val_dataset", marked)
	file, err := c.resultFile()
	if err != nil {
		return err
	}
	defer file.Close()
	e.logf("results: %s", file.Name())
	lines := json.NewEncoder(file)
	lines.SetEscapeHTML(false)
	var echo io.Writer = io.Discard
	if c.Stream != nil && *c.Stream {
		echo = e.out
	}
	for from := 0; from < len(questions); from += g.sequences {
		some := questions[from:min(from+g.sequences, len(questions))]
		prompts := make([][]int32, len(some))
		for i, q := range some {
			prompts[i] = q.prompt
		}
		answers, err := g.generator.Generate(e.ctx, prompts, o, nil)
		if err != nil {
			return errors.Join(fmt.Errorf("%s, row %d: %w", some[0].file, some[0].row, err), file.Close())
		}
		for i, a := range answers {
			line := some[i].line(g.tok.DecodeSkipSpecial(a.IDs))
			if err := lines.Encode(line); err != nil {
				return fmt.Errorf("--result_path %s: %w", file.Name(), err)
			}
			fmt.Fprintf(echo, "%s\n", line.Response)
		}
		e.logf("%d of %d rows", min(from+g.sequences, len(questions)), len(questions))
	}
	return file.Close()
}

// resultFile makes the file of answers. It never replaces one that is there.
func (c *inferCmd) resultFile() (*os.File, error) {
	path := c.ResultPath
	if path == "" {
		path = filepath.Join(c.adapterDir(), "infer_result", time.Now().Format("20060102-150405")+".jsonl")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, os.ErrExist) {
		return nil, usageError{fmt.Errorf("--result_path %s is there already: choose another", path)}
	}
	return file, err
}
