package train_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/infer"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

func readJSON[T any](t *testing.T, path string) T {
	t.Helper()
	var v T
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

// tensors reads every tensor of a safetensors file.
func tensors(t *testing.T, path string) map[string][]float32 {
	t.Helper()
	f, err := weights.OpenSafetensors(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string][]float32{}
	for _, name := range f.Names() {
		x, err := f.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		v := make([]float32, x.Rows()*x.RowLen())
		if err := x.ReadRowsF32(v, 0, x.Rows()); err != nil {
			t.Fatal(err)
		}
		all[name] = v
	}
	return all
}

// tiny is a golden model on the CPU backend, with an adapter or without.
type tiny struct {
	t   *testing.T
	b   ops.Backend
	m   *qwen2.Model
	set *lora.Set
}

// build opens a golden model; adapter is a folder of the golden data, or "".
func build(t *testing.T, model, adapter string, o qwen2.Options) *tiny {
	t.Helper()
	src, err := weights.Open(golden.Path(t, "models", model))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	y := &tiny{t: t, b: cpu.New[float32]()}
	var params []float32
	if adapter != "" {
		if y.set, params, _, err = lora.Load(golden.Path(t, adapter), src.Config); err != nil {
			t.Fatal(err)
		}
		o.Adapter = y.set
	}
	o.DType, o.MaxS, o.MaxN = ops.F32, o.MaxT, o.MaxT
	if y.m, err = qwen2.Build(y.b, src, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { y.b.Close() })
	if adapter != "" {
		if err := ops.WriteF32(y.b, y.m.Params, params); err != nil {
			t.Fatal(err)
		}
		y.m.ParamsChanged()
	}
	return y
}

// inference is room for the logits of every token of n.
func inference(n int) qwen2.Options { return qwen2.Options{MaxT: n, Sequences: n, Context: n} }

// training is room for a backward of n tokens.
func training(n int) qwen2.Options { return qwen2.Options{MaxT: n, Training: true} }

func tokens(seqs [][]int32) int { return len(slices.Concat(seqs...)) }

// batch lays sequences end to end. Labels of -100 are not trained on; nil labels ask for every row.
func batch(seqs, labels [][]int32) ops.HostBatch {
	h := ops.HostBatch{SegStart: []int32{0}}
	for i, ids := range seqs {
		start := int32(len(h.IDs))
		for p, id := range ids {
			h.IDs, h.Pos, h.Sample = append(h.IDs, id), append(h.Pos, int32(p)), append(h.Sample, int32(i))
			switch {
			case labels == nil:
				h.Rows, h.Targets = append(h.Rows, start+int32(p)), append(h.Targets, 0)
			case p+1 < len(ids) && labels[i][p+1] != -100:
				h.Rows, h.Targets = append(h.Rows, start+int32(p)), append(h.Targets, labels[i][p+1])
			}
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
	}
	return h
}

// logits of every token of packed sequences.
func (y *tiny) logits(seqs ...[]int32) []float32 {
	y.t.Helper()
	h := batch(seqs, nil)
	y.must(y.m.Load(h))
	y.m.Prefill()
	out, err := ops.ReadF32(y.b, y.m.Logits.Rows(0, len(h.IDs)))
	y.must(err)
	y.must(y.b.Sync())
	return out
}

// gradients of the summed loss of packed rows, each label weighing scale. It returns the sum of the
// losses, so weighed.
func (y *tiny) gradients(scale float64, rows ...ops.HostBatch) (float64, map[string][]float32) {
	y.t.Helper()
	y.b.Zero(y.m.Grads)
	loss := 0.0
	for _, h := range rows {
		h.LossScale = float32(scale)
		y.must(y.m.Load(h))
		y.m.Forward()
		y.m.Backward()
		nll, err := ops.ReadF32(y.b, y.m.NLL.Rows(0, len(h.Rows)))
		y.must(err)
		for _, v := range nll {
			loss += float64(v) * scale
		}
	}
	flat, err := ops.ReadF32(y.b, y.m.Grads)
	y.must(err)
	y.must(y.b.Sync())
	return loss, y.named(flat)
}

func (y *tiny) named(flat []float32) map[string][]float32 {
	all := map[string][]float32{}
	y.set.Named(func(name string, rows, cols, at int) { all[name] = flat[at : at+rows*cols] })
	return all
}

func (y *tiny) must(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

// apart is max|got-want| / max|want|.
func apart(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	diff, most := 0.0, 0.0
	for i := range want {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		diff, most = max(diff, d), max(most, math.Abs(float64(want[i])))
	}
	if most == 0 {
		return diff
	}
	return diff / most
}

// byNorm is |got-want| / |want| over all tensors together.
func byNorm(got, want map[string][]float32) float64 {
	var diff, norm float64
	for name, w := range want {
		for i, v := range w {
			d := float64(got[name][i]) - float64(v)
			diff += d * d
			norm += float64(v) * float64(v)
		}
	}
	return math.Sqrt(diff / norm)
}

// within fails the test where an error is above its bound, and records it where not.
func within(t *testing.T, what string, err, bound float64) {
	t.Helper()
	if !(err <= bound) {
		t.Errorf("%s: off by %.2e, at most %.0e allowed", what, err, bound)
		return
	}
	t.Logf("%s: %.2e (at most %.0e)", what, err, bound)
}

func TestGoldenLogits(t *testing.T) {
	type inputs struct {
		Sequences map[string][]int32 `json:"sequences"`
	}
	compared := 0
	for _, name := range golden.Dirs(t, "models") {
		if !golden.Has(t, "models", name, "golden", "logits.safetensors") {
			continue // a layout of files, tested where they are read
		}
		in := readJSON[inputs](t, golden.Path(t, "models", name, "golden", "inputs.json"))
		longest := 0
		for _, s := range in.Sequences {
			longest = max(longest, len(s))
		}
		y := build(t, name, "", inference(longest))
		for seq, want := range tensors(t, golden.Path(t, "models", name, "golden", "logits.safetensors")) {
			within(t, name+" "+seq, apart(y.logits(in.Sequences[seq]), want), 1e-5)
			compared++
		}
	}
	if compared < 3 {
		t.Errorf("%d sequences compared", compared)
	}
}

// loraInputs is inputs.json of the lora section.
type loraInputs struct {
	InputIDs []int32 `json:"input_ids"`
	Grad     struct {
		InputIDs      [][]int32 `json:"input_ids"`
		AttentionMask [][]int   `json:"attention_mask"`
		Labels        [][]int32 `json:"labels"`
		LabelTokens   int       `json:"n_label_tokens"`
	} `json:"grad_batch"`
	Losses map[string]float64 `json:"losses"`
}

// unpadded drops the padding of a batch.
func unpadded(rows [][]int32, mask [][]int) [][]int32 {
	out := make([][]int32, len(rows))
	for i, row := range rows {
		for j, id := range row {
			if mask[i][j] != 0 {
				out[i] = append(out[i], id)
			}
		}
	}
	return out
}

// adapters calls f for every adapter of the set, blends excepted.
func adapters(t *testing.T, f func(model, name string)) {
	t.Helper()
	for _, model := range golden.Dirs(t, "lora") {
		for _, dir := range golden.Dirs(t, "lora", model) {
			if name, ok := strings.CutPrefix(dir, "adapter_"); ok {
				f(model, name)
			}
		}
	}
}

func TestGoldenAdapterLogits(t *testing.T) {
	compared := 0
	adapters(t, func(model, name string) {
		if !golden.Has(t, "lora", model, "logits.safetensors") {
			return
		}
		compared++
		in := readJSON[loraInputs](t, golden.Path(t, "lora", model, "inputs.json"))
		want := tensors(t, golden.Path(t, "lora", model, "logits.safetensors"))
		y := build(t, model, "lora/"+model+"/adapter_"+name, inference(len(in.InputIDs)))
		within(t, model+" adapter "+name, apart(y.logits(in.InputIDs), want[name]), 1e-5)
		y.m.UseAdapter(false)
		within(t, model+" adapter off", apart(y.logits(in.InputIDs), want["base"]), 1e-5)
	})
	if compared == 0 {
		t.Error("no logits of adapters in the set")
	}
}

func TestGoldenLoRAGradients(t *testing.T) {
	compared := 0
	adapters(t, func(model, name string) {
		if !golden.Has(t, "lora", model, "grads_"+name+".safetensors") {
			return
		}
		compared++
		in := readJSON[loraInputs](t, golden.Path(t, "lora", model, "inputs.json"))
		seqs, labels := unpadded(in.Grad.InputIDs, in.Grad.AttentionMask), unpadded(in.Grad.Labels, in.Grad.AttentionMask)
		y := build(t, model, "lora/"+model+"/adapter_"+name, training(tokens(seqs)))
		loss, grads := y.gradients(1/float64(in.Grad.LabelTokens), batch(seqs, labels))
		within(t, model+" "+name+" loss", math.Abs(loss/in.Losses[name]-1), 1e-5)
		want := tensors(t, golden.Path(t, "lora", model, "grads_"+name+".safetensors"))
		if len(want) != len(grads) {
			t.Fatalf("%d gradients, want %d", len(grads), len(want))
		}
		worst := 0.0
		for tensor, w := range want {
			worst = max(worst, apart(grads[tensor], w))
		}
		within(t, model+" "+name+" gradients", worst, 1e-5)
	})
	if compared == 0 {
		t.Error("no gradients in the set")
	}
}

// With B = 0 an adapter changes no bit.
func TestZeroBChangesNoBit(t *testing.T) {
	in := readJSON[loraInputs](t, golden.Path(t, "lora", "mini", "inputs.json"))
	y := build(t, "mini", "lora/mini/adapter_a", inference(len(in.InputIDs)))
	y.must(ops.WriteF32(y.b, y.m.Params, y.set.Init(7)))
	y.m.ParamsChanged()
	with := y.logits(in.InputIDs)
	y.m.UseAdapter(false)
	if !slices.Equal(with, y.logits(in.InputIDs)) {
		t.Error("logits with B = 0 differ from the base's")
	}
}

func TestGoldenPacking(t *testing.T) {
	type inputs struct {
		Sequences [][]int32 `json:"sequences"`
		Labels    [][]int32 `json:"labels"`
	}
	in := readJSON[inputs](t, golden.Path(t, "packing", "mini", "inputs.json"))
	want := tensors(t, golden.Path(t, "packing", "mini", "logits.safetensors"))
	y := build(t, "mini", "lora/mini/adapter_a", inference(tokens(in.Sequences)))
	packed := y.logits(in.Sequences...)
	within(t, "packed", apart(packed, want["adapter_a.packed"]), 1e-5)
	var alone []float32
	for i, s := range in.Sequences {
		one := y.logits(s)
		within(t, fmt.Sprint("alone ", i), apart(one, want[fmt.Sprint("adapter_a.alone", i)]), 1e-5)
		alone = append(alone, one...)
	}
	if !slices.Equal(packed, alone) {
		t.Error("packed logits differ in some bit from those of the sequences alone")
	}

	z := build(t, "mini", "lora/mini/adapter_a", training(tokens(in.Sequences)))
	_, together := z.gradients(0.025, batch(in.Sequences, in.Labels))
	flat := maps(together)
	var apartRows []ops.HostBatch
	for i := range in.Sequences {
		apartRows = append(apartRows, batch(in.Sequences[i:i+1], in.Labels[i:i+1]))
	}
	_, single := z.gradients(0.025, apartRows...)
	for name := range single {
		within(t, "gradient "+name, apart(flat[name], single[name]), 1e-6)
	}
}

// maps copies gradients out of the buffer the next ones overwrite.
func maps(m map[string][]float32) map[string][]float32 {
	out := map[string][]float32{}
	for k, v := range m {
		out[k] = slices.Clone(v)
	}
	return out
}

// trace is trace.json: what Trainer logged.
type trace struct {
	Hyper struct {
		Base        string     `json:"base"`
		Betas       [2]float64 `json:"betas"`
		Eps         float64    `json:"eps"`
		LR          float64    `json:"lr"`
		MaxGradNorm float64    `json:"max_grad_norm"`
		Steps       int        `json:"steps"`
		Warmup      int        `json:"warmup_steps"`
		WeightDecay float64    `json:"weight_decay"`
	} `json:"hyper"`
	Trace []struct {
		GradNorm float64 `json:"grad_norm"`
		Loss     float64 `json:"loss"`
		LR       float64 `json:"lr"`
		NumItems int     `json:"num_items"`
	} `json:"trace"`
}

type traceBatches struct {
	Steps []struct {
		Micro []struct {
			AttentionMask [][]int   `json:"attention_mask"`
			InputIDs      [][]int32 `json:"input_ids"`
			Labels        [][]int32 `json:"labels"`
		} `json:"micro"`
	} `json:"steps"`
}

// 32 steps of transformers' Trainer, two micro-batches each, step by step.
func TestGoldenTraining(t *testing.T) {
	for _, name := range golden.Dirs(t, "train") {
		t.Run(name, func(t *testing.T) { goldenTraining(t, name) })
	}
}

func goldenTraining(t *testing.T, name string) {
	tr := readJSON[trace](t, golden.Path(t, "train", name, "trace.json"))
	in := readJSON[traceBatches](t, golden.Path(t, "train", name, "batches.json"))
	rows := make([]ops.HostBatch, len(in.Steps))
	longest := 0
	for i, step := range in.Steps {
		var seqs, labels [][]int32
		for _, micro := range step.Micro {
			seqs = append(seqs, unpadded(micro.InputIDs, micro.AttentionMask)...)
			labels = append(labels, unpadded(micro.Labels, micro.AttentionMask)...)
		}
		rows[i], longest = batch(seqs, labels), max(longest, tokens(seqs))
	}
	y := build(t, tr.Hyper.Base, "train/"+name+"/adapter_init", training(longest))
	h, m, saved := tr.Hyper, y.m, 0
	for i, row := range rows {
		want := tr.Trace[i]
		loss, _ := y.gradients(1/float64(want.NumItems), row)
		y.b.GradNorm(m.Norm, m.Grads)
		y.b.AdamW(m.Params, m.Moment1, m.Moment2, m.Grads, m.Norm, ops.AdamWArgs{Step: i + 1, Beta1: h.Betas[0], Beta2: h.Betas[1],
			Eps: h.Eps, MaxNorm: h.MaxGradNorm, Groups: y.set.Groups(want.LR, h.WeightDecay, 1)})
		m.ParamsChanged()
		norm, err := ops.ReadF32(y.b, m.Norm)
		y.must(err)
		if e := math.Abs(loss/want.Loss - 1); !(e <= 1e-5) {
			t.Errorf("step %d: loss %.7f, want %.7f (off by %.1e)", i+1, loss, want.Loss, e)
		}
		if e := math.Abs(float64(norm[0])/want.GradNorm - 1); !(e <= 1e-5) {
			t.Errorf("step %d: gradient norm %.7f, want %.7f (off by %.1e)", i+1, norm[0], want.GradNorm, e)
		}
		if i == 0 {
			y.moments(golden.Path(t, "train", name, "adam_step1.safetensors"))
		}
		file := []string{"train", name, fmt.Sprintf("adapter_step%d", i+1), lora.WeightsFile}
		if golden.Has(t, file...) {
			saved++
			params, err := ops.ReadF32(y.b, m.Params)
			y.must(err)
			within(t, fmt.Sprintf("adapter after step %d", i+1), byNorm(y.named(params), tensors(t, golden.Path(t, file...))), 1e-4)
		}
	}
	if saved < 3 {
		t.Errorf("%d adapters compared, of steps 2, 8 and 32 at least", saved)
	}
}

// moments compares AdamW's moments with a golden file's.
func (y *tiny) moments(path string) {
	want := tensors(y.t, path)
	for suffix, tensor := range map[string]ops.Tensor{".exp_avg": y.m.Moment1, ".exp_avg_sq": y.m.Moment2} {
		flat, err := ops.ReadF32(y.b, tensor)
		y.must(err)
		some := map[string][]float32{}
		for name, w := range want {
			if strings.HasSuffix(name, suffix) {
				some[strings.TrimSuffix(name, suffix)] = w
			}
		}
		within(y.t, "moments"+suffix, byNorm(y.named(flat), some), 1e-4)
	}
}

// greedyRun is one prompt of greedy.json.
type greedyRun struct {
	NewIDs []int32   `json:"new_ids"`
	Prompt int       `json:"prompt"`
	Margin []float64 `json:"top1_minus_top2"`
}

func TestGoldenGreedy(t *testing.T) {
	type file struct {
		NewTokens int                    `json:"new_tokens"`
		Prompts   [][]int32              `json:"prompts"`
		Runs      map[string][]greedyRun `json:"runs"`
	}
	for _, model := range golden.Dirs(t, "generation") {
		in := readJSON[file](t, golden.Path(t, "generation", model, "greedy.json"))
		room := tokens(in.Prompts) + in.NewTokens
		for run, answers := range in.Runs {
			adapter := ""
			if run != "base" {
				adapter = "lora/" + model + "/" + run
			}
			y := build(t, model, adapter, inference(room))
			g := infer.New(y.b, y.m, len(in.Prompts), room)
			got, err := g.Generate(t.Context(), in.Prompts, infer.Options{MaxNewTokens: in.NewTokens}, infer.Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range answers {
				sure := len(a.NewIDs) // compared up to the first pick that rounding could turn
				for i, margin := range a.Margin {
					if margin < 1e-3 {
						sure = i
						break
					}
				}
				if sure == 0 || !slices.Equal(got[a.Prompt].IDs[:sure], a.NewIDs[:sure]) {
					t.Errorf("%s %s prompt %d: %v, want %v", model, run, a.Prompt, got[a.Prompt].IDs, a.NewIDs[:sure])
				}
			}
		}
	}
}
