package cpu

import (
	"math"

	"qlora/model/ops"
)

// flatBlock is the parameters of one piece of work in GradNorm and AdamW.
const flatBlock = 1 << 14

// flat runs work over [0,n) in pieces of flatBlock.
func (b *Backend[T]) flat(n int, work func(piece, lo, hi int)) {
	b.parallel((n+flatBlock-1)/flatBlock, func(task int, _ *scratch[T]) {
		work(task, task*flatBlock, min(n, (task+1)*flatBlock))
	})
}

// GradNorm writes the L2 norm of grads and how many of them are not finite. Squares are summed in float64, which they
// cannot overflow.
func (b *Backend[T]) GradNorm(norm, grads ops.Tensor) {
	if !b.begin(ops.CheckGradNorm(norm, grads)) {
		return
	}
	defer b.finish()
	g, to := b.in(grads), b.out(norm)
	type partial struct{ squares, bad float64 }
	parts := make([]partial, (len(g)+flatBlock-1)/flatBlock)
	b.flat(len(g), func(piece, lo, hi int) {
		var p partial
		for _, x := range g[lo:hi] {
			f := float64(x)
			if math.IsNaN(f) || math.IsInf(f, 0) {
				p.bad++
			}
			p.squares += f * f
		}
		parts[piece] = p
	})
	var sum partial
	for _, p := range parts {
		sum.squares += p.squares
		sum.bad += p.bad
	}
	to[0], to[1] = T(math.Sqrt(sum.squares)), T(sum.bad)
}

// AdamW updates params, m and v in place. An element's operations, and where they round, are torch's.
func (b *Backend[T]) AdamW(params, m, v, grads, norm ops.Tensor, a ops.AdamWArgs) {
	if !b.begin(ops.CheckAdamW(params, m, v, grads, norm, a)) {
		return
	}
	defer b.finish()
	size := b.in(norm)[0]
	if f := float64(size); math.IsNaN(f) || math.IsInf(f, 0) {
		return
	}
	clip := T(1)
	if a.MaxNorm > 0 {
		clip = min(1, T(a.MaxNorm)/(size+1e-6))
	}
	p, ms, vs, g := b.inout(params), b.inout(m), b.inout(v), b.in(grads)
	beta1, beta2 := a.Beta1, a.Beta2
	for _, group := range a.Groups {
		e := adamW[T]{
			clip: clip, beta2: T(beta2), rest1: T(1 - beta1), rest2: T(1 - beta2), eps: T(a.Eps),
			keep: T(1 - group.LR*group.WeightDecay),
			step: T(group.LR / (1 - math.Pow(beta1, float64(a.Step)))),
			root: T(math.Sqrt(1 - math.Pow(beta2, float64(a.Step)))),
		}
		n := group.Len
		gp, gm, gv, gg := p[:n], ms[:n], vs[:n], g[:n]
		b.flat(n, func(_, lo, hi int) { e.update(gp[lo:hi], gm[lo:hi], gv[lo:hi], gg[lo:hi]) })
		p, ms, vs, g = p[n:], ms[n:], vs[n:], g[n:]
	}
}

// adamW is the constants of a group in a step: keep = 1 - lr·decay, step = lr/(1-β1ᵗ), root = sqrt(1-β2ᵗ), rest = 1-β.
type adamW[T Float] struct {
	clip, beta2, rest1, rest2, eps, keep, step, root T
}

// update writes m += (g-m)·(1-β1), v = β2·v + (1-β2)·g², p = p·keep - step·m/(sqrt(v)/root + eps). The conversions
// keep each product from being fused with the sum it enters, on every processor.
func (e adamW[T]) update(p, m, v, grads []T) {
	for i, g := range grads {
		g = T(g * e.clip)
		m[i] += T((g - m[i]) * e.rest1)
		v[i] = T(v[i]*e.beta2) + T(T(e.rest2*g)*g)
		denominator := T(math.Sqrt(float64(v[i])))/e.root + e.eps
		p[i] = T(p[i]*e.keep) - T(e.step*m[i])/denominator
	}
}
