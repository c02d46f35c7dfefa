package main

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"qlora/internal/atomicfile"
	"qlora/model/data"
	"qlora/model/export"
	"qlora/model/lora"
	"qlora/model/weights"
)

// exportCmd is `qlora export`.
type exportCmd struct {
	modelFlags
	blendFlags
	MergeLoRA    bool     `name:"merge_lora" group:"What" help:"A whole model in the Hugging Face layout, the adapters in its weights: the sum made in float32, rounded once."`
	ToHF         bool     `name:"to_hf" group:"What" help:"The model as it is in the Hugging Face layout: of a .gguf file."`
	ToPEFTFormat bool     `name:"to_peft_format" group:"What" help:"The adapters, each times its weight, as one PEFT adapter of one rank and a scale of 1, which all servers read alike."`
	ToGGUF       string   `name:"to_gguf" group:"What" placeholder:"WHAT" help:"adapter: the adapters as one GGUF adapter. model: the whole model as GGUF, the adapters in its weights."`
	ToOllama     bool     `name:"to_ollama" group:"What" help:"A folder for ollama create: a Modelfile with the template, system prompt and stop words it was trained with, and a GGUF adapter on a model of Ollama's library or on the base .gguf; a whole GGUF with --merge_lora, or where there is neither."`
	Check        []string `name:"check" group:"What" sep:"," placeholder:"SERVER..." help:"Say whether vllm, sglang, tgi, llama.cpp and ollama take the adapter, why not, and by which flags; all for all of them."`

	QuantMethod string `name:"quant_method" group:"What" placeholder:"NAME" help:"bnb, with --quant_bits 4: a model's folder whose linear layers are in bitsandbytes' NF4, as load_in_4bit saves them; with --adapters they are merged first."`
	QuantBits   int    `name:"quant_bits" group:"What" help:"4, with --quant_method bnb."`
	MergeBase   string `name:"merge_base" group:"How" default:"original" placeholder:"NAME" help:"What an adapter of a run with --quant_bits 4 is merged into: original, the model's own weights; dequantized, what NF4 made of them, which it was trained on. Measure both by qlora eval."`
	DoubleQuant bool   `name:"bnb_4bit_use_double_quant" group:"How" default:"true" help:"Of NF4: the scales are quantised too."`

	TorchDType   string `name:"torch_dtype" group:"How" placeholder:"NAME" help:"Of a model's folder: bfloat16, float16 or float32. By default that of the model, bfloat16 for a .gguf file."`
	MaxShardSize string `name:"max_shard_size" group:"How" default:"5GB" placeholder:"SIZE" help:"Of one safetensors file of a model's folder."`
	Quant        string `name:"quant" group:"How" default:"q8_0" placeholder:"NAME" help:"Of a model as GGUF: f32, f16, bf16, q8_0 or q4_0."`
	OutputDir    string `name:"output_dir" group:"How" placeholder:"PATH" help:"Where it is written; it must not exist. By default beside the adapter, or the model's file: CHECKPOINT-merged, -hf, -peft, -gguf, -ollama, -bnb-int4."`
	JSON         bool   `name:"json" group:"How" help:"Print what --check finds as JSON."`
}

func (exportCmd) Help() string {
	return `Nothing is replaced, and what is written appears whole or not at all. The system prompt, template and model come
from the adapter's args.json where the flags leave them out. docs/deploy.md shows how to serve the results.

Examples
  qlora export --adapters CHECKPOINT --merge_lora true
  qlora export --adapters CHECKPOINT --check all
  qlora export --adapters CHECKPOINT --to_gguf adapter
  qlora export --adapters CHECKPOINT --to_gguf model --quant q4_0 --output_dir tuned-gguf
  qlora export --adapters CHECKPOINT --to_ollama true
  qlora export --adapters A B --adapter_weights 0.7 0.3 --merge_lora true --output_dir both
  qlora export --model Qwen/Qwen2.5-7B-Instruct --quant_method bnb --quant_bits 4 --output_dir qwen-4bit
  qlora export --model model.gguf --to_hf true --output_dir model`
}

// kinds of output by the ending of its default path.
const (
	kindMerged = "-merged"
	kindHF     = "-hf"
	kindPEFT   = "-peft"
	kindGGUF   = "-gguf"
	kindOllama = "-ollama"
	kindBNB    = "-bnb-int4"
)

// kind is what is to be written, "" for a check alone.
func (c *exportCmd) kind() (string, error) {
	var asked []string
	for _, k := range []struct {
		on   bool
		flag string
		kind string
	}{
		{c.quantises(), "--quant_method bnb", kindBNB}, {c.MergeLoRA && !c.ToOllama && !c.quantises(), "--merge_lora true", kindMerged}, {c.ToHF, "--to_hf true", kindHF}, {c.ToPEFTFormat, "--to_peft_format true", kindPEFT},
		{c.ToGGUF != "", "--to_gguf " + c.ToGGUF, kindGGUF}, {c.ToOllama, "--to_ollama true", kindOllama},
	} {
		if k.on {
			asked = append(asked, k.flag, k.kind)
		}
	}
	switch {
	case c.quantises() && (!strings.EqualFold(c.QuantMethod, "bnb") || c.QuantBits != 4):
		return "", usageError{fmt.Errorf("--quant_method %s --quant_bits %d: what is written is bnb in 4 bits, or GGUF by --to_gguf model --quant q8_0 or q4_0", c.QuantMethod, c.QuantBits)}
	case c.MergeBase != "original" && c.MergeBase != "dequantized":
		return "", usageError{fmt.Errorf("--merge_base %s: choose original or dequantized", c.MergeBase)}
	case len(asked) > 2:
		return "", usageError{fmt.Errorf("one thing is written at a time: %s or %s", asked[0], asked[2])}
	case c.ToGGUF != "" && c.ToGGUF != "adapter" && c.ToGGUF != "model":
		return "", usageError{fmt.Errorf("--to_gguf %s: choose adapter or model", c.ToGGUF)}
	case len(asked) == 2:
		return asked[1], nil
	case len(c.Check) > 0:
		return "", nil
	}
	return "", usageError{errors.New("what is to be written? --merge_lora true, --to_hf true, --to_peft_format true, --to_gguf adapter or model, --to_ollama true, --quant_method bnb --quant_bits 4; --check all writes nothing")}
}

// quantises reports whether bitsandbytes' form is asked for.
func (c *exportCmd) quantises() bool {
	return c.QuantBits != 0 || !slices.Contains(disabled, strings.ToLower(c.QuantMethod))
}

func (c *exportCmd) Run(e *env) error {
	kind, err := c.kind()
	if err != nil {
		return err
	}
	if len(c.Check) > 0 {
		if err := c.check(e); err != nil || kind == "" {
			return err
		}
	}
	if len(c.AdapterWeights) == 0 {
		c.newest(e)
	}
	list, err := c.restoreAll(e)
	if err != nil {
		return err
	}
	needs := kind == kindMerged || kind == kindPEFT || kind == kindGGUF && c.ToGGUF == "adapter" || c.ToOllama && c.MergeLoRA
	switch {
	case needs && len(list) == 0:
		return usageError{errors.New("--adapters is missing: give the checkpoint that is to be exported")}
	case kind == kindHF && len(list) > 0:
		return usageError{errors.New("--to_hf true writes the model as it is: leave --adapters out, or say --merge_lora true")}
	}
	b, err := c.open(e)
	if err != nil {
		return err
	}
	defer b.Close()
	source, err := c.source(e, b, list)
	if err != nil {
		return err
	}
	path, err := c.target(kind, list)
	if err != nil {
		return err
	}
	if err := c.write(e, kind, source, path); err != nil {
		return err
	}
	fmt.Fprintln(e.out, path)
	return nil
}

// source is the model with the adapters, each times its weight.
func (c *exportCmd) source(e *env, b *base, list []namedDir) (*export.Source, error) {
	s := &export.Source{Model: b.Model, Tok: b.tok, Template: b.chat.Template, Jinja: b.jinja, Name: lora.PortableName(b.HubID, cmp.Or(b.File, b.Dir))}
	if len(list) == 0 {
		return s, nil
	}
	weights, err := c.blendFlags.shares(list)
	if err != nil {
		return nil, err
	}
	adapters, err := loadAdapters(b, list, lora.LoadToMerge)
	if err != nil {
		return nil, err
	}
	if s.Update, err = lora.NewUpdate(adapters, weights); err != nil {
		return nil, usageError{err}
	}
	e.logf("adapters: %s", mixture(adapters, weights))
	s.Dequantized, s.Double = c.MergeBase == "dequantized", c.DoubleQuant
	for _, a := range list {
		if saved, err := readArgs(a.dir); err == nil && saved.QuantBits == 4 && !s.Dequantized {
			e.logf("notice: %s was trained on the base in 4 bits, and is merged into the original weights: --merge_base dequantized merges into what it was trained on", a.name)
		}
	}
	return s, nil
}

// target is where it is written.
func (c *exportCmd) target(kind string, list []namedDir) (string, error) {
	switch {
	case c.OutputDir != "":
		return filepath.Clean(c.OutputDir), nil
	case len(list) > 1:
		return "", usageError{errors.New("--output_dir is missing: several adapters are nobody's own")}
	case len(list) == 1:
		return list[0].dir + kind, nil
	case strings.HasSuffix(c.Model, ".gguf"):
		return strings.TrimSuffix(c.Model, ".gguf") + kind, nil
	}
	return "", usageError{errors.New("--output_dir is missing: say where it is written")}
}

func (c *exportCmd) write(e *env, kind string, s *export.Source, path string) error {
	var shown *counter
	s.Progress = func(done, total int64) {
		if shown == nil {
			shown = newCounter(e, "writing "+path, 0, total, megabytes)
		}
		shown.at(done)
	}
	defer func() {
		if shown != nil {
			shown.end()
		}
	}()
	shard, err := parseSize(c.MaxShardSize)
	if err != nil {
		return usageError{fmt.Errorf("--max_shard_size: %w", err)}
	}
	switch kind {
	case kindMerged, kindHF:
		dtype, err := c.dtype(s.Model)
		if err != nil {
			return err
		}
		own, err := data.RecognizeTemplate(s.Jinja)
		if system := s.Template.DefaultSystem; err == nil && system != own.DefaultSystem {
			e.logf("notice: it was trained with the system prompt %.80q; a server takes the chat template's own, %.80q, where a request brings none", system, own.DefaultSystem)
		}
		return s.Folder(e.ctx, path, dtype, shard)
	case kindBNB:
		return s.BNB(e.ctx, path, c.DoubleQuant, shard)
	case kindPEFT:
		return s.Adapter(path, lora.Base{Name: s.Name})
	case kindGGUF:
		return c.gguf(e, s, path)
	}
	return c.ollama(e, s, path)
}

// gguf writes a folder with one file.
func (c *exportCmd) gguf(e *env, s *export.Source, path string) error {
	if err := export.Room(path, 0); err != nil {
		return err
	}
	return atomicfile.WriteDir(path, func(dir string) error {
		if c.ToGGUF == "adapter" {
			return s.AdapterGGUF(filepath.Join(dir, "adapter.gguf"))
		}
		quant, err := c.quant()
		if err != nil {
			return err
		}
		return s.GGUF(e.ctx, filepath.Join(dir, "model-"+c.Quant+".gguf"), quant)
	})
}

// ollama writes a folder for ollama create.
func (c *exportCmd) ollama(e *env, s *export.Source, path string) error {
	quant, err := c.quant()
	if err != nil {
		return err
	}
	if err := export.Room(path, 0); err != nil {
		return err
	}
	file := export.Modelfile{From: "./model-" + c.Quant + ".gguf"}
	adapter := s.Update != nil && !c.MergeLoRA
	switch library := export.LibraryModel(s.Model.HubID); {
	case !adapter:
	case s.Model.File != "":
		if file.From, err = filepath.Abs(s.Model.File); err != nil {
			return err
		}
	case library != "":
		file.From = library
	}
	if adapter {
		file.Adapter = "./adapter.gguf"
	}
	text, err := s.Modelfile(file)
	if err != nil {
		return usageError{err}
	}
	return atomicfile.WriteDir(path, func(dir string) error {
		if err := atomicfile.WriteBytes(filepath.Join(dir, "Modelfile"), []byte(text)); err != nil {
			return err
		}
		base := *s
		if adapter {
			if err := s.AdapterGGUF(filepath.Join(dir, "adapter.gguf")); err != nil {
				return err
			}
			base.Update = nil
		}
		if !strings.HasPrefix(file.From, "./") {
			return nil
		}
		return base.GGUF(e.ctx, filepath.Join(dir, filepath.Base(file.From)), quant)
	})
}

func (c *exportCmd) quant() (weights.DType, error) {
	if d, ok := export.Quants[strings.ToLower(c.Quant)]; ok {
		return d, nil
	}
	return "", usageError{fmt.Errorf("--quant %s: choose f32, f16, bf16, q8_0 or q4_0", c.Quant)}
}

// dtype is the type of a model's folder.
func (c *exportCmd) dtype(m *weights.Model) (weights.DType, error) {
	names := map[string]weights.DType{"bfloat16": weights.BF16, "float16": weights.F16, "float32": weights.F32}
	if d, ok := names[cmp.Or(c.TorchDType, m.Config.DType, "bfloat16")]; ok {
		return d, nil
	}
	if c.TorchDType != "" {
		return "", usageError{fmt.Errorf("--torch_dtype %s: choose bfloat16, float16 or float32", c.TorchDType)}
	}
	return weights.BF16, nil
}

// check prints what servers say to the adapter, which any program may have written. Its status is 1 where one does not
// take it.
func (c *exportCmd) check(e *env) error {
	list, err := c.list()
	switch {
	case err != nil:
		return err
	case len(list) != 1:
		return usageError{errors.New("--check looks at one adapter: give it by --adapters")}
	}
	servers := c.Check
	if slices.Contains(servers, "all") {
		servers = export.Servers
	}
	verdicts, err := export.Check(list[0].dir, c.baseType(list[0].dir), servers)
	if err != nil {
		return usageError{err}
	}
	if c.JSON {
		err = writeJSON(e, verdicts)
	} else {
		printVerdicts(e, verdicts)
	}
	if err == nil && slices.ContainsFunc(verdicts, func(v export.Verdict) bool { return !v.Loads }) {
		err = errCheckFailed
	}
	return err
}

// baseType is the type of the adapter's base, "" where that is not at hand.
func (c *exportCmd) baseType(dir string) string {
	model := c.Model
	if saved, err := readArgs(dir); model == "" && err == nil {
		model = saved.Model
	}
	m, err := weights.Open(model)
	if err != nil {
		return ""
	}
	defer m.Close()
	return m.Config.ModelType
}

func printVerdicts(e *env, verdicts []export.Verdict) {
	for _, v := range verdicts {
		word := "takes it"
		if !v.Loads {
			word = "does not take it"
		}
		fmt.Fprintf(e.out, "%s %s\n", v.Server, word)
		for _, p := range v.Problems {
			fmt.Fprintf(e.out, "  because %s\n", p)
		}
		for _, n := range v.Notes {
			fmt.Fprintf(e.out, "  %s\n", n)
		}
		if v.Command != "" {
			fmt.Fprintf(e.out, "  $ %s\n", v.Command)
		}
	}
}
