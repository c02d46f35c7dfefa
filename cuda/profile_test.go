//go:build cuda

package cuda_test

import (
	"fmt"
	"testing"

	"qlora/cuda"
	"qlora/internal/random"
	"qlora/model/ops"
)

// TestCardProfile looks up tokens twice a step: of six steps the last three are counted, two calls each, and the times
// are those of a card.
func TestCardProfile(t *testing.T) {
	b, err := cuda.New(cuda.Options{ProfileOps: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const T, C, V = 512, 512, 1024
	spec := ops.WeightSpec{Name: "table", DType: ops.BF16, Parts: []int{V}, Cols: C}
	arena, err := b.NewArena(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	mem := ops.Tensor{Name: "table", DType: ops.U8, Shape: []int{int(b.WeightBytes(spec))}, Buf: arena}
	x := ops.Tensor{Name: "x", DType: ops.BF16, Shape: []int{T, C}, Buf: arena, Off: 2 << 20}
	batch, err := ops.NewBatch(ops.Tensor{Name: "batch", DType: ops.I32, Shape: []int{ops.BatchWords(T, 1, 0)}, Buf: arena, Off: 4 << 20}, T, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	table, err := b.NewWeight(mem, spec, []ops.Source{{Name: "table", Rows: V, Cols: C, Random: &random.Normal{Std: 1},
		ReadF32: func([]float32, int, int) error { return fmt.Errorf("read, not made on the card") }}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for step := range 6 {
		for range 2 { // two rows of a step
			host := ops.HostBatch{IDs: make([]int32, T), Pos: make([]int32, T), Sample: make([]int32, T), SegStart: []int32{0, T}, Step: uint32(step + 1)}
			if err := b.LoadBatch(batch, host); err != nil {
				t.Fatal(err)
			}
			b.Embed(x, table, batch)
		}
	}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	if p.Steps != 3 || len(p.Ops) != 1 || p.Ops[0].Op != "Embed" || p.Ops[0].Shapes != "512x512 1024x512" || p.Ops[0].Calls != 2 {
		t.Fatalf("%+v, want 3 steps of two calls of Embed 512x512 1024x512", p)
	}
	if o := p.Ops[0]; o.Time <= 0 || o.Time > p.Span || p.Span.Seconds() > 1 {
		t.Errorf("%v in a step of %v", o.Time, p.Span)
	}
}
