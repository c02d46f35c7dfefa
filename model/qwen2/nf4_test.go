package qwen2_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qlora/internal/bfloat16"
	"qlora/internal/nf4"
	"qlora/model/cpu"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// matrix is a weight (rows, cols) of a small model.
type matrix struct {
	rows, cols int
	values     []float32
}

// smallModel is the matrices of two layers, whose widths are whole blocks of NF4.
func smallModel() map[string]matrix {
	const C, F, kv, V = 128, 192, 64, 100
	rng, all := rand.New(rand.NewPCG(9, 9)), map[string]matrix{}
	add := func(name string, rows, cols int) {
		m := matrix{rows, cols, make([]float32, rows*cols)}
		for i := range m.values {
			m.values[i] = bfloat16.Round(float32(rng.NormFloat64()) * 0.08)
		}
		all[name+".weight"] = m
	}
	add("model.embed_tokens", V, C)
	add("lm_head", V, C)
	for l := range 2 {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(p+"self_attn.q_proj", C, C)
		add(p+"self_attn.k_proj", kv, C)
		add(p+"self_attn.v_proj", kv, C)
		add(p+"self_attn.o_proj", C, C)
		add(p+"mlp.gate_proj", F, C)
		add(p+"mlp.up_proj", F, C)
		add(p+"mlp.down_proj", C, F)
	}
	return all
}

func linear(name string) bool { return strings.Contains(name, "_proj") }

func (m matrix) quantized(t *testing.T, double bool) *nf4.Tensor {
	t.Helper()
	q, err := nf4.Quantize(m.rows, m.cols, double, func(dst []float32, row, _ int) error {
		copy(dst, m.values[row*m.cols:])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// folder writes a model of these matrices, those that nf4 picks quantised.
func folder(t *testing.T, of map[string]matrix, double bool, quantise func(name string) bool) *weights.Model {
	t.Helper()
	config := map[string]any{"architectures": []string{"Qwen2ForCausalLM"}, "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 192,
		"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 2048,
		"rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu", "torch_dtype": "bfloat16", "attention_bias": false}
	entries := []weights.Entry{}
	any := false
	for name, m := range of {
		if linear(name) && quantise(name) {
			more, err := weights.NF4Entries(name, m.rows, m.cols, m.quantized(t, double))
			if err != nil {
				t.Fatal(err)
			}
			entries, any = append(entries, more...), true
			continue
		}
		raw := make([]byte, 0, 2*len(m.values))
		for _, v := range m.values {
			bits := math.Float32bits(v) >> 16
			raw = append(raw, byte(bits), byte(bits>>8))
		}
		entries = append(entries, weights.BytesEntry(name, weights.BF16, []int{m.rows, m.cols}, raw))
	}
	ones := make([]float32, 128)
	for i := range ones {
		ones[i] = 1
	}
	for _, name := range []string{"model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm",
		"model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm"} {
		entries = append(entries, weights.F32Entry(name+".weight", []int{128}, ones))
	}
	if any {
		config["quantization_config"] = weights.QuantizationConfig(double)
	}
	dir := t.TempDir()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, "model.safetensors"), nil, entries); err != nil {
		t.Fatal(err)
	}
	src, err := weights.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func all(string) bool  { return true }
func none(string) bool { return false }

// A model quantised while it loads, one read from a checkpoint of bitsandbytes, and one whose weights are the values of
// the codes train alike, to the bit; so do all ways of keeping less; and the adapters' gradients are not those of the
// model that was quantised.
func TestNF4Trains(t *testing.T) {
	model := smallModel()
	const T = 1100
	h := randomBatch(T, 100)
	step := func(src *weights.Model, o qwen2.Options) []byte {
		t.Helper()
		o.MaxT, o.MaxS, o.MaxN = T, T, T
		return newRun(t, src, []string{lora.AllLinear}, o).step(h)
	}
	for _, double := range []bool{true, false} {
		values := maps.Clone(model)
		for name, m := range model {
			if linear(name) {
				v := matrix{m.rows, m.cols, make([]float32, len(m.values))}
				m.quantized(t, double).ReadBF16(v.values, 0)
				values[name] = v
			}
		}
		want := step(folder(t, values, double, none), qwen2.Options{DType: ops.BF16})
		plain := folder(t, model, double, none)
		if bytes.Equal(step(plain, qwen2.Options{DType: ops.BF16}), want) {
			t.Fatal("quantising changed nothing")
		}
		for name, got := range map[string][]byte{
			"quantised while loading": step(plain, qwen2.Options{DType: ops.NF4, Single: !double}),
			"a checkpoint":            step(folder(t, model, double, all), qwen2.Options{DType: ops.BF16}),
			"keeping less":            step(plain, qwen2.Options{DType: ops.NF4, Single: !double, Saving: qwen2.Saving{GateUp: 2, Whole: 1, Tile: 512, HostEmbedding: true, Offload: 1}}),
		} {
			if !bytes.Equal(got, want) {
				t.Errorf("double %v, %s: other bits than the model of the codes' values", double, name)
			}
		}
	}
	// Of a fused weight one part may be quantised and another not: then it is held in bfloat16.
	some := func(name string) bool {
		return !strings.Contains(name, "k_proj") && !strings.Contains(name, "layers.1.mlp")
	}
	values := maps.Clone(model)
	for name, m := range model {
		if linear(name) && some(name) {
			v := matrix{m.rows, m.cols, make([]float32, len(m.values))}
			m.quantized(t, true).ReadBF16(v.values, 0)
			values[name] = v
		}
	}
	mixed := step(folder(t, model, true, some), qwen2.Options{DType: ops.BF16})
	if !bytes.Equal(mixed, step(folder(t, values, true, none), qwen2.Options{DType: ops.BF16})) {
		t.Error("a checkpoint quantised in part: other bits than the model of its values")
	}
}

// NF4 takes about a quarter of the memory of bfloat16, and widths that are no whole blocks are refused by name.
func TestNF4Memory(t *testing.T) {
	src := folder(t, smallModel(), true, none)
	sum := func(d ops.DType) (bytes int64) {
		buffers, err := qwen2.Buffers(cpu.New[float32](), src, qwen2.Options{DType: d, MaxT: 8, MaxS: 1, MaxN: 8})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range buffers {
			if strings.Contains(b.Name, "_proj") {
				bytes += b.Bytes
			}
		}
		return bytes
	}
	if ratio := float64(sum(ops.NF4)) / float64(sum(ops.BF16)); ratio < 0.25 || ratio > 0.27 {
		t.Errorf("NF4 takes %.3f of the memory of bfloat16", ratio)
	}
	_, err := qwen2.Build(cpu.New[float32](), opened(t, "mini_untied"), qwen2.Options{DType: ops.NF4, MaxT: 8, MaxS: 1, MaxN: 8})
	if err == nil || !strings.Contains(err.Error(), "mlp.down_proj has 352 columns") {
		t.Errorf("a feed-forward of 352: %v", err)
	}
}
