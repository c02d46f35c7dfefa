package cpu

import "qlora/model/ops"

// Linear writes y = x·Wᵀ + bias + u·Bᵀ + residual, rope last.
func (b *Backend[T]) Linear(y, x ops.Tensor, w ops.Weight, u ops.Tensor, l *ops.LoRA, e ops.Epilogue, batch *ops.Batch) {
	if !b.begin(ops.CheckLinear(y, x, w, u, l, e, batch)) {
		return
	}
	own, err := b.weight(w)
	if !b.begin(err) {
		return
	}
	defer b.finish()
	from, out := b.in(x), y.Cols()
	var residual []T
	if !e.Residual.Nil() {
		residual = b.in(e.Residual)
	}
	to := b.out(y)
	if residual != nil && &residual[0] != &to[0] {
		b.rows(batch.T, func(t int) { copy(to[t*out:(t+1)*out], residual[t*out:]) })
	}
	own.mulT(b, to, from, batch.T, residual != nil)
	if own.bias != nil {
		b.rows(batch.T, func(t int) { addTo(to[t*out:(t+1)*out], own.bias) })
	}
	if l != nil {
		b.loraAdd(to, b.in(u), l, own.spec.Parts, whole(batch))
	}
	if e.Rope != nil {
		r := b.rope(e.Rope, own.spec)
		b.rows(batch.T, func(t int) { r.rotate(to[t*out:(t+1)*out], int(batch.Host.Pos[t]), 1) })
	}
}

// LinearBack writes dx = dy·W.
func (b *Backend[T]) LinearBack(dx, dy ops.Tensor, w ops.Weight) {
	if !b.begin(ops.CheckLinearBack(dx, dy, w)) {
		return
	}
	own, err := b.weight(w)
	if !b.begin(err) {
		return
	}
	defer b.finish()
	own.mul(b, b.out(dx), b.in(dy), dy.Dim(0))
}

// rope is a table of rotary angles for rows of q, k, v; see ops.Rope.
type rope[T Float] struct {
	cos, sin []T
	heads    int // of q and k together
	D        int
}

func (b *Backend[T]) rope(r *ops.Rope, s ops.WeightSpec) rope[T] {
	return rope[T]{b.in(r.Cos), b.in(r.Sin), (s.Parts[0] + s.Parts[1]) / s.HeadDim, s.HeadDim}
}

// rotate turns the pairs (i, i+D/2) of every q and k head of a row by the angles of pos, or back with sign -1.
func (r rope[T]) rotate(row []T, pos int, sign T) {
	half := r.D / 2
	cos, sin := r.cos[pos*half:(pos+1)*half], r.sin[pos*half:(pos+1)*half]
	for h := range r.heads {
		x, y := row[h*r.D:][:half], row[h*r.D+half:][:half]
		for i, c := range cos {
			s := sign * sin[i]
			x[i], y[i] = x[i]*c-y[i]*s, y[i]*c+x[i]*s
		}
	}
}
