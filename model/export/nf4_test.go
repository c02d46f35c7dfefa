package export

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/internal/bfloat16"
	"qlora/internal/nf4"
	"qlora/model/lora"
	"qlora/model/weights"
)

// tiny is a model whose rows are whole blocks of NF4, with an adapter.
func tiny(t *testing.T) *Source {
	t.Helper()
	const hidden, ffn, heads, kv, d, vocab = 64, 128, 2, 1, 32, 96
	dir := t.TempDir()
	config := `{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
		"num_key_value_heads": 1, "vocab_size": 96, "max_position_embeddings": 64, "tie_word_embeddings": true, "torch_dtype": "bfloat16"}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	var entries []weights.Entry
	seed := uint64(1)
	add := func(name string, shape ...int) {
		n := 1
		for _, size := range shape {
			n *= size
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		seed++
		v := make([]float32, n)
		for i := range v {
			v[i] = bfloat16.Round(float32(rng.NormFloat64()) / 8)
		}
		entries = append(entries, weights.F32Entry(name, shape, v))
	}
	add("model.embed_tokens.weight", vocab, hidden)
	add("model.norm.weight", hidden)
	for l := range 2 {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(p+"input_layernorm.weight", hidden)
		add(p+"post_attention_layernorm.weight", hidden)
		for i, rows := range []int{heads * d, kv * d, kv * d} {
			name := p + "self_attn." + "qkv"[i:i+1] + "_proj"
			add(name+".weight", rows, hidden)
			add(name+".bias", rows)
		}
		add(p+"self_attn.o_proj.weight", hidden, heads*d)
		add(p+"mlp.gate_proj.weight", ffn, hidden)
		add(p+"mlp.up_proj.weight", ffn, hidden)
		add(p+"mlp.down_proj.weight", hidden, ffn)
	}
	if err := weights.WriteModel(dir, nil, entries, maxShard); err != nil {
		t.Fatal(err)
	}
	s := source(t, dir)
	set, err := lora.New(s.Model.Config, lora.Config{R: 4, Alpha: 8, Targets: []string{lora.AllLinear}})
	if err != nil {
		t.Fatal(err)
	}
	params := set.Init(3)
	for i := range params {
		params[i] += float32(i%13-6) / 50
	}
	if s.Update, err = lora.NewUpdate([]*lora.Adapter{{Name: "tiny", Set: set, Params: params}}, []float64{1}); err != nil {
		t.Fatal(err)
	}
	return s
}

// A folder in bitsandbytes' form reads back, by our reader, as NF4 of the merged weights rounded to bfloat16; all else is
// as it was.
func TestBNB(t *testing.T) {
	for _, double := range []bool{true, false} {
		s := tiny(t)
		path := filepath.Join(t.TempDir(), "bnb")
		var last, total int64
		s.Progress = func(done, of int64) { last, total = done, of }
		if err := s.BNB(t.Context(), path, double, 40_000); err != nil {
			t.Fatal(err)
		}
		if last != total {
			t.Errorf("progress ended at %d of %d", last, total)
		}
		got := open(t, path)
		tensors, err := s.tensors()
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Names()) != len(tensors) {
			t.Errorf("%d tensors, want %d: %v", len(got.Names()), len(tensors), got.Names())
		}
		for _, from := range tensors {
			want64 := merged(t, s, from.Name)
			want := make([]float32, len(want64))
			for i, v := range want64 {
				want[i] = bfloat16.Round(float32(v))
			}
			x, err := got.Tensor(from.Name)
			if err != nil {
				t.Fatal(err)
			}
			if linear := strings.Contains(from.Name, "_proj.weight"); linear != (x.DType == weights.NF4) || x.Double() != (linear && double) {
				t.Errorf("%s is stored as %s, double %v", from.Name, x.DType, x.Double())
			}
			if x.DType == weights.NF4 {
				q, err := nf4.Quantize(x.Rows(), x.RowLen(), double, func(dst []float32, row, n int) error {
					copy(dst, want[row*x.RowLen():][:n*x.RowLen()])
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				q.Read(want, 0)
			}
			v := values(t, got, from.Name)
			differ := 0
			for i := range want {
				if math.Abs(float64(v[i]-want[i])) > 1e-6 {
					differ++ // a sum in another order may round to the other side, of one in thousands
				}
			}
			if differ > len(want)/1000 {
				t.Errorf("%s: %d of %d values differ", from.Name, differ, len(want))
			}
		}
	}
}

// Merged into the dequantised base, a weight is what training saw plus the update.
func TestMergeIntoDequantized(t *testing.T) {
	s := tiny(t)
	s.Dequantized, s.Double = true, true
	path := filepath.Join(t.TempDir(), "m")
	if err := s.Folder(t.Context(), path, weights.F32, maxShard); err != nil {
		t.Fatal(err)
	}
	got, own := open(t, path), open(t, s.Model.Dir)
	for _, module := range s.Update.Names() {
		x, err := own.Tensor(module + ".weight")
		if err != nil {
			t.Fatal(err)
		}
		q, err := quantized(x, true, x.ReadRowsF32)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]float32, x.Rows()*x.RowLen())
		q.ReadBF16(want, 0)
		original := values(t, own, module+".weight")
		if slices.Equal(want, original) {
			t.Fatalf("%s: NF4 changes nothing, so this test says nothing", module)
		}
		s.Update.Add(module, want, 0, x.Rows())
		if v := values(t, got, module+".weight"); !slices.Equal(v, want) {
			t.Errorf("%s is not the dequantised weight and the update", module)
		}
	}
	if !slices.Equal(values(t, got, "model.embed_tokens.weight"), values(t, own, "model.embed_tokens.weight")) {
		t.Error("the embedding was changed")
	}
}
