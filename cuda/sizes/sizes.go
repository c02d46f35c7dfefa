// Package sizes is how much of a card's memory weights, adapters and ops take: arithmetic alone, which needs no card. The
// cuda backend asks for its memory by it, so that a plan made anywhere is the plan of the run; cuda's tests hold what it
// says of scratch memory to what the kernels say.
package sizes

import (
	"qlora/internal/nf4"
	"qlora/model/ops"
)

// Card is what the sizes depend on.
type Card struct {
	Multiprocessors int
}

var _ ops.Sizes = Card{}

// Aligned rounds up to where the next tensor may begin.
func Aligned(n int64) int64 { return (n + ops.Align - 1) / ops.Align * ops.Align }

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// Activation is bfloat16, whatever weights are stored as.
func (Card) Activation(ops.DType) ops.DType { return ops.BF16 }

// WeightBytes is a matrix, or its parts in NF4, and then its bias.
func (Card) WeightBytes(s ops.WeightSpec) int64 {
	bytes := MatrixBytes(s)
	if s.DType == ops.NF4 {
		bytes = 0
		for p := range s.Parts {
			bytes += PartOf(s, p).Bytes()
		}
	}
	if s.Bias {
		bytes += Aligned(int64(s.Rows()) * ops.F32.Size())
	}
	return bytes
}

// MatrixBytes is a weight's matrix in bfloat16.
func MatrixBytes(s ops.WeightSpec) int64 {
	return Aligned(int64(s.Rows()) * int64(s.Cols) * ops.BF16.Size())
}

// Part is the bytes of a weight's part in NF4: codes, absmax and, with double quantisation, nested and offset, in this order.
type Part struct{ Codes, Absmax, Nested, Offset int64 }

// PartOf is part p of a weight.
func PartOf(s ops.WeightSpec, p int) Part {
	n := int64(s.Parts[p]) * int64(s.Cols)
	blocks := ceil(n, nf4.Block)
	if s.Single {
		return Part{Codes: Aligned(ceil(n, 2)), Absmax: Aligned(4 * blocks)}
	}
	return Part{Aligned(ceil(n, 2)), Aligned(blocks), Aligned(4 * ceil(blocks, nf4.NestedBlock)), Aligned(4)}
}

// Bytes is the whole part.
func (p Part) Bytes() int64 { return p.Codes + p.Absmax + p.Nested + p.Offset }

// Pack is the bytes of each part of a LoRA's pack, in order (kernels/api.h, qk_lora): pack_a (Width,in); pack_b (out,Width),
// block diagonal and in the weight's row order; pack_bt, B' of each module, for a backward.
type Pack struct{ A, B, BT int64 }

// Bytes is the whole pack.
func (p Pack) Bytes() int64 { return p.A + p.B + p.BT }

// PackOf is the pack of a LoRA.
func PackOf(l *ops.LoRA) Pack {
	part := func(elements int) int64 { return Aligned(int64(elements) * ops.BF16.Size()) }
	p := Pack{A: part(l.Width * l.Weight.Cols), B: part(l.Weight.Rows() * l.Width)}
	if l.Weight.Back {
		n := 0
		for i := range l.Modules {
			n += l.Modules[i].Rank * l.Weight.Parts[l.Modules[i].Part]
		}
		p.BT = part(n)
	}
	return p
}

// LoRAPackBytes is both factors in bfloat16 as the kernels read them.
func (Card) LoRAPackBytes(l *ops.LoRA) int64 { return PackOf(l).Bytes() }
