package cpu

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"qlora/internal/golden"
	"qlora/model/ops"
)

// TestSamplingGolden runs every stage on what transformers gave it, and compares what it gave back.
func TestSamplingGolden(t *testing.T) {
	for _, model := range []string{"mini", "mini_untied"} {
		t.Run(model, func(t *testing.T) {
			text, err := os.ReadFile(golden.Path(t, "generation", model, "sampling.json"))
			if err != nil {
				t.Fatal(err)
			}
			var index struct {
				Cases map[string]struct {
					Context []int32 `json:"context_ids"`
					Kept    int
				}
				Params struct {
					RepetitionPenalty float64 `json:"repetition_penalty"`
					Temperature       float64
					TopK              int     `json:"top_k"`
					TopP              float64 `json:"top_p"`
				}
			}
			if err := json.Unmarshal(text, &index); err != nil {
				t.Fatal(err)
			}
			if len(index.Cases) == 0 {
				t.Fatal("sampling.json holds no cases")
			}
			b := New[float32]()
			g := goldenTensors(t, b, "generation", model, "sampling.safetensors")
			for name, c := range index.Cases {
				t.Run(name, func(t *testing.T) {
					a := ops.SampleArgs{
						Temperature: index.Params.Temperature, TopK: index.Params.TopK, TopP: index.Params.TopP,
						RepetitionPenalty: index.Params.RepetitionPenalty,
					}
					stages := []struct {
						name string
						run  func(l []float32)
					}{
						{"after_repetition_penalty", func(l []float32) { penalise(l, c.Context, a.RepetitionPenalty) }},
						{"after_temperature", func(l []float32) { temper(l, a.Temperature) }},
						{"after_top_k", func(l []float32) { topK(l, a.TopK) }},
						{"after_top_p", func(l []float32) { topP(l, a.TopP) }},
					}
					if g[name+".after_top_p"].Nil() {
						stages, a.TopP = stages[:3], 0
					}
					input := view[float32](g[name+".logits"])
					for _, s := range stages {
						got, want := append([]float32(nil), input...), view[float32](g[name+"."+s.name])
						s.run(got)
						near(t, s.name, got, want, 1e-6)
						input = want
					}
					got := Distribution(append([]float32(nil), view[float32](g[name+".logits"])...), c.Context, a)
					near(t, "probs", got, view[float32](g[name+".probs"]), 1e-6)
					kept := 0
					for _, p := range got {
						if p > 0 {
							kept++
						}
					}
					if kept != c.Kept {
						t.Errorf("%d ids keep a probability, want %d", kept, c.Kept)
					}
				})
			}
		})
	}
}

// near compares values, relative above 1; infinities must be the same ones.
func near[A, B Float](t *testing.T, name string, got []A, want []B, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	for i := range got {
		a, b := float64(got[i]), float64(want[i])
		if a != b && !(math.Abs(a-b) <= tolerance*max(1, math.Abs(b))) {
			t.Fatalf("%s: value %d is %g, want %g", name, i, a, b)
		}
	}
}

// TestSampleDraws draws often from a short row of logits: ids come as often as their probabilities say, never one at or
// above the limit, and a draw depends on nothing but its seed, step and sequence.
func TestSampleDraws(t *testing.T) {
	const n, V, draws = 8, 6, 4000
	b := New[float32]()
	logits := tensorOf(t, b, "logits", ops.F32, nil, n, V)
	row := []float32{1, -2, 0.5, 3, 2.5, 9}
	args := ops.SampleArgs{Temperature: 1.5, Limit: 5, Seed: 7, Sequence: make([]uint32, n)}
	for i := range n {
		copy(view[float32](logits)[i*V:], row)
	}
	want := Distribution(append([]float32(nil), row...), nil, args)
	next, again := tensorOf(t, b, "next", ops.I32, nil, n), tensorOf(t, b, "again", ops.I32, nil, n)
	var counts [V]float64
	for step := range draws / n {
		args.Step = uint32(step)
		for i := range n {
			args.Sequence[i] = uint32(i)
		}
		b.Sample(next, logits, args)
		for i := range n { // the sequences in another order
			args.Sequence[i] = uint32(n - 1 - i)
		}
		b.Sample(again, logits, args)
		synced(t, b)
		for i, id := range view[int32](next) {
			counts[id]++
			if other := view[int32](again)[n-1-i]; other != id {
				t.Fatalf("step %d, sequence %d: %d in one row and %d in another", step, i, id, other)
			}
		}
	}
	for id, p := range want {
		if deviation := math.Sqrt(draws * p * (1 - p)); math.Abs(counts[id]-draws*p) > 4*deviation {
			t.Errorf("id %d came %g times of %d, its probability is %g", id, counts[id], draws, p)
		}
	}
}

// TestSampleGreedy takes the lowest id of the largest logits, after the repetition penalty, and -1 of a row without one.
func TestSampleGreedy(t *testing.T) {
	b := New[float32]()
	nan := float32(math.NaN())
	logits := tensorOf(t, b, "logits", ops.F32, nil, 1, 4)
	next := tensorOf(t, b, "next", ops.I32, nil, 1)
	for _, c := range []struct {
		row  []float32
		args ops.SampleArgs
		want int32
	}{
		{[]float32{1, 3, 3, 2}, ops.SampleArgs{}, 1},
		{[]float32{1, 3, 3, 2}, ops.SampleArgs{RepetitionPenalty: 1.1, Context: [][]int32{{1, 1}}}, 2},
		{[]float32{-1, -3, -2, -2}, ops.SampleArgs{RepetitionPenalty: 3, Context: [][]int32{{0}}}, 2},
		{[]float32{1, 3, 3, 9}, ops.SampleArgs{Limit: 3}, 1},
		{[]float32{1, nan, 3, 9}, ops.SampleArgs{}, -1},
		{[]float32{1, nan, 3, 9}, ops.SampleArgs{Temperature: 1, Sequence: []uint32{0}}, -1},
	} {
		copy(view[float32](logits), c.row)
		b.Sample(next, logits, c.args)
		if err := b.Sync(); err != nil {
			t.Errorf("%v: error %v", c.row, err)
		}
		if got := view[int32](next)[0]; got != c.want {
			t.Errorf("%v: %d, want %d", c.row, got, c.want)
		}
	}
}
