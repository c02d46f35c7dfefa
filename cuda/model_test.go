//go:build cuda

package cuda_test

import (
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"qlora/model/cpu"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/tokenizer"
	"qlora/model/train"
	"qlora/model/weights"
)

var (
	modelFlag  = flag.String("model", "", "a real model for TestCardModel and TestCardSteps: a .gguf file")
	lossesFlag = flag.String("losses", "", "a file for the losses of TestCardSteps: of the card, of bf16 and of float32 on the processor")
)

// rounded is the processor with activations in bf16, as the card has them: what is left is the order of sums.
type rounded struct{ *cpu.Backend[float32] }

func (rounded) Activation(ops.DType) ops.DType { return ops.BF16 }

// realModel opens the model of -model, and its own rows of the builtin dataset.
func realModel(t *testing.T) (*weights.Model, data.Samples) {
	t.Helper()
	if *modelFlag == "" {
		t.Skip("-model names no model")
	}
	src, err := weights.Open(*modelFlag)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src, identity(t, src)
}

// TestCardModel holds the logits of a real model, at every token of its own language, to those of the processor in
// float32: FlashAttention's rule, the card at most twice as far off as the processor is when it stores what the card
// stores, in bf16. The rule is of the largest error; the mean keeps the same bound. The most likely tokens must be the
// same wherever the float32 model prefers one by more than the largest error of two logits.
func TestCardModel(t *testing.T) {
	src, samples := realModel(t)
	card := open(t)
	defer card.Close()
	vocab := src.Config.VocabSize

	want := prefill(t, cpu.New[float32](), src, ops.F32, samples)
	reference := prefill(t, rounded{cpu.New[float32]()}, src, ops.BF16, samples)
	got := prefill(t, card, src, ops.BF16, samples)

	gotMax, gotMean := distance(got, want)
	refMax, refMean := distance(reference, want)
	t.Logf("%d tokens of %d logits: the card is %.4f off at most, %.5f in the mean; bf16 on the processor %.4f, %.5f", len(want)/vocab, vocab, gotMax, gotMean, refMax, refMean)
	if gotMax == 0 {
		t.Error("no difference at all: the card's logits are those of float32")
	}
	if gotMax > 2*refMax || gotMean > 2*refMean || math.IsNaN(gotMean) {
		t.Error("the card is more than twice as far off as bf16 on the processor")
	}
	for at := 0; at < len(want); at += vocab {
		best, next := topTwo(want[at : at+vocab])
		mine, _ := topTwo(got[at : at+vocab])
		if margin := want[at+best] - want[at+next]; mine != best && float64(margin) > 2*refMax {
			t.Errorf("token %d: %d is the likeliest, by %.3f, and the card says %d", at/vocab, best, margin, mine)
		}
	}
}

// TestCardSteps trains a real model for 100 steps and holds each loss to that of the processor in float32: at most 0.01
// away, 0.003 in the mean. A model whose losses move by more than that in bf16 wherever it is computed is held to
// FlashAttention's rule: the card at most twice as far away as the processor is with what it stores in bf16.
func TestCardSteps(t *testing.T) {
	src, samples := realModel(t)
	card := open(t)
	defer card.Close()
	got := losses(t, card, src, ops.BF16, samples)
	reference := losses(t, rounded{cpu.New[float32]()}, src, ops.BF16, samples)
	want := losses(t, cpu.New[float32](), src, ops.F32, samples)
	if *lossesFlag != "" {
		var table strings.Builder
		for i := range want {
			fmt.Fprintf(&table, "%g\t%g\t%g\n", got[i], reference[i], want[i])
		}
		if err := os.WriteFile(*lossesFlag, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	gotMax, gotMean := distance(got, want)
	refMax, refMean := distance(reference, want)
	t.Logf("%d losses, the last %.4f: the card is %.5f away at most, %.5f in the mean; bf16 on the processor %.5f, %.5f", len(want), want[len(want)-1], gotMax, gotMean, refMax, refMean)
	if gotMax == 0 || want[len(want)-1] > want[0]/2 {
		t.Error("the losses are the same to the bit, or nothing was learnt: this proves nothing")
	}
	if !(gotMax <= max(0.01, 2*refMax) && gotMean <= max(0.003, 2*refMean)) {
		t.Error("the card's losses are too far away")
	}
}

// losses of 100 steps, 2 samples each, with dropout.
func losses(t *testing.T, b ops.Backend, src *weights.Model, d ops.DType, samples data.Samples) []float64 {
	t.Helper()
	defer runtime.GC() // the weights of one backend before those of the next
	set, err := lora.New(src.Config, lora.Config{R: 8, Alpha: 32, Dropout: 0.05, Targets: []string{lora.AllLinear}})
	if err != nil {
		t.Fatal(err)
	}
	var all []float64
	run := &train.Run{Backend: b, Set: set, Base: lora.Base{Name: "model", Fingerprint: "none"}, Samples: samples, Dir: t.TempDir(), Args: []byte("{}\n"),
		Hooks: train.Hooks{Step: func(p train.Progress) { all = append(all, p.Loss) }},
		Options: train.Options{MaxSteps: 100, StepSamples: 2, LearningRate: 1e-4, WeightDecay: 0.1, LRRatio: 1, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, MaxGradNorm: 1,
			Schedule: "cosine", WarmupRatio: 0.05, Seed: 42, DataSeed: 42, Shuffle: true, LoggingSteps: 1, EvalStrategy: train.Never, SaveStrategy: train.Never,
			Pad: data.Pad{Multiple: 8}}}
	maxT, maxS, maxN := train.Room(run.Samples, nil, run.Options.StepSamples, 0, run.Options.Pad)
	if run.Model, err = qwen2.Build(b, src, qwen2.Options{DType: d, Training: true, MaxT: maxT, MaxS: maxS, MaxN: maxN, Adapter: set}); err != nil {
		t.Fatal(err)
	}
	if err := ops.WriteF32(b, run.Model.Params, set.Init(42)); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Start(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	return all
}

// identity is the builtin dataset in the model's language.
func identity(t *testing.T, src *weights.Model) data.Samples {
	t.Helper()
	g := src.GGUF()
	if g == nil {
		t.Fatalf("%s is no .gguf file", *modelFlag)
	}
	v, err := g.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.FromVocab(tokenizer.Vocab{Pre: v.Pre, Tokens: v.Tokens, Types: v.Types, Merges: v.Merges,
		BOS: int32(v.BOS), EOS: int32(v.EOS), Pad: int32(v.Pad)})
	if err != nil {
		t.Fatal(err)
	}
	template, err := data.RecognizeTemplate(v.ChatTemplate)
	if err != nil {
		t.Fatal(err)
	}
	chat, err := data.NewChat(template, tok)
	if err != nil {
		t.Fatal(err)
	}
	samples, _, err := data.Load([]string{data.SelfCognition}, chat, data.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return samples
}

// prefill returns the logits of every token of every sample.
func prefill(t *testing.T, b ops.Backend, src *weights.Model, d ops.DType, samples []data.Sample) []float32 {
	t.Helper()
	defer runtime.GC() // the weights of one backend before those of the next
	n := 0
	for _, s := range samples {
		n = max(n, len(s.IDs))
	}
	m, err := qwen2.Build(b, src, qwen2.Options{DType: d, MaxT: n, MaxS: 1, MaxN: n, Sequences: n, Context: n})
	if err != nil {
		t.Fatal(err)
	}
	var all []float32
	for _, s := range samples {
		h := ops.HostBatch{IDs: s.IDs, SegStart: []int32{0, int32(len(s.IDs))}, Sample: make([]int32, len(s.IDs)), Targets: make([]int32, len(s.IDs))}
		for p := range s.IDs {
			h.Pos, h.Rows = append(h.Pos, int32(p)), append(h.Rows, int32(p))
		}
		if err := m.Load(h); err != nil {
			t.Fatal(err)
		}
		m.Prefill()
		logits, err := ops.ReadF32(b, m.Logits.Rows(0, len(s.IDs)))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		all = append(all, logits...)
	}
	return all
}

// distance of two lists: the largest, and the mean.
func distance[T float32 | float64](a, b []T) (most, mean float64) {
	for i := range a {
		d := math.Abs(float64(a[i]) - float64(b[i]))
		most, mean = max(most, d), mean+d
	}
	return most, mean / float64(len(a))
}

// topTwo returns where the two largest values lie.
func topTwo(v []float32) (best, next int) {
	next = -1
	for i := range v {
		switch {
		case v[i] > v[best]:
			best, next = i, best
		case i != best && (next < 0 || v[i] > v[next]):
			next = i
		}
	}
	return best, next
}
