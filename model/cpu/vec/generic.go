package vec

import (
	"math"
	"unsafe"

	"qlora/internal/bfloat16"
)

// generic are the loops in plain Go: functions in float64, rounded once; products rounded before they are added.
var generic = kernels{
	variant: Generic,
	exp: func(dst, x *float32, n int) {
		d := unsafe.Slice(dst, n)
		for i, v := range unsafe.Slice(x, n) {
			d[i] = float32(math.Exp(float64(v)))
		}
	},
	swiGLU: func(act, gate, up *float32, n int) {
		a, u := unsafe.Slice(act, n), unsafe.Slice(up, n)
		for i, g := range unsafe.Slice(gate, n) {
			a[i] = float32(float64(g) * sigmoid(g) * float64(u[i]))
		}
	},
	swiGLUBack: func(dgate, dup, dact, gate, up *float32, n int) {
		dg, du, da, u := unsafe.Slice(dgate, n), unsafe.Slice(dup, n), unsafe.Slice(dact, n), unsafe.Slice(up, n)
		for i, g := range unsafe.Slice(gate, n) {
			s, d := sigmoid(g), float64(da[i])
			dg[i], du[i] = float32(d*float64(u[i])*s*(1+float64(g)*(1-s))), float32(d*float64(g)*s)
		}
	},
	expSum: func(dst, x *float32, shift float32, n int) float32 {
		d := unsafe.Slice(dst, n)
		var sum float32
		for i, v := range unsafe.Slice(x, n) {
			d[i] = float32(math.Exp(float64(v - shift)))
			sum += d[i]
		}
		return sum
	},
	dot: func(x, y *float32, n int) float32 {
		b := unsafe.Slice(y, n)
		var sum [4]float32
		for i, a := range unsafe.Slice(x, n) {
			sum[i%4] += float32(a * b[i])
		}
		return (sum[0] + sum[1]) + (sum[2] + sum[3])
	},
	max: func(x *float32, n int) float32 {
		m := *x
		for _, v := range unsafe.Slice(x, n) {
			m = max(m, v)
		}
		return m
	},
	axpy: func(y *float32, a float32, x *float32, n int) {
		to := unsafe.Slice(y, n)
		for i, v := range unsafe.Slice(x, n) {
			to[i] += float32(a * v)
		}
	},
	scale: func(dst *float32, a float32, x *float32, n int) {
		to := unsafe.Slice(dst, n)
		for i, v := range unsafe.Slice(x, n) {
			to[i] = a * v
		}
	},
	fromBF16: func(dst *float32, src *uint16, n int) {
		d := unsafe.Slice(dst, n)
		for i, b := range unsafe.Slice(src, n) {
			d[i] = bfloat16.Float32(b)
		}
	},
	toBF16: func(dst *uint16, src *float32, n int) {
		d := unsafe.Slice(dst, n)
		for i, x := range unsafe.Slice(src, n) {
			d[i] = bfloat16.Bits(x)
		}
	},
	dropout: func(dst, x *float32, n int, seed, step, group, pos, sample, module, threshold uint32, scale float32) {
		dropout(unsafe.Slice(dst, n), unsafe.Slice(x, n), Mask{seed, step, group, pos, sample, module, threshold}, scale)
	},
}

func sigmoid(x float32) float64 { return 1 / (1 + math.Exp(-float64(x))) }
