package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"qlora/bench"
	"qlora/bench/measure"
	"qlora/bench/report"
	"qlora/model/lora"
	"qlora/model/weights"
)

// quickCmd is `qlora bench quick`.
type quickCmd struct {
	benchDevice
	benchModel
	Tokens int `name:"tokens" group:"Step" help:"Tokens of the step's row. By default 2048 on a card, 64 on a processor."`
}

// benchModel says what is run. A shape has random weights.
type benchModel struct {
	Model       string   `name:"model" group:"Model" placeholder:"MODEL" help:"A shape, qwen2.5-0.5b to qwen2.5-32b, with random weights made where they are needed; or a folder, .gguf file or hub id, as for sft. By default qwen2.5-7b on a card, qwen2.5-0.5b on a processor."`
	TorchDType  string   `name:"torch_dtype" group:"Model" default:"bfloat16" placeholder:"NAME" help:"Storage of the frozen weights: bfloat16 or float32."`
	QuantMethod string   `name:"quant_method" group:"Model" placeholder:"NAME" help:"bnb: the linear layers of the base in bitsandbytes' NF4, quantised while they are loaded."`
	QuantBits   int      `name:"quant_bits" group:"Model" help:"4, with --quant_method bnb."`
	Rank        int      `name:"lora_rank" group:"Model" default:"8" help:"Rank of the adapter."`
	Dropout     float64  `name:"lora_dropout" group:"Model" default:"0" help:"Its dropout."`
	Targets     []string `name:"target_modules" group:"Model" sep:"none" default:"all-linear" help:"Modules it adapts."`
}

// open opens the model; name is what rows call it.
func (m *benchModel) open(backend string) (src *weights.Model, name string, err error) {
	if m.Model == "" {
		m.Model = map[bool]string{true: "qwen2.5-7b", false: "qwen2.5-0.5b"}[backend == "cuda"]
	}
	if name := strings.ToLower(m.Model); slices.Contains(weights.Presets(), name) {
		src, err := weights.NewRandom(name, randomSeed)
		return src, name, err
	}
	if src, err = weights.Open(m.Model); err != nil {
		return nil, "", usageError{fmt.Errorf("--model %s: no shape of that name (%s), and no model: %w", m.Model, strings.Join(weights.Presets(), ", "), err)}
	}
	return src, filepath.Base(m.Model), nil
}

// training is one on a model, with the adapter of the flags.
func (m *benchModel) training(src *weights.Model, name string) (bench.Training, error) {
	t := bench.Training{Name: name, Source: src, Segments: 1, Rows: 1, Labels: 1, Adapter: m.adapter()}
	var err error
	four := memoryFlags{QuantMethod: m.QuantMethod, QuantBits: m.QuantBits, QuantType: "nf4", DoubleQuant: true}
	t.DType, err = (&deviceFlags{TorchDType: m.TorchDType, memoryFlags: four}).dtype(&base{Model: src})
	return t, err
}

// store sets the flags that a method stands for.
func (m *benchModel) store(method string) error {
	m.TorchDType, m.QuantMethod, m.QuantBits = "bfloat16", "", 0
	switch method {
	case "bf16":
	case "f32":
		m.TorchDType = "float32"
	case "nf4":
		m.QuantMethod, m.QuantBits = "bnb", 4
	default:
		return fmt.Errorf("%s: choose bf16, nf4 or f32", method)
	}
	return nil
}

func (m *benchModel) adapter() lora.Config {
	return lora.Config{R: m.Rank, Alpha: float64(4 * m.Rank), Dropout: m.Dropout, Targets: m.Targets, Init: lora.InitKaiming}
}

func (quickCmd) Help() string {
	return `Measures what the card does at most (copy, read, tensor cores), the five kernels a training step
spends most of its time in, checked before they are timed, and one step of a 7B model with random
weights, and prints it all. Nothing is written.

Examples
  qlora bench quick
  qlora bench quick --model qwen2.5-1.5b`
}

func (c *quickCmd) Run(e *env) error {
	b, done, err := openBench(e, c.benchDevice, measure.Rule{Least: 10, Noise: 0.005, Most: 400, Time: time.Second})
	if err != nil {
		return err
	}
	defer done()
	src, name, err := c.open(b.Backend.Name())
	if err != nil {
		return err
	}
	defer src.Close()
	o := bench.QuickOptions{Kernels: bench.QuickKernels, Progress: newProgress(e).loading}
	if o.Training, err = c.training(src, name); err != nil {
		return err
	}
	o.Training.Tokens = c.Tokens
	b.Suite.Narrow = 64
	if b.Backend.Name() == "cpu" {
		o.Small, o.Kernels = true, []string{`^Linear/SmolLM2 T`, `^LinearBack/SmolLM2 T`, `^Attention/SmolLM2 T`, `^AttentionBack/SmolLM2 T`, `^RMSNormBack/SmolLM2 T`}
	}
	if c.Tokens == 0 {
		o.Training.Tokens = map[bool]int{true: 2048, false: 64}[b.Backend.Name() == "cuda"]
	}
	f, err := b.Quick(e.ctx, o)
	if f != nil {
		err = errors.Join(err, report.Print(e.out, f, false))
	}
	return cmpFailed(err, bench.Failed(f))
}

// cmpFailed is the error of a run, or else that some of its rows failed a check.
func cmpFailed(err error, failed []string) error {
	if err == nil && len(failed) > 0 {
		return fmt.Errorf("%d rows have no time, the first %s: %w", len(failed), failed[0], errCheckFailed)
	}
	return err
}

// How long a row may take where no flag says: kernels are many, and steps long.
const (
	kernelTime = 4 * time.Second
	stepTime   = 20 * time.Second
)

// benchKernelsCmd is `qlora bench kernels`.
type benchKernelsCmd struct {
	benchDevice
	benchRule
	benchOutput
	Filter string   `name:"filter" group:"Cases" placeholder:"REGEXP" help:"Only cases whose name matches, such as '^Linear/' or 'T2048 S1'."`
	Shapes string   `name:"shapes" group:"Cases" placeholder:"NAME" help:"7b: those of Qwen2.5-7B; small: those the oracle checks. By default 7b on a card, small on a processor."`
	Cache  []string `name:"cache" group:"Cases" sep:"," default:"cold,hot" help:"cold: operands in no cache, as in a step; hot: calls back to back."`
	Method string   `name:"method" group:"Cases" default:"bf16" placeholder:"NAME" help:"bf16; or nf4: products alone, which dequantise their weight first, as in every step of QLoRA."`
	Check  string   `name:"check" group:"Cases" default:"small" placeholder:"NAME" help:"What is held to the float64 oracle before anything is timed: small cases of each op, or full, the very shapes too, which takes minutes to hours."`
	Roofs  bool     `name:"roofs" group:"Cases" default:"true" help:"Measure first what the device does at most."`
	List   bool     `name:"list" group:"Cases" help:"Print the names of the cases, with their FLOPs and bytes, and measure nothing."`
}

func (benchKernelsCmd) Help() string {
	return `The cases are those of the conformance tests. Each op is held to the oracle on small shapes first, and
every timed shape to itself: two calls to the bit, finite numbers, nothing written outside. What does
not hold is not timed, and the exit status is 1.

A time is the median of at least --min_samples, taken until its 95 % interval is narrow or a cap ends it.
Clocks, power and heat are read in the background; samples taken while the card throttles for heat or
its power supply are void, and taken again. "of roof" is the larger of the rate of FLOPs and of bytes over
what our own probes reach here. "x library" compares with cuBLAS and cuDNN, opened if they are there,
sample by sample in turns; - where they are not.

Examples
  qlora bench kernels
  qlora bench kernels --filter '^(Linear|LinearBack)/' --cache hot
  qlora bench kernels --variant sm_80 --out sm80.json
  qlora bench kernels --method nf4
  qlora bench kernels --format gobench --results '' | benchstat -`
}

func (c *benchKernelsCmd) Run(e *env) error {
	filter, err := pattern(c.Filter)
	if err != nil {
		return err
	}
	o := bench.KernelOptions{Filter: filter, Cold: slices.Contains(c.Cache, "cold"), Hot: slices.Contains(c.Cache, "hot"), NF4: c.Method == "nf4", Full: c.Check == "full", Variant: c.Variant, Roofs: c.Roofs}
	switch {
	case !o.Cold && !o.Hot:
		return usageError{fmt.Errorf("--cache %s: choose cold, hot or both", strings.Join(c.Cache, ","))}
	case c.Method != "bf16" && c.Method != "nf4":
		return usageError{fmt.Errorf("--method %s: choose bf16 or nf4", c.Method)}
	case c.Check != "small" && c.Check != "full":
		return usageError{fmt.Errorf("--check %s: choose small or full", c.Check)}
	case c.Shapes != "" && c.Shapes != "small" && c.Shapes != "7b":
		return usageError{fmt.Errorf("--shapes %s: choose 7b or small", c.Shapes)}
	}
	if err := c.benchOutput.check(); err != nil {
		return err
	}
	rule, err := c.rule(kernelTime)
	if err != nil {
		return err
	}
	b, done, err := openBench(e, c.benchDevice, rule)
	if err != nil {
		return err
	}
	defer done()
	o.Small = c.Shapes == "small" || c.Shapes == "" && b.Backend.Name() == "cpu"
	if c.List {
		return c.list(e, b, o)
	}
	f, err := b.Kernels(e.ctx, o)
	if f != nil && len(f.Rows) == 0 {
		return err
	}
	return cmpFailed(c.keep(e, f, err), bench.Failed(f))
}

func (c *benchKernelsCmd) list(e *env, b *bench.Bench, o bench.KernelOptions) error {
	t := newTable(e, "case", "GFLOP", "MB")
	for _, k := range b.Cases(o) {
		if err := t.Append(k.Name, strconv.FormatFloat(k.FLOPs/1e9, 'g', 4, 64), strconv.FormatFloat(k.Bytes/1e6, 'g', 4, 64)); err != nil {
			return err
		}
	}
	return t.Render()
}

// benchStepCmd is `qlora bench step`.
type benchStepCmd struct {
	benchDevice
	benchModel
	benchRule
	benchOutput
	Tokens    []int         `name:"tokens" group:"Step" help:"Tokens of a row, one measurement each. By default 2048 on a card, 64 on a processor."`
	Samples   int           `name:"samples" group:"Step" default:"1" help:"Samples packed into a row."`
	Rows      int           `name:"rows" group:"Step" default:"1" help:"Rows of an optimizer step."`
	Labels    float64       `name:"labels" group:"Step" default:"1" help:"Share of the tokens that are trained on."`
	Budget    string        `name:"vram_budget" group:"Step" placeholder:"SIZE" help:"What the process may hold, to be as on a card of that size: 23GiB is what one of 24 GB really offers. The run keeps less to stay within it, as that of sft does."`
	Ops       bool          `name:"ops" group:"Step" default:"true" help:"Also where the time goes, op by op, over some steps more."`
	Memory    bool          `name:"memory" group:"Step" help:"Also how far each category of the memory is written, by a step on memory filled with a pattern."`
	Sustained time.Duration `name:"sustained" group:"Step" placeholder:"TIME" help:"Go on for so long, 10m say, and keep track of clock, power and heat."`
	Roofs     bool          `name:"roofs" group:"Step" default:"true" help:"Measure first what the device does at most, for MFU and shares of the roof."`
}

func (benchStepCmd) Help() string {
	return `A step is what sft does: forward, loss, backward, gradient norm, AdamW, on random tokens; packing on the
host included, tokenising not. Tokens/s counts all tokens, label tokens/s those that are trained on. MFU
is the FLOPs that cannot be done without, over what the tensor cores do in our probe here, and beside it
over the datasheet. Joules come from the card's energy meter.

Examples
  qlora bench step --model qwen2.5-7b
  qlora bench step --model qwen2.5-14b --quant_method bnb --quant_bits 4 --tokens 2048 4096 --vram_budget 23GiB
  qlora bench step --model qwen2.5-7b --tokens 1024 --samples 16
  qlora bench step --sustained 10m
  qlora bench step --model ./Qwen2.5-0.5B-Instruct --backend cpu --tokens 64`
}

func (c *benchStepCmd) Run(e *env) error {
	if err := c.benchOutput.check(); err != nil {
		return err
	}
	rule, err := c.rule(stepTime)
	if err != nil {
		return err
	}
	budget := int64(0)
	if c.Budget != "" {
		if budget, err = parseSize(c.Budget); err != nil {
			return usageError{fmt.Errorf("--vram_budget: %w", err)}
		}
	}
	b, done, err := openBench(e, c.benchDevice, rule)
	if err != nil {
		return err
	}
	defer done()
	src, name, err := c.open(b.Backend.Name())
	if err != nil {
		return err
	}
	defer src.Close()
	shown := newProgress(e)
	o := bench.StepOptions{Ops: c.Ops, Memory: c.Memory, Sustained: c.Sustained, Roofs: c.Roofs, Progress: func(done, total int64) {
		if shown.loading(done, total); done == total {
			shown.end()
		}
	}}
	for _, tokens := range lengths(c.Tokens, b.Backend.Name()) {
		t, err := c.training(src, name)
		if err != nil {
			return err
		}
		t.Tokens, t.Segments, t.Rows, t.Labels, t.Budget = tokens, c.Samples, c.Rows, c.Labels, budget
		o.Trainings = append(o.Trainings, t)
	}
	f, err := b.Steps(e.ctx, o)
	return c.keep(e, f, err)
}

// lengths are the rows' tokens that the flag gives, or a device's own.
func lengths(given []int, backend string) []int {
	switch {
	case len(given) > 0:
		return given
	case backend == "cuda":
		return []int{2048}
	}
	return []int{64}
}

// benchDecodeCmd is `qlora bench decode`.
type benchDecodeCmd struct {
	benchDevice
	benchModel
	benchRule
	benchOutput
	Sequences []int `name:"sequences" group:"Generation" default:"1,2,4,8" help:"Sequences answered together, one measurement each."`
	Prompt    int   `name:"prompt" group:"Generation" default:"512" help:"Tokens of a prompt."`
	New       int   `name:"new" group:"Generation" default:"64" help:"Tokens of an answer."`
	Base      bool  `name:"base" group:"Generation" help:"The base alone, without an adapter beside it."`
	Roofs     bool  `name:"roofs" group:"Generation" default:"true" help:"Measure first what the device does at most."`
}

func (benchDecodeCmd) Help() string {
	return `Greedy answers to random prompts, through all that infer does: a step reads every weight once, so that
the share of the measured read bandwidth is what counts.

Examples
  qlora bench decode --model qwen2.5-7b
  qlora bench decode --model qwen2.5-7b --sequences 1 --prompt 2048 --new 128 --base`
}

func (c *benchDecodeCmd) Run(e *env) error {
	if err := c.benchOutput.check(); err != nil {
		return err
	}
	rule, err := c.rule(stepTime)
	if err != nil {
		return err
	}
	b, done, err := openBench(e, c.benchDevice, rule)
	if err != nil {
		return err
	}
	defer done()
	src, name, err := c.open(b.Backend.Name())
	if err != nil {
		return err
	}
	defer src.Close()
	t, err := c.training(src, name)
	if err != nil {
		return err
	}
	o := bench.DecodeOptions{Name: name, Source: src, DType: t.DType, Sequences: c.Sequences, Prompt: c.Prompt, New: c.New, Roofs: c.Roofs}
	if adapter := c.adapter(); !c.Base {
		o.Adapter = &adapter
	}
	f, err := b.Decodings(e.ctx, o)
	return c.keep(e, f, err)
}
