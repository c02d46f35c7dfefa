package qwen2_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
	"qlora/model/weights/weightstest"
)

// build loads a model's folder for training.
func build(t *testing.T, b ops.Backend, dir string, dtype ops.DType) error {
	t.Helper()
	src, err := weights.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	defer b.Close()
	_, err = qwen2.Build(b, src, qwen2.Options{DType: dtype, Training: true, MaxT: 8, MaxS: 2, MaxN: 8})
	return err
}

func copied(t *testing.T, model string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(golden.Path(t, "models", model))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A file whose sizes are right but whose tensors are not those of its config is refused with the tensor's name.
func TestTensorsFitTheConfig(t *testing.T) {
	rename := func(old, new string) func(*weightstest.Tensor) {
		return func(e *weightstest.Tensor) {
			if e.Name == old {
				e.Name = new
			}
		}
	}
	const layer1, q = "model.layers.1.", "model.layers.1.self_attn.q_proj.weight"
	for _, c := range []struct {
		name, model string
		change      func(*weightstest.Tensor)
		config      string // old|new in config.json
		err         string // "": none
	}{
		{"as it is", "mini", func(*weightstest.Tensor) {}, "", ""},
		{"tensor missing", "mini", rename(q, ""), "", `no tensor "` + q + `"`},
		{"norm missing", "mini", rename("model.norm.weight", ""), "", `no tensor "model.norm.weight"`},
		{"bias missing", "mini", rename(layer1+"self_attn.k_proj.bias", ""), "", `no tensor "model.layers.1.self_attn.k_proj.bias"`},
		{"tensor renamed", "mini", rename(q, layer1+"self_attn.query.weight"), "", "the model holds model.layers.1.self_attn.query.weight, which has no place"},
		{"a layer more than the config has", "mini", func(*weightstest.Tensor) {}, `"num_hidden_layers": 2|"num_hidden_layers": 1`, "which has no place in a qwen2 of 1 layers"},
		{"a layer less", "mini", func(*weightstest.Tensor) {}, `"num_hidden_layers": 2|"num_hidden_layers": 3`, `no tensor "model.layers.2.`},
		{"bias of o_proj", "mini", rename(layer1+"self_attn.q_proj.bias", layer1+"self_attn.o_proj.bias"), "", "the model holds model.layers.1.self_attn.o_proj.bias"},
		{"biases the config denies", "mini", func(*weightstest.Tensor) {}, `"model_type"|"attention_bias": false, "model_type"`, "k_proj.bias, which has no place"},
		{"head of a tied model", "mini_untied", func(*weightstest.Tensor) {}, `"tie_word_embeddings": false|"tie_word_embeddings": true`, ""},
		{"head missing", "mini_untied", rename("lm_head.weight", ""), "", `no tensor "lm_head.weight"`},
		{"transposed", "mini", func(e *weightstest.Tensor) {
			if e.Name == layer1+"mlp.up_proj.weight" {
				e.Shape = []int{e.Shape[1], e.Shape[0]}
			}
		}, "", "model.layers.1.mlp.up_proj.weight has shape ["},
		{"norm of two dimensions", "mini", func(e *weightstest.Tensor) {
			if e.Name == "model.norm.weight" {
				e.Shape = []int{1, e.Shape[0]}
			}
		}, "", "model.norm.weight has shape [1 "},
		{"another vocabulary", "mini", func(*weightstest.Tensor) {}, `"vocab_size": |"vocab_size": 1`, "model.embed_tokens.weight has shape ["},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copied(t, c.model)
			weightstest.Rewrite(t, filepath.Join(dir, "model.safetensors"), c.change)
			if old, new, ok := strings.Cut(c.config, "|"); ok {
				path := filepath.Join(dir, "config.json")
				text, err := os.ReadFile(path)
				if err != nil || !bytes.Contains(text, []byte(old)) {
					t.Fatalf("no %s in %s, %v", old, text, err)
				}
				if err := os.WriteFile(path, bytes.Replace(text, []byte(old), []byte(new), 1), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			err := build(t, cpu.New[float32](), dir, ops.F32)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%v, want an error with %q", err, c.err)
			}
		})
	}
}

// raw is a backend that takes bfloat16 weights as they are stored, as a card does.
type raw struct{ ops.Backend }

func (b raw) NewWeight(mem ops.Tensor, spec ops.WeightSpec, parts []ops.Source, bias []float32) (ops.Weight, error) {
	for _, p := range parts {
		if err := p.ReadBF16(make([]byte, 2*p.Rows*p.Cols), 0, p.Rows); err != nil {
			return nil, err
		}
	}
	return b.Backend.NewWeight(mem, spec, parts, bias)
}

// A NaN or an infinity in a weight ends the loading, which names tensor, row and column.
func TestNonFiniteWeight(t *testing.T) {
	for _, c := range []struct {
		model  string
		b      ops.Backend
		tensor string
		row    int
		bits   []byte // of the element, little endian
	}{
		{"mini", cpu.New[float32](), "model.layers.1.mlp.up_proj.weight", 3, []byte{0, 0, 0xc0, 0x7f}},
		{"mini", cpu.New[float32](), "model.embed_tokens.weight", 259, []byte{0, 0, 0x80, 0xff}},
		{"mini", cpu.New[float32](), "model.norm.weight", 0, []byte{1, 0, 0x80, 0x7f}},
		{"mini_bf16", cpu.New[float32](), "model.layers.0.self_attn.k_proj.weight", 2, []byte{0x80, 0x7f}},
		{"mini_bf16", raw{cpu.New[float32]()}, "model.layers.0.self_attn.k_proj.weight", 2, []byte{0xc1, 0xff}},
	} {
		t.Run(fmt.Sprintf("%s %s %x", c.model, c.tensor, c.bits), func(t *testing.T) {
			dir := copied(t, c.model)
			const column = 5
			weightstest.Rewrite(t, filepath.Join(dir, "model.safetensors"), func(e *weightstest.Tensor) {
				if e.Name == c.tensor {
					copy(e.Data[(c.row*e.Shape[len(e.Shape)-1]+column)*len(c.bits):], c.bits)
				}
			})
			err := build(t, c.b, dir, ops.BF16)
			want := fmt.Sprintf("%s: row %d, column %d is ", c.tensor, c.row, column)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want an error with %q", err, want)
			}
		})
	}
}
