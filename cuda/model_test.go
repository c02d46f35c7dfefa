//go:build cuda

package cuda_test

import (
	"flag"
	"math"
	"runtime"
	"testing"

	"qlora/model/cpu"
	"qlora/model/data"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/tokenizer"
	"qlora/model/weights"
)

var modelFlag = flag.String("model", "", "a real model for TestCardModel: a .gguf file")

// TestCardModel holds the logits of a real model, at every token of its own language, to those of the processor in
// float32: FlashAttention's rule, the card at most twice as far off as the processor is when it stores what the card
// stores, in bf16. The rule is of the largest error; the mean keeps the same bound. The most likely tokens must be the
// same wherever the float32 model prefers one by more than the largest error of two logits.
func TestCardModel(t *testing.T) {
	if *modelFlag == "" {
		t.Skip("-model names no model")
	}
	card := open(t)
	defer card.Close()
	src, err := weights.Open(*modelFlag)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	samples := identity(t, src)
	vocab := src.Config.VocabSize

	want := prefill(t, cpu.New[float32](), src, ops.F32, samples)
	rounded := prefill(t, cpu.New[float32](), src, ops.BF16, samples)
	got := prefill(t, card, src, ops.BF16, samples)

	gotMax, gotMean := distance(got, want)
	refMax, refMean := distance(rounded, want)
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

// identity is the builtin dataset in the model's language.
func identity(t *testing.T, src *weights.Model) []data.Sample {
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

// distance of two lists of logits: the largest, and the mean.
func distance(a, b []float32) (most, mean float64) {
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
