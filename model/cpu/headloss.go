package cpu

import (
	"math"

	"qlora/model/ops"
)

// chunkLogits bounds the logits held at once.
const chunkLogits = 8 << 20

// chunks calls work with the label rows lo to hi of the batch, x (hi-lo,C) their rows of xn, and free scratch memory.
func (b *Backend[T]) chunks(xn []T, w *weight[T], batch *ops.Batch, work func(lo, hi int, x []T)) {
	C, size := w.spec.Cols, max(1, chunkLogits/w.spec.Rows())
	for lo := 0; lo < batch.N; lo += size {
		mark, hi := b.scratch.used, min(lo+size, batch.N)
		x := b.scratch.take((hi - lo) * C)
		for i, row := range batch.Host.Rows[lo:hi] {
			copy(x[i*C:(i+1)*C], xn[int(row)*C:])
		}
		work(lo, hi, x)
		b.scratch.used = mark
	}
}

// logits is x·Wᵀ in scratch memory.
func (b *Backend[T]) logits(x []T, w *weight[T], n int) []T {
	y := b.scratch.take(n * w.spec.Rows())
	w.mulT(b, y, x, n, false)
	return y
}

// HeadLoss writes nll, hit and dxn of the label rows.
func (b *Backend[T]) HeadLoss(dxn, nll, hit, xn ops.Tensor, head ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckHeadLoss(dxn, nll, hit, xn, head, batch)) {
		return
	}
	w, err := b.weight(head)
	if !b.begin(err) {
		return
	}
	defer b.finish()
	V, C, xs := w.spec.Rows(), w.spec.Cols, b.in(xn)
	losses, hits, targets, smoothing := b.out(nll), b.out(hit), batch.Host.Targets, T(batch.Host.Smoothing)
	var dx []T
	if !dxn.Nil() {
		dx = b.out(dxn)
		clear(dx)
	}
	b.chunks(xs, w, batch, func(lo, hi int, x []T) {
		logits := b.logits(x, w, hi-lo)
		b.parallel(hi-lo, func(i int, _ *scratch[T]) {
			row, target := logits[i*V:(i+1)*V], int(targets[lo+i])
			top := largest(row)
			hits[lo+i] = hitOf(row, top, target)
			own, mean := row[target]-top, T(0)
			if smoothing > 0 {
				mean = T(meanLogit(row) - float64(top))
			}
			sum := expSum(row, top)
			losses[lo+i] = T(math.Log(float64(sum))) - (1-smoothing)*own - smoothing*mean
			if dx == nil {
				return
			}
			scale := T(batch.Host.LossScale)
			scaleRow(row, scale/sum)
			if smoothing > 0 {
				each := scale * smoothing / T(V)
				for j := range row {
					row[j] -= each
				}
			}
			row[target] -= scale * (1 - smoothing)
		})
		if dx == nil {
			return
		}
		w.mul(b, x, logits, hi-lo)
		for i, row := range batch.Host.Rows[lo:hi] {
			copy(dx[int(row)*C:], x[i*C:(i+1)*C])
		}
	})
}

// meanLogit is the mean of a row, whose sum is made in float64: that of the logits of a vocabulary cancels.
func meanLogit[T Float](row []T) float64 {
	sum := 0.0
	for _, v := range row {
		sum += float64(v)
	}
	return sum / float64(len(row))
}

// hitOf is 1 where target is the lowest id of the largest logit, top.
func hitOf[T Float](row []T, top T, target int) T {
	if row[target] != top {
		return 0
	}
	for _, v := range row[:target] {
		if v == top {
			return 0
		}
	}
	return 1
}

// Logits writes logits (N,V) of the batch's rows.
func (b *Backend[T]) Logits(logits, xn ops.Tensor, head ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckLogits(logits, xn, head, batch)) {
		return
	}
	w, err := b.weight(head)
	if !b.begin(err) {
		return
	}
	defer b.finish()
	V, to := w.spec.Rows(), b.out(logits)
	b.chunks(b.in(xn), w, batch, func(lo, hi int, x []T) { w.mulT(b, to[lo*V:hi*V], x, hi-lo, false) })
}

// KL writes kl[i] = Σ p·(ln p - ln q) of each label row, p the softmax of base's logits and q that of tuned's.
func (b *Backend[T]) KL(kl, base, tuned ops.Tensor, head ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckKL(kl, base, tuned, head, batch)) {
		return
	}
	w, err := b.weight(head)
	if !b.begin(err) {
		return
	}
	defer b.finish()
	V, C, ys, to := w.spec.Rows(), w.spec.Cols, b.in(tuned), b.out(kl)
	b.chunks(b.in(base), w, batch, func(lo, hi int, x []T) {
		p := b.logits(x, w, hi-lo)
		for i, row := range batch.Host.Rows[lo:hi] {
			copy(x[i*C:(i+1)*C], ys[int(row)*C:])
		}
		q := b.logits(x, w, hi-lo)
		b.parallel(hi-lo, func(i int, _ *scratch[T]) { to[lo+i] = T(divergence(p[i*V:(i+1)*V], q[i*V:(i+1)*V])) })
	})
}

// divergence is KL(softmax(p) ‖ softmax(q)) = Σ p·(exp(d)-1-d), d = ln q - ln p. Where the two are close its terms are
// of second order in d, and none is negative; those of Σ p·(ln p - ln q) are of first order and cancel.
func divergence[T Float](p, q []T) (sum float64) {
	logSumP, logSumQ := logSumExp(p), logSumExp(q)
	for i, x := range p {
		logP := float64(x) - logSumP
		d := float64(q[i]) - logSumQ - logP
		sum += math.Exp(logP) * (math.Expm1(d) - d)
	}
	return sum
}

func logSumExp[T Float](x []T) float64 {
	top, sum := float64(largest(x)), 0.0
	for _, v := range x {
		sum += math.Exp(float64(v) - top)
	}
	return top + math.Log(sum)
}
