package infer_test

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/model/cpu"
	"qlora/model/infer"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

const sequences, positions = 3, 64

// generator is one on the mini golden model, whose batches hold at most room tokens.
func generator(t *testing.T, room int) *infer.Generator {
	t.Helper()
	return generatorOn(t, cpu.New[float32](), room)
}

func generatorOn(t *testing.T, b ops.Backend, room int) *infer.Generator {
	t.Helper()
	src, err := weights.Open(filepath.Join("..", "..", "testdata", "golden", "models", "mini"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	t.Cleanup(func() { b.Close() })
	m, err := qwen2.Build(b, src, qwen2.Options{DType: ops.F32, MaxT: room, MaxS: sequences, MaxN: sequences, Sequences: sequences, Context: positions})
	if err != nil {
		t.Fatal(err)
	}
	return infer.New(b, m, sequences, positions)
}

var prompts = [][]int32{{494, 262, 70}, {446, 398, 244, 135, 178, 214, 348, 340, 507, 270, 488, 343}, {249, 108, 415, 38, 7}}

func ids(answers []infer.Answer) [][]int32 {
	var all [][]int32
	for _, a := range answers {
		all = append(all, a.IDs)
	}
	return all
}

func equal(a, b [][]int32) bool { return slices.EqualFunc(a, b, slices.Equal[[]int32]) }

// However prompts are cut into batches, together or alone, the answers are the same.
func TestAnswersDoNotDependOnBatching(t *testing.T) {
	o := infer.Options{MaxNewTokens: 12, RepetitionPenalty: 1.3}
	whole, err := generator(t, 64).Generate(t.Context(), prompts, o, infer.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	for _, room := range []int{3, 4, 7, 19} {
		got, err := generator(t, room).Generate(t.Context(), prompts, o, infer.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		if !equal(ids(got), ids(whole)) {
			t.Errorf("batches of %d tokens: %v, want %v", room, ids(got), ids(whole))
		}
	}
	g := generator(t, 64)
	for i, p := range prompts {
		g.Reset()
		got, err := g.Generate(t.Context(), [][]int32{p}, o, infer.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got[0].IDs, whole[i].IDs) {
			t.Errorf("prompt %d alone: %v, together %v", i, got[0].IDs, whole[i].IDs)
		}
	}
}

// A turn that goes on from what is cached answers as one that starts afresh.
func TestCachedTurns(t *testing.T) {
	o := infer.Options{MaxNewTokens: 5}
	g := generator(t, 64)
	first, err := g.Generate(t.Context(), prompts[:1], o, infer.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	next := append(slices.Concat(prompts[0], first[0].IDs), 17, 23, 5)
	for _, prompt := range [][]int32{next, next[:5], next} {
		cached, err := g.Generate(t.Context(), [][]int32{prompt}, o, infer.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := generator(t, 64).Generate(t.Context(), [][]int32{prompt}, o, infer.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(cached[0].IDs, fresh[0].IDs) {
			t.Errorf("after a cached turn %v, afresh %v", cached[0].IDs, fresh[0].IDs)
		}
	}
}

func TestEnds(t *testing.T) {
	g := generator(t, 64)
	all, err := g.Generate(t.Context(), prompts[1:2], infer.Options{}, infer.Hooks{}) // until the context is full
	if err != nil {
		t.Fatal(err)
	}
	if n := len(prompts[1]) + len(all[0].IDs); n != positions || all[0].Reason != infer.Full {
		t.Errorf("%d tokens of %d, %s", n, positions, all[0].Reason)
	}
	var seen []int32
	stop := all[0].IDs[3]
	cut := slices.Index(all[0].IDs, stop)
	g.Reset()
	some, err := g.Generate(t.Context(), prompts[1:2], infer.Options{StopIDs: []int32{stop}}, infer.Hooks{Token: func(_ int, id int32) bool {
		seen = append(seen, id)
		return false
	}})
	if err != nil {
		t.Fatal(err)
	}
	if some[0].Reason != infer.Stop || !slices.Equal(some[0].IDs, all[0].IDs[:cut]) || !slices.Equal(seen, some[0].IDs) {
		t.Errorf("stop at %d: %v %s, streamed %v; want %v", stop, some[0].IDs, some[0].Reason, seen, all[0].IDs[:cut])
	}
}

// More prompts than there are sequences: a prompt takes the place of the first that has its answer, and every answer is
// what it is alone, greedy or drawn.
func TestManyPrompts(t *testing.T) {
	var many [][]int32
	for i := range int32(11) {
		many = append(many, append(slices.Clone(prompts[i%3]), i, 2*i+1))
	}
	for _, o := range []infer.Options{{}, {Temperature: 1.2, TopK: 40, Seed: 9}} {
		o.MaxNewTokens = 9
		stops := func(_ int, id int32) bool { return id%5 == 0 } // so that answers differ in length
		var order []int
		got, err := generator(t, 20).Generate(t.Context(), many, o, infer.Hooks{Token: stops, Done: func(i int, a infer.Answer) error {
			order = append(order, i)
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range many {
			o.First = uint32(i)
			alone, err := generator(t, 64).Generate(t.Context(), [][]int32{p}, o, infer.Hooks{Token: stops})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(alone[0].IDs, got[i].IDs) || alone[0].Reason != got[i].Reason {
				t.Errorf("prompt %d: %v %s, alone %v %s", i, got[i].IDs, got[i].Reason, alone[0].IDs, alone[0].Reason)
			}
		}
		if slices.IsSorted(order) || len(order) != len(many) {
			t.Errorf("answers came in the order %v: none overtook another", order)
		}
	}
	o := infer.Options{MaxNewTokens: 1}
	full := errors.New("full")
	if _, err := generator(t, 64).Generate(t.Context(), prompts, o, infer.Hooks{Done: func(int, infer.Answer) error { return full }}); err != full {
		t.Errorf("an error of Done: %v", err)
	}
}

func TestSamplingIsSeeded(t *testing.T) {
	o := infer.Options{MaxNewTokens: 20, Temperature: 1.5, TopK: 50, TopP: 0.95, Seed: 1}
	var all [][]int32
	for _, seed := range []uint32{1, 1, 2} {
		o.Seed = seed
		a, err := generator(t, 64).Generate(t.Context(), prompts[:1], o, infer.Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a[0].IDs)
	}
	if !slices.Equal(all[0], all[1]) || slices.Equal(all[0], all[2]) {
		t.Errorf("seeds 1, 1, 2 gave %v", all)
	}
}

func TestPromptsThatCannotBeAnswered(t *testing.T) {
	g := generator(t, 64)
	long := make([]int32, positions)
	for name, p := range map[string][][]int32{"no room": {long}, "no tokens": {{}}} {
		if _, err := g.Generate(t.Context(), p, infer.Options{MaxNewTokens: 1}, infer.Hooks{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	a, err := g.Generate(ctx, prompts[:1], infer.Options{}, infer.Hooks{Token: func(int, int32) bool {
		if n++; n == 4 {
			cancel()
		}
		return false
	}})
	if !errors.Is(err, context.Canceled) || len(a[0].IDs) != 4 {
		t.Errorf("cancelled after 4 tokens: %v, %v", a, err)
	}
}

// broken is a backend whose logits are no numbers.
type broken struct{ ops.Backend }

func (b broken) Logits(logits, _ ops.Tensor, _ ops.Weight, _ *ops.Batch) {
	nan := make([]float32, logits.Len())
	for i := range nan {
		nan[i] = float32(math.NaN())
	}
	if err := ops.WriteF32(b.Backend, logits, nan); err != nil {
		panic(err)
	}
}

// A model that computes no numbers is an error that names the prompt, not a token.
func TestBrokenLogits(t *testing.T) {
	for _, temperature := range []float64{0, 1} {
		answers, err := generatorOn(t, broken{cpu.New[float32]()}, 64).Generate(t.Context(), prompts, infer.Options{Temperature: temperature}, infer.Hooks{})
		if err == nil || !strings.Contains(err.Error(), "prompt 1") {
			t.Errorf("temperature %g: error %v", temperature, err)
		}
		if len(answers) != len(prompts) || len(answers[0].IDs) != 0 {
			t.Errorf("temperature %g: answers %v", temperature, answers)
		}
	}
}
