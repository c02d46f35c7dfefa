package cpu

import (
	"math"

	"qlora/model/ops"
)

// RMSNorm writes rho = 1/sqrt(mean(x²)+eps), xn = x·rho·w, and u of the modules that read xn.
func (b *Backend[T]) RMSNorm(xn, rho, u, x, w ops.Tensor, eps float32, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckRMSNorm(xn, rho, u, x, w, eps, l, batch)) {
		return
	}
	defer b.finish()
	C, from, scale, to := x.Cols(), b.in(x), b.in(w), b.out(xn)
	rhos := b.scratch.take(batch.T)
	if !rho.Nil() {
		rhos = b.out(rho)
	}
	b.rows(batch.T, func(t int) {
		row := from[t*C : (t+1)*C]
		rhos[t] = T(1 / math.Sqrt(float64(dot(row, row)/T(C)+T(eps))))
		normalise(to[t*C:(t+1)*C], row, rhos[t], scale, xn.DType)
	})
	if l != nil {
		b.loraDown(b.out(u), to, l, whole(batch))
	}
}

// normalise writes y = x·rho·w of a row as stored.
func normalise[T Float](y, x []T, rho T, w []T, d ops.DType) {
	for c, v := range x {
		y[c] = v * rho * w[c]
	}
	round(y, d)
}

// RMSNormBack writes dx = dres + norm'(dxn + Σ mask∘(du·A)), and duOut = s·dx·B. With g = w∘(dxn + …) and n = x·rho,
// norm' = rho·(g - n·mean(g∘n)). The mean is taken of g itself: u is for backends that have no g before it.
func (b *Backend[T]) RMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w ops.Tensor, in, out *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckRMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w, in, out, batch)) {
		return
	}
	defer b.finish()
	C, xs, rhos, scale := x.Cols(), b.in(x), b.in(rho), b.in(w)
	g, from := b.scratch.take(batch.T*C), b.in(dxn)
	b.rows(batch.T, func(t int) { copy(g[t*C:(t+1)*C], from[t*C:]) })
	if in != nil {
		b.loraBack(g, b.in(du), in, whole(batch))
	}
	var through []T
	if !dres.Nil() {
		through = b.in(dres)
	}
	to := b.out(dx)
	b.rows(batch.T, func(t int) {
		lo, hi := t*C, (t+1)*C
		g, n, y, r := g[lo:hi], xs[lo:hi], to[lo:hi], rhos[t]
		for c := range g {
			g[c] *= scale[c]
		}
		mean := dot(g, n) * r / T(C)
		for c := range g {
			d := r * (g[c] - n[c]*r*mean)
			if through != nil {
				d += through[lo+c]
			}
			y[c] = d
		}
		round(y, dx.DType)
	})
	if out != nil {
		b.loraUp(b.out(duOut), to, out, []int{C}, whole(batch))
	}
}
