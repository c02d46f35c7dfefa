package main

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"qlora/bench"
	"qlora/bench/measure"
	"qlora/model/data"
	"qlora/model/infer"
	"qlora/model/train"
	"qlora/model/weights"
)

// benchJobCmd is `qlora bench job`.
type benchJobCmd struct {
	benchDevice
	benchOutput
	Model   string   `name:"model" group:"Job" placeholder:"MODEL" help:"What is fine-tuned: a folder, .gguf file or hub id, as for sft. (bench weights writes one of random weights in any shape.)"`
	Dataset []string `name:"dataset" group:"Job" sep:"none" default:"builtin:self-cognition#50" help:"The rows: 50 about who the model is, as the article's."`
	Epochs  float64  `name:"num_train_epochs" group:"Job" default:"10" help:"Epochs, as the article's."`
	New     int      `name:"max_new_tokens" group:"Job" default:"64" help:"Tokens of each answer at the end."`
	Keep    string   `name:"output_dir" group:"Job" placeholder:"DIR" help:"Keep the adapter here. By default it is thrown away."`
}

func (benchJobCmd) Help() string {
	return `The article's job, by the code of sft and infer: read the model, tokenise 50 rows, train 10 epochs with rank 8 on all
linear layers and 16 samples a step, save the adapter, load it beside the base, and ask it the questions.
Each phase is timed once; the article's times, on an RTX 4090D, stand beside.

Examples
  qlora bench job --model Qwen/Qwen2.5-7B-Instruct
  qlora bench weights --model qwen2.5-7b --tokenizer testdata/tokenizer/qwen2.5 -o /tmp/random-7b
  qlora bench job --model /tmp/random-7b`
}

func (c *benchJobCmd) Run(e *env) error {
	if c.Model == "" {
		return usageError{errors.New("--model is missing: a folder, a .gguf file or a hub id; `qlora bench weights` writes a folder of random weights in any shape")}
	}
	if err := c.benchOutput.check(); err != nil {
		return err
	}
	dir := c.Keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "qlora-job-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	b, done, err := openBench(e, c.benchDevice, measure.Rule{Least: 10, Noise: 0.005, Most: 10, Time: time.Second})
	if err != nil {
		return err
	}
	defer done()
	j := &job{e: e, flags: c, dir: dir, backend: b.Backend.Name()}
	defer j.close()
	params := map[string]string{"model": filepath.Base(c.Model), "data": dataText(c.Dataset), "epochs": strconv.FormatFloat(c.Epochs, 'g', -1, 64)}
	f, err := b.Job(e.ctx, params, []bench.Phase{{Name: "tokenise", Run: j.tokenise}, {Name: "load", Run: j.load}, {Name: "train", Run: j.train}, {Name: "infer", Run: j.infer}})
	return c.keep(e, f, err)
}

// dataText names datasets without their folders: the count of one that has it.
func dataText(all []string) string {
	var names []string
	for _, d := range all {
		if _, count, ok := strings.Cut(d, "#"); ok && len(all) == 1 {
			return count
		}
		names = append(names, filepath.Base(d))
	}
	return strings.Join(names, ", ")
}

// job is the state that its phases hand on.
type job struct {
	e       *env
	flags   *benchJobCmd
	dir     string
	backend string

	sft  *sftCmd
	base *base
	run  *train.Run
	done func() // with the samples; nil before there are any
	last string // the checkpoint
}

// tokenise reads the tokenizer and the rows.
func (j *job) tokenise(context.Context) ([]bench.Part, error) {
	p, err := parse(slices.Concat([]string{"sft", "--model", j.flags.Model, "--dataset"}, j.flags.Dataset, []string{
		"--num_train_epochs", fmt.Sprint(j.flags.Epochs), "--output_dir", j.dir, "--add_version", "false", "--backend", j.backend, "--torch_dtype", "bfloat16",
		"--lora_rank", "8", "--lora_alpha", "32", "--target_modules", "all-linear", "--learning_rate", "1e-4", "--gradient_accumulation_steps", "16",
		"--warmup_ratio", "0.05", "--max_length", "2048", "--logging_steps", "5", "--save_strategy", "epoch", "--save_total_limit", "2", "--report_to", "none"}))
	if err != nil {
		return nil, err
	}
	j.sft = p.command.Selected().Target.Addr().Interface().(*sftCmd)
	j.sft.variant = j.flags.Variant
	j.sft.SaveStrategy = string(train.Steps) // at the end alone, which saves in any case
	j.sft.SaveSteps = 1 << 30
	if j.base, err = j.sft.open(j.e); err != nil {
		return nil, err
	}
	options, err := j.sft.options()
	if err != nil {
		return nil, err
	}
	var samples data.Source
	if samples, _, j.done, err = j.sft.load(j.e, j.base); err != nil {
		return nil, err
	}
	j.run = &train.Run{Samples: samples, Workers: j.sft.DataloaderNumWorkers, Options: options}
	if j.run.Args, err = argsJSON(p.command.Selected().Flags, j.base, &j.sft.modelFlags); err != nil {
		return nil, err
	}
	return nil, nil
}

// load brings the weights to the device.
func (j *job) load(context.Context) ([]bench.Part, error) {
	if err := j.sft.build(j.e, j.base, j.run); err != nil {
		return nil, err
	}
	var err error
	_, err = j.sft.folder(j.run)
	return nil, err
}

// train trains and saves.
func (j *job) train(ctx context.Context) ([]bench.Part, error) {
	begun := time.Now()
	end := begun
	tokens := 0
	j.run.Hooks = train.Hooks{Step: func(p train.Progress) { end = time.Now(); tokens += p.Tokens }}
	result, err := j.run.Start(ctx, "")
	if err != nil {
		return nil, err
	}
	j.last = result.Last
	saved := time.Now()
	backend := j.run.Backend
	j.run = nil
	return []bench.Part{{Name: "train", Seconds: end.Sub(begun).Seconds(), Tokens: tokens}, {Name: "save", Seconds: saved.Sub(end).Seconds()}}, backend.Close()
}

// infer loads the adapter beside the base, and asks it the questions of the rows, each once.
func (j *job) infer(ctx context.Context) ([]bench.Part, error) {
	begun := time.Now()
	g, err := j.base.load(j.e, []namedDir{{"trained", j.last}}, &j.sft.deviceFlags, capacity{sequences: 1})
	if err != nil {
		return nil, err
	}
	defer g.backend.Close()
	if err := g.use([]float64{1}); err != nil {
		return nil, err
	}
	loaded := time.Now()
	questions, _, err := readQuestions(j.flags.Dataset, 8, data.Options{}, j.base.chat)
	if err != nil {
		return nil, err
	}
	tokens := 0
	for _, q := range questions {
		answers, err := g.generator.Generate(ctx, [][]int32{q.prompt}, infer.Options{MaxNewTokens: j.flags.New, StopIDs: j.base.chat.StopIDs(), VocabLimit: j.base.tok.VocabSize()}, infer.Hooks{})
		if err != nil {
			return nil, err
		}
		tokens += len(answers[0].IDs)
	}
	return []bench.Part{{Name: "load again", Seconds: loaded.Sub(begun).Seconds()}, {Name: fmt.Sprintf("answer %d questions", len(questions)), Seconds: time.Since(loaded).Seconds(), Tokens: tokens}}, nil
}

func (j *job) close() {
	if j.done != nil {
		j.done()
	}
	if j.run != nil && j.run.Backend != nil {
		j.run.Backend.Close()
	}
	if j.base != nil {
		j.base.Close()
	}
}

// benchWeightsCmd is `qlora bench weights`.
type benchWeightsCmd struct {
	Model     string `name:"model" group:"Weights" required:"" placeholder:"SHAPE" help:"qwen2.5-0.5b to qwen2.5-32b."`
	Tokenizer string `name:"tokenizer" group:"Weights" placeholder:"DIR" help:"Copy tokenizer.json, tokenizer_config.json and generation_config.json from here; .gz is unpacked."`
	Output    string `name:"o" group:"Weights" required:"" placeholder:"DIR" help:"The folder to make."`
}

func (benchWeightsCmd) Help() string {
	return `Writes a model of random weights as a Hugging Face folder, always the same numbers: to time loading and whole jobs
without a real model's files, and to give other trainers the same weights. 7B takes 15.2 GB.

Examples
  qlora bench weights --model qwen2.5-7b --tokenizer testdata/tokenizer/qwen2.5 -o /tmp/random-7b`
}

func (c *benchWeightsCmd) Run(e *env) error {
	src, err := weights.NewRandom(c.Model, randomSeed)
	if err != nil {
		return usageError{fmt.Errorf("--model %s: %w", c.Model, err)}
	}
	if _, err := os.Lstat(c.Output); !errors.Is(err, fs.ErrNotExist) {
		return usageError{fmt.Errorf("-o %s is there already: choose another folder", c.Output)}
	}
	files, err := tokenizerFiles(c.Tokenizer)
	if err != nil {
		return err
	}
	shown := newProgress(e)
	begun := time.Now()
	err = bench.WriteModel(c.Output, src, files, shown.writing)
	shown.end()
	if err == nil {
		e.logf("weights: %s, in %.1f s", c.Output, time.Since(begun).Seconds())
	}
	return err
}

// tokenizerFiles are those that lie beside weights, from a folder: none where it has no name.
func tokenizerFiles(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	if dir == "" {
		return files, nil
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "generation_config.json"} {
		text, err := plainOrGzip(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == "generation_config.json":
			continue
		case err != nil:
			return nil, usageError{fmt.Errorf("--tokenizer: %w", err)}
		}
		files[name] = text
	}
	return files, nil
}

// plainOrGzip reads a file, or unpacks the one with .gz behind its name.
func plainOrGzip(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	packed, failed := os.Open(path + ".gz")
	if failed != nil {
		return nil, err
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// writing shows how much of a model is written.
func (p *progress) writing(done, total int64) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[Kwriting the weights: %d %%", 100*done/max(total, 1))
		p.open = true
	}
}
