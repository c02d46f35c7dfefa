//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// Linear writes y = x·Wᵀ + bias + u·Bᵀ + residual, rope last.
func (b *Backend) Linear(y, x ops.Tensor, w ops.Weight, u ops.Tensor, l *ops.LoRA, e ops.Epilogue, batch *ops.Batch) {
	if !b.begin(ops.CheckLinear(y, x, w, u, l, e, batch), stored("Linear", "x", x, ops.BF16), storedRope("Linear", e.Rope)) {
		return
	}
	own, err := b.weight(w)
	if !b.begin(err) {
		return
	}
	var rope ops.Rope
	var h C.qk_heads
	if e.Rope != nil {
		rope, h = *e.Rope, headsOf(own.spec)
	}
	variant, few := b.variant(), batch.T <= matvecTokens && !own.spec.Back
	if few && own.spec.DType == ops.NF4 {
		few = own.spec.Cols >= matvecNF4Least && own.spec.Cols%matvecNF4Multiple == 0
	}
	if few && own.spec.DType == ops.NF4 {
		arg := own.quantisedArg()
		b.launch("Linear", func() C.qk_status {
			return C.qk_linear_nf4(at(y), at(x), &arg, at(own.bias()), at(u), b.lora(0, l), at(e.Residual), at(rope.Cos), at(rope.Sin), h,
				b.batch(batch), C.int32_t(batch.T), b.onStream())
		}, y, x, own.mem, u)
		return
	}
	if few {
		variant = matvecVariant
	}
	m := b.matrix(own)
	b.launch("Linear", func() C.qk_status {
		return C.qk_linear_fwd(at(y), at(x), at(m), at(own.bias()), at(u), b.lora(0, l), at(e.Residual), at(rope.Cos), at(rope.Sin), h,
			b.batch(batch), C.int32_t(batch.T), C.int32_t(own.spec.Rows()), C.int32_t(own.spec.Cols), b.onStream(), variant)
	}, y, x, m, u)
}

// A few tokens go through matrix-vector products, which sum in another order and read W ahead of their turn: never W that
// was dequantised just before. Not in training, where a row must give the same bits alone as beside others.
const (
	matvecTokens  = 8
	matvecVariant = 3

	matvecNF4Multiple, matvecNF4Least = 128, 896 // columns of W in NF4
)

// LinearBack writes dx = dy·W.
func (b *Backend) LinearBack(dx, dy ops.Tensor, w ops.Weight) {
	if !b.begin(ops.CheckLinearBack(dx, dy, w), stored("LinearBack", "dy", dy, ops.BF16)) {
		return
	}
	own, err := b.weight(w)
	if !b.begin(err) {
		return
	}
	m := b.matrix(own)
	b.launch("LinearBack", func() C.qk_status {
		return C.qk_linear_bwd(at(dx), at(dy), at(m), C.int32_t(dy.Dim(0)), C.int32_t(own.spec.Rows()), C.int32_t(own.spec.Cols),
			b.onStream(), b.variant())
	}, dx, dy, m)
}

// storedRope refuses a table that is not float32.
func storedRope(op string, r *ops.Rope) error {
	if r == nil {
		return nil
	}
	if err := stored(op, "cos", r.Cos, ops.F32); err != nil {
		return err
	}
	return stored(op, "sin", r.Sin, ops.F32)
}
