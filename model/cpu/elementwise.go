package cpu

import "math"

// dot is Σ x∘y, in index order.
func dot[T Float](x, y []T) T {
	var sum T
	for i, v := range x {
		sum += v * y[i]
	}
	return sum
}

// addTo adds x to y.
func addTo[T Float](y, x []T) {
	for i, v := range x {
		y[i] += v
	}
}

func scaleRow[T Float](x []T, s T) {
	for i := range x {
		x[i] *= s
	}
}

// largest is the largest of x; NaN if one is.
func largest[T Float](x []T) T {
	top := x[0]
	for _, v := range x[1:] {
		top = max(top, v)
	}
	return top
}

// expSum replaces x by exp(scale·x - shift) and returns the sum.
func expSum[T Float](x []T, scale, shift T) T {
	var sum T
	for i, v := range x {
		e := T(math.Exp(float64(scale*v - shift)))
		x[i] = e
		sum += e
	}
	return sum
}

// swiGLU writes act = silu(gate)·up.
func swiGLU[T Float](act, gate, up []T) {
	for i, g := range gate {
		act[i] = g * sigmoid(g) * up[i]
	}
}

// swiGLUBack puts the gradients of gate and up, given dact, in their place.
func swiGLUBack[T Float](gate, up, dact []T) {
	for i, g := range gate {
		s := sigmoid(g)
		d, u := dact[i], up[i]
		up[i] = d * g * s
		gate[i] = d * u * s * (1 + g*(1-s))
	}
}

func sigmoid[T Float](x T) T { return T(1 / (1 + math.Exp(-float64(x)))) }
