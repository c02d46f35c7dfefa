//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// HeadLoss writes nll and hit of the N label rows, and dxn (T,C), by chunks of rows.
func (b *Backend) HeadLoss(dxn, nll, hit, xn ops.Tensor, head ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckHeadLoss(dxn, nll, hit, xn, head, batch), stored("HeadLoss", "xn", xn, ops.BF16)) {
		return
	}
	w, err := b.weight(head)
	if !b.begin(err) {
		return
	}
	m := w.matrix()
	b.launch("HeadLoss", func() C.qk_status {
		return C.qk_head_loss(at(dxn), at(nll), at(hit), at(xn), at(m), b.batch(batch), C.int32_t(w.spec.Cols), C.int32_t(w.spec.Rows()),
			at(b.work), b.workBytes(), b.onStream(), b.variant())
	}, dxn, nll, xn, m)
}

// Logits writes logits (N,V) float32 of the batch's rows of xn.
func (b *Backend) Logits(logits, xn ops.Tensor, head ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckLogits(logits, xn, head, batch), stored("Logits", "xn", xn, ops.BF16)) {
		return
	}
	w, err := b.weight(head)
	if !b.begin(err) {
		return
	}
	m := w.matrix()
	b.launch("Logits", func() C.qk_status {
		return C.qk_logits(at(logits), at(xn), at(m), b.batch(batch), C.int32_t(w.spec.Cols), C.int32_t(w.spec.Rows()), b.onStream())
	}, logits, xn, m)
}

// KL writes kl[i] = KL(softmax(base·Wᵀ) ‖ softmax(tuned·Wᵀ)) of the label rows.
func (b *Backend) KL(kl, base, tuned ops.Tensor, head ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckKL(kl, base, tuned, head, batch), stored("KL", "base", base, ops.BF16)) {
		return
	}
	w, err := b.weight(head)
	if !b.begin(err) {
		return
	}
	m := w.matrix()
	b.launch("KL", func() C.qk_status {
		return C.qk_kl(at(kl), at(base), at(tuned), at(m), b.batch(batch), C.int32_t(w.spec.Cols), C.int32_t(w.spec.Rows()),
			at(b.work), b.workBytes(), b.onStream())
	}, kl, base, tuned, m)
}
