//go:build cuda

package cuda

import (
	"fmt"

	"qlora/model/ops"
)

// The order of a weight's rows on the card, which is that of the columns it makes:
//
//   - q and k: the rows of a pair that rope turns, i and i+D/2 of a head, lie side by side at 2i and 2i+1;
//   - all else as in the model, the parts stacked.
//
// Rows move as they are copied to the card. Nothing undoes it: what the products write is in this order too, the
// kernels know it, and LoRA's A and B, whose order is the model's, are put in it by their pack kernel.

// strip is rows that go to the card alike: rows of them from src on, the first to dst, each step rows after the one
// before.
type strip struct {
	src, rows int // of the block being copied
	dst, step int // of the weight
}

// unit is what the rows of a block of part p must be a multiple of.
func unit(s ops.WeightSpec, p int) int {
	if s.Kind == ops.QKV && p < 2 {
		return s.HeadDim
	}
	return 1
}

// strips say where rows row to row+n of part p go. Both are multiples of unit.
func strips(s ops.WeightSpec, p, row, n int) []strip {
	first := row
	for _, rows := range s.Parts[:p] {
		first += rows
	}
	if unit(s, p) == 1 {
		return []strip{{src: 0, rows: n, dst: first, step: 1}}
	}
	var all []strip
	half := s.HeadDim / 2
	for at := 0; at < n; at += s.HeadDim {
		all = append(all,
			strip{src: at, rows: half, dst: first + at, step: 2},
			strip{src: at + half, rows: half, dst: first + at + 1, step: 2})
	}
	return all
}

// place puts one value a row (a bias) in the order of the rows on the card.
func place(s ops.WeightSpec, values []float32) []float32 {
	to, part := make([]float32, len(values)), values
	for p, rows := range s.Parts {
		for _, t := range strips(s, p, 0, rows) {
			for i := range t.rows {
				to[t.dst+i*t.step] = part[t.src+i]
			}
		}
		part = part[rows:]
	}
	return to
}

// checkLayout refuses what the kernels cannot read.
func checkLayout(s ops.WeightSpec) error {
	switch {
	case s.DType != ops.BF16 && s.DType != ops.NF4:
		return fmt.Errorf("cuda: weight %s is to be stored as %s, and a card stores bfloat16 or NF4: say --torch_dtype bfloat16, or --backend cpu", s.Name, s.DType)
	case s.Cols%8 != 0:
		return fmt.Errorf("cuda: weight %s has %d columns; the kernels take multiples of 8", s.Name, s.Cols)
	}
	return nil
}
