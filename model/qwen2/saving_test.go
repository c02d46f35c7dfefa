package qwen2_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/lora"
	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// run is a model in training, with an adapter whose A and B are random and whose dropout is on.
type run struct {
	t *testing.T
	b *watched
	m *qwen2.Model
}

// watched notes what is transferred.
type watched struct {
	ops.Backend
	sent, fetched, pending int
	host                   map[ops.Buffer]bool
}

func (w *watched) NewHostArena(bytes int64) (ops.Buffer, error) {
	a, err := w.Backend.NewHostArena(bytes)
	w.host[a] = true
	return a, err
}

func (w *watched) Transfer(dst, src ops.Tensor) {
	if w.host[dst.Buf] {
		w.sent++
	} else {
		w.fetched++
	}
	w.pending++
	w.Backend.Transfer(dst, src)
}

func (w *watched) AwaitTransfers() { w.pending = 0; w.Backend.AwaitTransfers() }

func newRun(t *testing.T, src *weights.Model, targets []string, o qwen2.Options) *run {
	t.Helper()
	set, err := lora.New(src.Config, lora.Config{R: 4, Alpha: 8, Dropout: 0.25, Targets: targets})
	if err != nil {
		t.Fatal(err)
	}
	o.Adapter, o.Training = set, true
	r := &run{t: t, b: &watched{Backend: cpu.New[float32](), host: map[ops.Buffer]bool{}}}
	if r.m, err = qwen2.Build(r.b, src, o); err != nil {
		t.Fatal(err)
	}
	params, rng := make([]float32, set.Len()), rand.New(rand.NewPCG(1, 2))
	for i := range params {
		params[i] = float32(rng.NormFloat64()) * 0.05
	}
	r.must(ops.WriteF32(r.b, r.m.Params, params))
	r.m.ParamsChanged()
	t.Cleanup(func() { r.b.Close() })
	return r
}

func (r *run) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// step runs forward and backward, and returns gradients and losses as they lie in memory.
func (r *run) step(h ops.HostBatch) []byte {
	r.t.Helper()
	r.b.Zero(r.m.Grads)
	r.must(r.m.Load(h))
	r.m.Forward()
	r.m.Backward()
	grads := make([]byte, r.m.Grads.Bytes())
	r.must(r.b.Read(grads, r.m.Grads))
	nll := make([]byte, r.m.NLL.Rows(0, len(h.Rows)).Bytes())
	r.must(r.b.Read(nll, r.m.NLL.Rows(0, len(h.Rows))))
	r.must(r.b.Sync())
	return append(grads, nll...)
}

// randomBatch is T random tokens in segments of uneven length, a label at every third.
func randomBatch(T, vocab int) ops.HostBatch {
	rng := rand.New(rand.NewPCG(uint64(T), 7))
	h := ops.HostBatch{SegStart: []int32{0}, Seed: 3, Step: 5, LossScale: 0.01}
	for len(h.IDs) < T {
		n := min(T-len(h.IDs), 1+rng.IntN(400))
		for p := range n {
			h.IDs, h.Pos, h.Sample = append(h.IDs, int32(rng.IntN(vocab))), append(h.Pos, int32(p)), append(h.Sample, int32(len(h.SegStart)))
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
	}
	for i := 0; i < T; i += 3 {
		h.Rows, h.Targets = append(h.Rows, int32(i)), append(h.Targets, int32(rng.IntN(vocab)))
	}
	return h
}

func opened(t *testing.T, model string) *weights.Model {
	t.Helper()
	src, err := weights.Open(golden.Path(t, "models", model))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// Every way of keeping less gives the bits of keeping everything, in less memory than the one before it in its row.
func TestSavingChangesNoBit(t *testing.T) {
	src := opened(t, "mini_untied")
	L := src.Config.NumHiddenLayers
	const most = 1300
	for _, targets := range [][]string{{lora.AllLinear}, {"q_proj", "down_proj"}} {
		base := newRun(t, src, targets, qwen2.Options{DType: ops.BF16, MaxT: most, MaxS: most, MaxN: most})
		want := map[int][]byte{}
		lengths := []int{most, 1025, 769, 3}
		for _, T := range lengths {
			want[T] = base.step(randomBatch(T, src.Config.VocabSize))
		}
		for _, how := range []qwen2.Saving{
			{GateUp: 1}, {GateUp: L},
			{GateUp: L, Tile: 512}, {GateUp: L, Tile: 768},
			{GateUp: 2, Whole: 1}, {GateUp: L, Whole: L},
			{GateUp: L, Whole: L, Tile: 512},
			{HostEmbedding: true},
			{Offload: 1}, {Offload: L - 1}, {Offload: L},
			{GateUp: L, Offload: L}, {GateUp: L, Whole: 1, Offload: 2},
			{GateUp: L, Whole: L, Tile: 512, HostEmbedding: true, Offload: L},
		} {
			r := newRun(t, src, targets, qwen2.Options{DType: ops.BF16, MaxT: most, MaxS: most, MaxN: most, Saving: how})
			for _, T := range lengths {
				if got := r.step(randomBatch(T, src.Config.VocabSize)); !bytes.Equal(got, want[T]) {
					t.Errorf("%v, %+v, %d tokens: other bits than with everything kept", targets, how, T)
				}
			}
			if r.m.Plan.Bytes >= base.m.Plan.Bytes {
				t.Errorf("%+v: %d bytes, no less than the %d of keeping everything", how, r.m.Plan.Bytes, base.m.Plan.Bytes)
			}
			if (r.b.sent > 0) != (how.Offload > 0) || r.b.sent != r.b.fetched || r.b.pending != 0 {
				t.Errorf("%+v: %d tensors sent, %d fetched, %d not waited for", how, r.b.sent, r.b.fetched, r.b.pending)
			}
		}
	}
}

// What does not fit the model or the run is refused, not ignored.
func TestSavingRefuses(t *testing.T) {
	for _, c := range []struct {
		model string
		how   qwen2.Saving
		want  string
	}{
		{"mini_untied", qwen2.Saving{GateUp: 4}, "must be 0 to 3"},
		{"mini_untied", qwen2.Saving{Whole: 1}, "must be 0 to 0"},
		{"mini_untied", qwen2.Saving{Offload: -1}, "must be 0 to 3"},
		{"mini_untied", qwen2.Saving{GateUp: 3, Tile: 256}, "at least 512"},
		{"mini_untied", qwen2.Saving{GateUp: 2, Tile: 512}, "in all 3 layers"},
		{"mini", qwen2.Saving{HostEmbedding: true}, "is the head too"},
	} {
		src := opened(t, c.model)
		_, err := qwen2.Buffers(cpu.New[float32](), src, qwen2.Options{DType: ops.BF16, Training: true, MaxT: 8, MaxS: 1, MaxN: 8, Saving: c.how})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: %v, want an error with %q", c.model, c.how, err, c.want)
		}
	}
}

// Every buffer of a run is written to its last byte, and so each category as far as it is planned.
func TestHighWater(t *testing.T) {
	src := opened(t, "mini_untied")
	L := src.Config.NumHiddenLayers
	const T = 1024
	for _, how := range []qwen2.Saving{{}, {GateUp: L, Tile: 512}, {GateUp: 2, Whole: 1, HostEmbedding: true, Offload: 2}} {
		h := randomBatch(T, src.Config.VocabSize)
		S, N := len(h.SegStart)-1, len(h.Rows)
		o := qwen2.Options{DType: ops.BF16, MaxT: T, MaxS: S, MaxN: N, Saving: how, Watch: true}
		r := newRun(t, src, []string{lora.AllLinear}, o)
		r.step(h)
		r.b.GradNorm(r.m.Norm, r.m.Grads)
		r.b.AdamW(r.m.Params, r.m.Moment1, r.m.Moment2, r.m.Grads, r.m.Norm, ops.AdamWArgs{Step: 1, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8,
			Groups: []ops.LRGroup{{Len: r.m.Params.Len(), LR: 1e-4}}})
		marks, err := r.m.HighWater()
		r.must(err)
		for _, mark := range marks {
			if mark.Category == memory.Weights && mark.Written == 0 { // the processor's own memory
				continue
			}
			if mark.Written != mark.Bytes {
				t.Errorf("%+v: %s (%v): %d of %d bytes written", how, mark.Name, mark.Category, mark.Written, mark.Bytes)
			}
		}
		for _, c := range memory.Categories() {
			if planned, written := qwen2.Peaks(marks, c); c != memory.Weights && planned != written {
				t.Errorf("%+v: %v: %d bytes planned, %d written", how, c, planned, written)
			}
		}
	}
}

// A buffer larger than what is written of it is seen.
func TestHighWaterSeesSlack(t *testing.T) {
	src := opened(t, "mini_untied")
	r := newRun(t, src, []string{lora.AllLinear}, qwen2.Options{DType: ops.BF16, MaxT: 600, MaxS: 600, MaxN: 600, Watch: true})
	r.step(randomBatch(599, src.Config.VocabSize))
	marks, err := r.m.HighWater()
	r.must(err)
	if planned, written := qwen2.Peaks(marks, memory.Activations); written >= planned || written < planned*9/10 {
		t.Errorf("a row of 599 tokens in room for 600: %d bytes planned, %d written", planned, written)
	}
}
