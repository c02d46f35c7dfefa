package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/tokenizer"
	"qlora/model/weights"
)

// modelFlags say which model, and how it is spoken to.
type modelFlags struct {
	Model    string   `name:"model" group:"Model" placeholder:"MODEL" help:"A folder in the Hugging Face layout, a .gguf file, or a hub id (org/name) that lies in the local cache of Hugging Face or ModelScope."`
	Template string   `name:"template" group:"Model" placeholder:"NAME" help:"Chat template: qwen2_5, qwen, smollm2 or chatml. By default that of the model."`
	Adapters []string `name:"adapters" group:"Model" sep:"none" placeholder:"DIR..." help:"A PEFT adapter, such as a checkpoint of a run, or name=DIR. Its args.json gives the model, the template and the system where the flags leave them out."`
	System   *string  `name:"system" group:"Model" help:"System prompt of conversations that bring none, or the path of a .txt file that holds it. '' for no system turn. By default that of the template."`

	ignoreArgs bool // --load_args false
}

// deviceFlags say where a model lies and computes.
type deviceFlags struct {
	TorchDType string `name:"torch_dtype" group:"Model" placeholder:"NAME" help:"Storage of the frozen weights: bfloat16 or float32; sums are float32 in both. By default float32 if config.json says so, else bfloat16."`
	Backend    string `name:"backend" group:"Model" default:"auto" placeholder:"NAME" help:"auto, cuda or cpu."`
	SyncOps    bool   `name:"sync_ops" group:"Model" help:"Wait for every launch on the card, so that a fault names its op. Slow."`
	ProfileOps bool   `name:"profile_ops" group:"Model" help:"Time every launch on the card, and print at the end where the time of a step went, without the first three. A little slower."`
	memoryFlags

	variant string // kernels of a card; "" is auto
}

// dtypeNames are the storage types by torch's names.
var dtypeNames = map[ops.DType]string{ops.BF16: "bfloat16", ops.F32: "float32", ops.NF4: "nf4"}

// storage names what the linear layers of a model are stored in, where the rest is of type d.
func storage(m *weights.Model, d ops.DType) string {
	if m.Quantized && d == ops.BF16 {
		d = ops.NF4
	}
	return dtypeNames[d]
}

func (f *deviceFlags) dtype(b *base) (ops.DType, error) {
	quantises, err := f.quantises()
	switch {
	case err != nil:
		return 0, usageError{err}
	case quantises && f.TorchDType != "" && f.TorchDType != "bfloat16":
		return 0, usageError{fmt.Errorf("--torch_dtype %s: a base in NF4 is computed with as bfloat16: leave it out", f.TorchDType)}
	case quantises && !b.Quantized:
		return ops.NF4, nil
	case b.Quantized && f.TorchDType == "":
		return ops.BF16, nil // of what is not in NF4
	}
	switch cmp.Or(f.TorchDType, b.Config.DType) {
	case "float32":
		return ops.F32, nil
	case "bfloat16":
		return ops.BF16, nil
	}
	if f.TorchDType == "" {
		return ops.BF16, nil
	}
	return 0, usageError{fmt.Errorf("--torch_dtype %s: known but not supported: choose bfloat16 or float32", f.TorchDType)}
}

// base is an opened model with all that is said in its language.
type base struct {
	*weights.Model
	tok   *tokenizer.Tokenizer
	chat  *data.Chat
	jinja string // the text of the model's chat template
}

// open opens the model, its tokenizer and its chat template. The caller closes it.
func (f *modelFlags) open(e *env) (*base, error) {
	if f.Model == "" {
		return nil, usageError{errors.New("--model is missing: write `--model` and a folder, a .gguf file or a hub id, or --adapters and a checkpoint")}
	}
	m, err := weights.Open(f.Model)
	if err != nil {
		return nil, fmt.Errorf("--model %s: %w", f.Model, err)
	}
	b := &base{Model: m}
	if err := b.prepare(f); err != nil {
		return nil, errors.Join(fmt.Errorf("--model %s: %w", f.Model, err), m.Close())
	}
	for _, name := range []string{"config.json", "tokenizer_config.json"} {
		if b.namesCode(name) {
			e.logf("notice: %s: auto_map names Python of the model's own, which is not run: the model is read as the %s that its config says", filepath.Join(b.Dir, name), b.Config.ModelType)
		}
	}
	return b, nil
}

// namesCode reports whether a file of the model has an auto_map.
func (b *base) namesCode(name string) bool {
	var file struct {
		AutoMap json.RawMessage `json:"auto_map"`
	}
	text, err := b.optionalFile(name)
	return err == nil && json.Unmarshal(text, &file) == nil && len(file.AutoMap) > 0 && string(file.AutoMap) != "null" && string(file.AutoMap) != "{}"
}

func (b *base) prepare(f *modelFlags) error {
	jinja, err := b.loadTokenizer()
	if err != nil {
		return err
	}
	b.jinja = jinja
	if n := b.tok.VocabSize(); n > b.Config.VocabSize {
		return fmt.Errorf("the tokenizer has %d ids, the embedding only %d rows: they do not belong together", n, b.Config.VocabSize)
	}
	var template data.Template
	if f.Template != "" {
		template, err = data.TemplateNamed(f.Template)
	} else {
		template, err = data.RecognizeTemplate(jinja)
	}
	if err != nil {
		return err
	}
	if f.System != nil {
		system, err := textOrFile(*f.System)
		if err != nil {
			return err
		}
		template = template.WithSystem(system)
	}
	b.chat, err = data.NewChat(template, b.tok)
	return err
}

// loadTokenizer reads the tokenizer, from the folder or the GGUF metadata, and returns the text of
// the model's chat template.
func (b *base) loadTokenizer() (jinja string, err error) {
	if g := b.GGUF(); g != nil {
		v, err := g.Tokenizer()
		if err != nil {
			return "", err
		}
		if v.Model != "gpt2" {
			return "", fmt.Errorf("tokenizer %q is not supported, only byte-level BPE (gpt2)", v.Model)
		}
		b.tok, err = tokenizer.FromVocab(tokenizer.Vocab{Pre: v.Pre, Tokens: v.Tokens, Types: v.Types, Merges: v.Merges,
			BOS: int32(v.BOS), EOS: int32(v.EOS), Pad: int32(v.Pad)})
		return v.ChatTemplate, err
	}
	model, err := b.ReadFile("tokenizer.json")
	if err != nil {
		return "", err
	}
	config, err := b.optionalFile("tokenizer_config.json")
	if err != nil {
		return "", err
	}
	if b.tok, err = tokenizer.Load(model, config); err != nil {
		return "", err
	}
	// Since transformers 4.50 the template has a file of its own.
	own, err := b.optionalFile("chat_template.jinja")
	if err != nil || own != nil {
		return string(own), err
	}
	return chatTemplate(config)
}

func (b *base) optionalFile(name string) ([]byte, error) {
	text, err := b.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// chatTemplate returns the chat_template of a tokenizer_config.json, "" where there is none. It is a
// text, or a list of named ones.
func chatTemplate(config []byte) (string, error) {
	if config == nil {
		return "", nil
	}
	var file struct {
		ChatTemplate json.RawMessage `json:"chat_template"`
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return "", fmt.Errorf("tokenizer_config.json: %w", err)
	}
	var text string
	if file.ChatTemplate == nil || json.Unmarshal(file.ChatTemplate, &text) == nil {
		return text, nil
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(file.ChatTemplate, &named); err != nil {
		return "", fmt.Errorf("tokenizer_config.json: chat_template is neither a text nor a list of named texts: %w", err)
	}
	for _, n := range named {
		if n.Name == "default" {
			return n.Template, nil
		}
	}
	return "", nil
}

// textOrFile returns a system prompt: the text itself, or the content of the .txt file it names.
func textOrFile(text string) (string, error) {
	if !strings.HasSuffix(text, ".txt") {
		return text, nil
	}
	file, err := os.ReadFile(text)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("--system %s: no such file (a prompt that ends in .txt is taken for one)", text)
	}
	return strings.TrimRight(string(file), "\r\n"), err
}

// loadAdapter reads the PEFT adapter at dir, to go on from.
func loadAdapter(b *base, dir string) (*lora.Set, []float32, error) {
	all, err := loadAdapters(b, []namedDir{{dir: dir}}, lora.Load)
	if err != nil {
		return nil, nil, err
	}
	all[0].Set.SetDropout(true)
	return all[0].Set, all[0].Params, nil
}
