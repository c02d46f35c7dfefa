package cpu

import (
	"math"

	"qlora/model/cpu/vec"
)

// The loops over a row that every op is made of: package vec's in float32, plain ones in float64.

// dot is Σ x∘y.
func dot[T Float](x, y []T) T {
	if x, ok := any(x).([]float32); ok {
		return T(vec.Dot(x, any(y).([]float32)))
	}
	var sum T
	for i, v := range x {
		sum += v * y[i]
	}
	return sum
}

// addTo adds x to y.
func addTo[T Float](y, x []T) {
	if y, ok := any(y).([]float32); ok {
		vec.Axpy(y, 1, any(x).([]float32))
		return
	}
	for i, v := range x {
		y[i] += v
	}
}

// scaleRow multiplies x by s.
func scaleRow[T Float](x []T, s T) {
	if x, ok := any(x).([]float32); ok {
		vec.Scale(x, float32(s), x)
		return
	}
	for i := range x {
		x[i] *= s
	}
}

// largest is the largest of x.
func largest[T Float](x []T) T {
	if x, ok := any(x).([]float32); ok {
		return T(vec.Max(x))
	}
	top := x[0]
	for _, v := range x[1:] {
		top = max(top, v)
	}
	return top
}

// expSum replaces x by exp(x - shift) and returns the sum.
func expSum[T Float](x []T, shift T) T {
	if x, ok := any(x).([]float32); ok {
		return T(vec.ExpSum(x, x, float32(shift)))
	}
	var sum T
	for i, v := range x {
		e := T(math.Exp(float64(v - shift)))
		x[i] = e
		sum += e
	}
	return sum
}

// swiGLU writes act = silu(gate)·up.
func swiGLU[T Float](act, gate, up []T) {
	if act, ok := any(act).([]float32); ok {
		vec.SwiGLU(act, any(gate).([]float32), any(up).([]float32))
		return
	}
	for i, g := range gate {
		act[i] = g * sigmoid(g) * up[i]
	}
}

// swiGLUBack puts the gradients of gate and up in their place: with s = sigmoid(gate), dup = dact·gate·s and dgate =
// dact·up·s·(1+gate·(1-s)).
func swiGLUBack[T Float](gate, up, dact []T) {
	if gate, ok := any(gate).([]float32); ok {
		up := any(up).([]float32)
		vec.SwiGLUBack(gate, up, any(dact).([]float32), gate, up)
		return
	}
	for i, g := range gate {
		s, d, u := sigmoid(g), dact[i], up[i]
		up[i] = d * g * s
		gate[i] = d * u * s * (1 + g*(1-s))
	}
}

func sigmoid[T Float](x T) T { return T(1 / (1 + math.Exp(-float64(x)))) }
