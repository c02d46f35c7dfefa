package infer_test

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// blended is the mini golden model with adapters that lie ready.
type blended struct {
	t     *testing.T
	b     ops.Backend
	m     *qwen2.Model
	blend *lora.Blend
	ids   []int32
	want  map[string][]float32 // logits by PEFT
}

func newBlended(t *testing.T, names ...string) *blended {
	t.Helper()
	y := &blended{t: t, b: cpu.New[float32](), want: map[string][]float32{}}
	t.Cleanup(func() { y.b.Close() })
	var in struct {
		IDs []int32 `json:"input_ids"`
	}
	text, err := os.ReadFile(golden.Path(t, "lora", "mini", "inputs.json"))
	y.must(err)
	y.must(json.Unmarshal(text, &in))
	y.ids = in.IDs
	src, err := weights.Open(golden.Path(t, "models", "mini"))
	y.must(err)
	defer src.Close()
	o := qwen2.Options{DType: ops.F32, MaxT: len(y.ids), MaxS: 1, MaxN: len(y.ids), Sequences: len(y.ids), Context: len(y.ids)}
	var all []*lora.Adapter
	for _, name := range names {
		a := &lora.Adapter{Name: name}
		a.Set, a.Params, a.Base, err = lora.Load(golden.Path(t, "lora", "mini", "adapter_"+name), src.Config)
		y.must(err)
		a.Set.SetDropout(false)
		all = append(all, a)
	}
	if len(all) > 0 {
		y.blend = lora.NewBlend(all)
		o.Adapter = y.blend
	}
	y.m, err = qwen2.Build(y.b, src, o)
	y.must(err)
	f, err := weights.OpenSafetensors(golden.Path(t, "lora", "mini", "logits.safetensors"))
	y.must(err)
	defer f.Close()
	for _, name := range f.Names() {
		x, err := f.Tensor(name)
		y.must(err)
		y.want[name] = make([]float32, x.Rows()*x.RowLen())
		y.must(x.ReadRowsF32(y.want[name], 0, x.Rows()))
	}
	return y
}

func (y *blended) must(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

func (y *blended) use(weights ...float64) {
	y.t.Helper()
	params, err := y.blend.Use(weights)
	y.must(err)
	y.must(y.m.SetParams(params))
}

func (y *blended) logits() []float32 {
	y.t.Helper()
	h := ops.HostBatch{IDs: y.ids, SegStart: []int32{0, int32(len(y.ids))}}
	for p := range y.ids {
		h.Pos, h.Sample, h.Rows, h.Targets = append(h.Pos, int32(p)), append(h.Sample, 0), append(h.Rows, int32(p)), append(h.Targets, 0)
	}
	y.must(y.m.Load(h))
	y.m.Prefill()
	got, err := ops.ReadF32(y.b, y.m.Logits.Rows(0, len(y.ids)))
	y.must(err)
	y.must(y.b.Sync())
	return got
}

// apart is the relative L2 distance.
func apart(got, want []float32) float64 {
	var d, n float64
	for i := range want {
		d += (float64(got[i]) - float64(want[i])) * (float64(got[i]) - float64(want[i]))
		n += float64(want[i]) * float64(want[i])
	}
	return math.Sqrt(d / n)
}

// What is in use is what PEFT computes: an adapter alone, its exact weighted sum ("cat"), the base; in any order, on
// one model. What is switched off leaves no bit behind.
func TestBlendIsPEFTsCat(t *testing.T) {
	y := newBlended(t, "a", "b", "rslora")
	alone := newBlended(t).logits()
	for _, c := range []struct {
		want    string
		weights []float64
	}{
		{"a", []float64{1, 0, 0}}, {"blend_cat", []float64{0.7, 0.3, 0}}, {"b", []float64{0, 1, 0}}, {"base", []float64{0, 0, 0}},
		{"rslora", []float64{0, 0, 1}}, {"blend_cat", []float64{0.7, 0.3, 0}},
	} {
		y.use(c.weights...)
		got := y.logits()
		if d := apart(got, y.want[c.want]); d > 1e-5 {
			t.Errorf("weights %v: %g from PEFT's %s", c.weights, d, c.want)
		}
		if c.want == "base" && !slices.Equal(got, alone) {
			t.Errorf("weights %v: some bit differs from the base without adapters", c.weights)
		}
	}
	if apart(y.want["blend_linear"], y.want["blend_cat"]) < 1e-3 {
		t.Error("the golden blends are alike, so this test says nothing")
	}
}

// An adapter of weight 1 beside others of weight 0 computes the bits that it computes alone.
func TestBlendOfOneIsTheOne(t *testing.T) {
	one, among := newBlended(t, "a"), newBlended(t, "b", "a")
	one.use(1)
	among.use(0, 1)
	if !slices.Equal(one.logits(), among.logits()) {
		t.Error("some bit differs")
	}
}

// The sum is linear: half and half of an adapter is the adapter, and it less itself is the base.
func TestBlendAdds(t *testing.T) {
	y := newBlended(t, "a", "a")
	for _, c := range []struct {
		want    string
		weights []float64
	}{{"a", []float64{0.5, 0.5}}, {"a", []float64{1.5, -0.5}}, {"base", []float64{1, -1}}} {
		y.use(c.weights...)
		if d := apart(y.logits(), y.want[c.want]); d > 1e-5 {
			t.Errorf("weights %v: %g from %s", c.weights, d, c.want)
		}
	}
}

// A sum whose rank the kernels do not hold is refused by name, and what was in use stays.
func TestBlendOfTooManyRanks(t *testing.T) {
	names := make([]string, lora.MaxRank/8+1) // adapters of rank 8
	for i := range names {
		names[i] = "a"
	}
	y := newBlended(t, names...)
	weights := make([]float64, len(names))
	weights[3] = 1
	y.use(weights...)
	before := y.logits()
	for i := range weights {
		weights[i] = 1 / float64(len(weights))
	}
	_, err := y.blend.Use(weights)
	if err == nil || !strings.Contains(err.Error(), "model.layers.0.self_attn.q_proj add up to 72 (a 8, a 8,") || !strings.Contains(err.Error(), "qlora export --merge_lora") {
		t.Errorf("all of them: %v", err)
	}
	if !slices.Equal(y.logits(), before) {
		t.Error("a blend that was refused changed the one in use")
	}
	weights[0] = 0
	weights[1] += 1 / float64(len(weights))
	y.use(weights...)
	if d := apart(y.logits(), y.want["a"]); d > 1e-5 {
		t.Errorf("as many as fit: %g from a", d)
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1), 1e300} {
		weights[1] = bad
		if _, err := y.blend.Use(weights); err == nil || !strings.Contains(err.Error(), "finite") {
			t.Errorf("weight %v: %v", bad, err)
		}
	}
}
