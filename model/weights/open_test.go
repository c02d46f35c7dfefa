package weights

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qlora/internal/golden"
)

// goldenDir returns the folder of the golden data called name; QLORA_GOLDEN puts
// another set of the same layout in place of the repository's.
func goldenDir(t testing.TB, name string) string {
	t.Helper()
	dir := golden.Path(t, filepath.FromSlash(name))
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustOpen(t testing.TB, spec string) *Model {
	t.Helper()
	m, err := Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func mustTensor(t testing.TB, m *Model, name string) *Tensor {
	t.Helper()
	tensor, err := m.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	return tensor
}

// Every tensor the shape calls for is there and has the size it calls for.
func TestOpenFolder(t *testing.T) {
	for _, name := range []string{"mini", "mini_bf16", "mini_untied"} {
		t.Run(name, func(t *testing.T) {
			m := mustOpen(t, goldenDir(t, "models/"+name))
			checkShapes(t, m)
			if m.Generation == nil || m.Generation.TopK != 50 {
				t.Errorf("generation config %+v", m.Generation)
			}
			if data, err := m.ReadFile("config.json"); err != nil || !strings.Contains(string(data), "qwen2") {
				t.Errorf("config.json reads as %.20q, %v", data, err)
			}
		})
	}
}

func checkShapes(t *testing.T, m *Model) {
	t.Helper()
	c := m.Config
	want := map[string][]int{
		"model.embed_tokens.weight": {c.VocabSize, c.HiddenSize},
		"model.norm.weight":         {c.HiddenSize},
	}
	if !c.TieWordEmbeddings {
		want["lm_head.weight"] = []int{c.VocabSize, c.HiddenSize}
	}
	q, kv := c.NumAttentionHeads*c.HeadDim, c.NumKeyValueHeads*c.HeadDim
	for i := range c.NumHiddenLayers {
		layer := map[string][]int{
			"input_layernorm.weight": {c.HiddenSize}, "post_attention_layernorm.weight": {c.HiddenSize},
			"self_attn.q_proj.weight": {q, c.HiddenSize}, "self_attn.k_proj.weight": {kv, c.HiddenSize},
			"self_attn.v_proj.weight": {kv, c.HiddenSize}, "self_attn.o_proj.weight": {c.HiddenSize, q},
			"mlp.gate_proj.weight": {c.IntermediateSize, c.HiddenSize}, "mlp.up_proj.weight": {c.IntermediateSize, c.HiddenSize},
			"mlp.down_proj.weight": {c.HiddenSize, c.IntermediateSize},
		}
		if c.AttentionBias {
			layer["self_attn.q_proj.bias"], layer["self_attn.k_proj.bias"], layer["self_attn.v_proj.bias"] = []int{q}, []int{kv}, []int{kv}
		}
		for name, shape := range layer {
			want[fmt.Sprintf("model.layers.%d.%s", i, name)] = shape
		}
	}
	got := m.Names()
	if len(got) != len(want) {
		t.Errorf("%d tensors, want %d", len(got), len(want))
	}
	for name, shape := range want {
		tensor := mustTensor(t, m, name)
		if len(tensor.Shape) != len(shape) || tensor.Shape[0] != shape[0] || tensor.Shape[len(shape)-1] != shape[len(shape)-1] {
			t.Errorf("%s: shape %v, want %v", name, tensor.Shape, shape)
		}
		values := make([]float32, tensor.Rows()*tensor.RowLen())
		if err := tensor.ReadRowsF32(values, 0, tensor.Rows()); err != nil {
			t.Error(err)
		}
	}
}
