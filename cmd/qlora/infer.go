package main

import (
	"errors"
	"fmt"
	"math"

	"qlora/model/infer"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
)

// inferCmd is `qlora infer`.
type inferCmd struct {
	modelFlags
	blendFlags
	deviceFlags
	sampleFlags
	columnFlags
	LoadArgs  bool  `name:"load_args" group:"Model" default:"true" help:"Take model, template and system from the adapter's args.json where the flags leave them out."`
	MaxLength int   `name:"max_length" group:"Generation" help:"Tokens of prompt and answer together. By default 4096, or less if the model was made for less."`
	Stream    *bool `name:"stream" group:"Generation" help:"Show an answer as it grows. By default in a conversation, not for --val_dataset."`

	ValDataset       []string `name:"val_dataset" group:"Batch" sep:"none" placeholder:"DATA..." help:"Answer the last question of every row and write the answers to --result_path. Datasets are as qlora data --help describes them."`
	ValDatasetSample int      `name:"val_dataset_sample" group:"Batch" help:"Answer this many rows, from the first. By default all."`
	MaxBatchSize     int      `name:"max_batch_size" group:"Batch" default:"1" help:"Rows answered together. When one has its answer the next takes its place."`
	ResultPath       string   `name:"result_path" group:"Batch" placeholder:"FILE" help:"A .jsonl file of answers. By default infer_result/ of the adapter, or of the working folder, and the time."`
	Resume           bool     `name:"resume" group:"Batch" help:"Go on with the --result_path of a run that was interrupted, behind its last whole line. The answers are those that it would have given."`
}

// sampleFlags choose the next token, by the stages of transformers in their order.
type sampleFlags struct {
	MaxNewTokens      int      `name:"max_new_tokens" group:"Generation" help:"Tokens of an answer at most. By default until --max_length."`
	Temperature       *float64 `name:"temperature" group:"Generation" help:"0 takes the likeliest token every time. By default that of generation_config.json, or 0."`
	TopK              *int     `name:"top_k" group:"Generation" help:"Draw from this many likeliest tokens; 0 from all. Default likewise."`
	TopP              *float64 `name:"top_p" group:"Generation" help:"Draw from the likeliest tokens that together have this probability. Default likewise."`
	RepetitionPenalty *float64 `name:"repetition_penalty" group:"Generation" help:"Divides the logits of tokens that occurred. Default likewise."`
	StopWords         []string `name:"stop_words" group:"Generation" sep:"none" help:"Texts that end an answer and are no part of it, beside the template's own end."`
	Seed              uint32   `name:"seed" group:"Generation" default:"42" help:"Seed of the draws."`
}

func (inferCmd) Help() string {
	return `Without --val_dataset it is a conversation: a line is a question. When standard input is no terminal each line
is a question on its own turn of the conversation, and answers alone go to standard output.

` + chatHelp + `
Several adapters of one base lie in memory together, unmerged; what is used of them changes at once:
--adapter_weights at the start, /adapter in a conversation. The sum is exact, and what has the
weight 0 changes no bit. Ranks in use on one module may add up to ` + fmt.Sprint(lora.MaxRank) + `; beyond that, merge: qlora export.

Examples
  qlora infer --adapters output/v0-20250405-142300/checkpoint-10 --stream true --temperature 0 --max_new_tokens 2048
  echo 'Who are you?' | qlora infer --model MODEL --temperature 0
  qlora infer --adapters style=RUN1/checkpoint-9 facts=RUN2/checkpoint-9 --adapter_weights 0.7 0.3
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
		if id, ok := b.tok.ID(word); ok && b.tok.IsSpecial(id) { // its text is never shown: it ends by itself
			o.StopIDs = append(o.StopIDs, id)
		} else if word == "" {
			return o, errors.New("--stop_words: an empty text would end every answer before it begins")
		}
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

// engine is a model ready to answer.
type engine struct {
	*base
	backend   ops.Backend
	model     *qwen2.Model
	generator *infer.Generator

	blend   *lora.Blend // nil without adapters
	weights []float64   // of the adapters in use
}

// capacity is what a model is built for.
type capacity struct {
	sequences int  // answered together
	context   int  // tokens of each; 0: the default
	row       int  // tokens of a packed row, where more than prompts are run
	compare   bool // with the base
}

// load builds the model with the adapters, none of which is in use yet.
func (b *base) load(e *env, list []namedDir, d *deviceFlags, r capacity) (*engine, error) {
	limit, context := b.Config.MaxPositionEmbeddings, r.context
	switch {
	case context < 0 || limit > 0 && context > limit:
		return nil, usageError{fmt.Errorf("--max_length %d: must be from 1 to %d, which the model was made for", context, limit)}
	case context == 0 && limit > 0:
		context = min(defaultContext, limit)
	case context == 0:
		context = defaultContext
	}
	dtype, err := d.dtype(b)
	if err != nil {
		return nil, err
	}
	g := &engine{base: b}
	tokens := max(min(infer.PromptTokens, context), r.sequences, r.row)
	o := qwen2.Options{DType: dtype, Single: !d.DoubleQuant, MaxT: tokens, MaxS: tokens, MaxN: tokens, Sequences: r.sequences, Context: context, Compare: r.compare}
	if len(list) > 0 {
		all, err := loadAdapters(b, list, lora.Load)
		if err != nil {
			return nil, err
		}
		g.blend = lora.NewBlend(all)
		o.Adapter = g.blend
	}
	if g.backend, err = openBackend(e, *d); err != nil {
		return nil, err
	}
	if err := d.fit(e, g.backend, b.Model, &o); err != nil {
		return nil, errors.Join(err, g.backend.Close())
	}
	shown := newProgress(e)
	o.Progress = shown.loading
	g.model, err = qwen2.Build(g.backend, b.Model, o)
	shown.end()
	if err != nil {
		return nil, errors.Join(err, g.backend.Close())
	}
	g.generator = infer.New(g.backend, g.model, r.sequences, context)
	if g.blend != nil {
		if err := g.use(make([]float64, len(list))); err != nil {
			return nil, errors.Join(err, g.backend.Close())
		}
	}
	return g, nil
}

// use changes how much of each adapter is in use. On an error nothing changes.
func (g *engine) use(weights []float64) error {
	params, err := g.blend.Use(weights)
	if err != nil {
		return err
	}
	g.weights = weights
	g.generator.Reset()
	return g.model.SetParams(params)
}

func (c *inferCmd) Run(e *env) error {
	c.ignoreArgs = !c.LoadArgs
	if len(c.AdapterWeights) == 0 {
		c.newest(e)
	}
	list, err := c.restoreAll(e)
	if err != nil {
		return err
	}
	if err := c.deviceFlags.restore(e, &c.modelFlags); err != nil {
		return err
	}
	var weights []float64
	switch {
	case c.MaxBatchSize < 1 || c.ValDatasetSample < 0:
		return usageError{errors.New("--max_batch_size must be at least 1, and --val_dataset_sample positive")}
	case c.Resume && c.ResultPath == "":
		return usageError{errors.New("--resume true: say which file by --result_path")}
	case len(list) > 0:
		if weights, err = c.blendFlags.shares(list); err != nil {
			return err
		}
	case len(c.AdapterWeights) > 0:
		return usageError{errors.New("--adapter_weights: there are no --adapters that they could be of")}
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
	g, err := b.load(e, list, &c.deviceFlags, capacity{sequences: sequences, context: c.MaxLength})
	if err != nil {
		return err
	}
	defer g.backend.Close()
	if g.blend != nil {
		if err := g.use(weights); err != nil {
			return usageError{fmt.Errorf("--adapter_weights: %w", err)}
		}
		e.logf("adapters: %s", mixture(g.blend.Adapters, weights))
	}
	if len(c.ValDataset) > 0 {
		return c.batch(e, g, o)
	}
	stream := c.Stream == nil || *c.Stream
	return newChat(e, g, o, c.StopWords, stream).run()
}
