//go:build cuda

package cuda_test

import (
	"bytes"
	"fmt"
	"testing"

	"qlora/internal/random"
	"qlora/model/ops"
)

// TestCardRandomWeights makes random weights on the card, and on the host to be copied there, and demands the same bits.
func TestCardRandomWeights(t *testing.T) {
	needCard(t)
	for _, spec := range []ops.WeightSpec{
		{Name: "plain", Kind: ops.Plain, Parts: []int{37}, Cols: 264},
		{Name: "wide", Kind: ops.Plain, Parts: []int{3}, Cols: 18944},
		{Name: "qkv", Kind: ops.QKV, Parts: []int{7 * 64, 128, 128}, Cols: 448, HeadDim: 64},
		{Name: "qkv128", Kind: ops.QKV, Parts: []int{512, 256, 256}, Cols: 8, HeadDim: 128},
		{Name: "gateup", Kind: ops.GateUp, Parts: []int{200, 200}, Cols: 96},
	} {
		t.Run(spec.Name, func(t *testing.T) {
			spec.DType = ops.BF16
			made, copied := loadRandom(t, spec, true), loadRandom(t, spec, false)
			if !bytes.Equal(made, copied) {
				t.Error("the weight made on the card is not the one copied there")
			}
			if bytes.Equal(made, make([]byte, len(made))) {
				t.Error("the weight is all zeros")
			}
		})
	}
}

// loadRandom returns the bytes of a random weight as they lie on the card.
func loadRandom(t *testing.T, spec ops.WeightSpec, onCard bool) []byte {
	t.Helper()
	b := open(t)
	defer b.Close()
	var parts []ops.Source
	for i, rows := range spec.Parts {
		n := random.Normal{Seed: 42, Stream: uint32(i), Std: 0.02}
		s := ops.Source{Name: fmt.Sprint("part ", i), Rows: rows, Cols: spec.Cols, ReadF32: func(dst []float32, row, _ int) error {
			n.Fill(dst, int64(row)*int64(spec.Cols))
			return nil
		}}
		if onCard {
			s.Random = &n
			s.ReadF32 = func([]float32, int, int) error { return fmt.Errorf("read, not made on the card") }
		}
		parts = append(parts, s)
	}
	arena, err := b.NewArena(b.WeightBytes(spec))
	if err != nil {
		t.Fatal(err)
	}
	mem := ops.Tensor{Name: spec.Name, DType: ops.U8, Shape: []int{int(b.WeightBytes(spec))}, Buf: arena}
	if _, err := b.NewWeight(mem, spec, parts, nil); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, mem.Bytes())
	if err := b.Read(raw, mem); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	return raw
}
