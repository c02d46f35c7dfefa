//go:build cuda

package cuda

import (
	"testing"

	"qlora/cuda/sizes"
	"qlora/model/ops"
)

// TestSizes holds the sizes that a plan is made by to what the launchers ask for.
func TestSizes(t *testing.T) {
	var c launcherWork
	same := func(what string, got, want int64, of ...int) {
		t.Helper()
		if got != want {
			t.Errorf("%s %v: %d bytes planned, the launcher takes %d", what, of, got, want)
		}
	}
	for _, m := range []struct {
		C, F, V int
		h       ops.Heads
	}{{896, 4864, 151936, ops.Heads{H: 14, Hk: 2, D: 64}}, {3584, 18944, 152064, ops.Heads{H: 28, Hk: 4, D: 128}}, {5120, 27648, 152064, ops.Heads{H: 40, Hk: 8, D: 128}}, {576, 1536, 49152, ops.Heads{H: 9, Hk: 3, D: 64}}} {
		for _, T := range []int{1, 2, 63, 255, 256, 257, 1000, 1024, 2048, 8192, 65536, 131072} {
			same("head loss", sizes.HeadLoss(T, m.C, m.V), c.headLoss(T, m.C, m.V), T, m.C, m.V)
			same("kl", sizes.KL(min(T, 64), m.V), c.kl(min(T, 64), m.V), T, m.V)
			same("sample", sizes.Sample(min(T, 16), m.V), c.sample(min(T, 16), m.V), T, m.V)
			same("nf4 absmax", sizes.NF4Absmax(int64(T)*100), c.nf4Absmax(int64(T)*100), T)
			for _, cap := range []int{16, 300, 4096, 32768, 131072} {
				same("decode attention", sizes.DecodeAttention(min(T, 64), m.h, cap), c.decodeAttention(min(T, 64), m.h, cap), T, cap)
			}
			for _, S := range []int{1, 2, 64, T} {
				same("attention plan", sizes.AttentionPlan(T, S, m.h), c.attentionPlan(T, S, m.h), T, S)
				for _, multiprocessors := range []int{82, 108, 114, 128, 132, 170} {
					same("attention backward", sizes.AttentionBack(T, S, m.h, multiprocessors), c.attentionBack(T, S, m.h, multiprocessors), T, S, multiprocessors)
				}
			}
			for _, rank := range []int{1, 8, 9, 16, 17, 24, 32, 33, 64} {
				same("swiglu backward", sizes.SwiGLUBack(T, m.F, rank), c.swigluBack(T, m.F, rank), T, m.F, rank)
				same("lora gradients", sizes.LoRAGrad(T, m.C, 3*rank), c.loraGrad(T, m.C, 3*rank), T, m.C, rank)
			}
		}
	}
	if most := int64(1) << 33; c.gradNorm(most) > 1<<20 {
		t.Errorf("the gradient norm of %d parameters takes %d bytes, which nothing in a plan bounds", most, c.gradNorm(most))
	}
}

// TestCardSizes holds the plan of a whole workspace to the backend's.
func TestCardSizes(t *testing.T) {
	b, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d := ops.Dims{T: 2048, S: 1, N: 2048, C: 3584, F: 18944, V: 152064, H: 28, Hk: 4, D: 128, Width: 24, Rank: 8, Training: true, Quantized: true}
	if got, want := b.WorkspaceBytes(d), (sizes.Card{Multiprocessors: b.Card().Multiprocessors}).WorkspaceBytes(d); got != want || b.Card().Multiprocessors < 1 {
		t.Errorf("%d bytes, planned %d for %d multiprocessors", got, want, b.Card().Multiprocessors)
	}
}
