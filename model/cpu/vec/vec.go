// Package vec holds the float32 vector loops of the CPU backend, in assembly made by avo (AVX2) or plain Go, and names
// the instruction set in use (Variant).
//
// A result depends on the values and on the length alone: element by element functions give an element the same bits
// at every place of every slice, and a reduction sums in an order fixed by the length. Processors with AVX-512 run the
// AVX2 loops: these functions wait for memory or take a small part of a step, and both give the same bits.
// Plain Go gives other bits, within the accuracy stated.
//
// Unless said otherwise the slices of a call have the same length, else it panics, and a destination may be one of the
// sources but must not overlap it partly.
package vec

import (
	"fmt"
	"math"
)

// equalLengths panics unless every length is n: the loops would write outside.
func equalLengths(n int, others ...int) {
	for _, o := range others {
		if o != n {
			panic(fmt.Sprintf("vec: slices of %d and %d values", n, o))
		}
	}
}

// Exp sets dst[i] = e^x[i], within 1.5 units in the last place; subnormal results and overflow to +Inf included.
func Exp(dst, x []float32) {
	equalLengths(len(dst), len(x))
	n := len(x) &^ (lanes - 1)
	if n > 0 {
		current.exp(&dst[0], &x[0], n)
	}
	if n < len(x) {
		t := tails.Get().(*tail)
		pad(&t[0], x[n:], 0)
		current.exp(&t[0][0], &t[0][0], lanes)
		copy(dst[n:], t[0][:])
		tails.Put(t)
	}
}

// SwiGLU sets act = gate·sigmoid(gate)·up (N. Shazeer, "GLU Variants Improve Transformer", 2020).
func SwiGLU(act, gate, up []float32) {
	equalLengths(len(act), len(gate), len(up))
	n := len(act) &^ (lanes - 1)
	if n > 0 {
		current.swiGLU(&act[0], &gate[0], &up[0], n)
	}
	if n < len(act) {
		t := tails.Get().(*tail)
		pad(&t[0], gate[n:], 0)
		pad(&t[1], up[n:], 0)
		current.swiGLU(&t[0][0], &t[0][0], &t[1][0], lanes)
		copy(act[n:], t[0][:])
		tails.Put(t)
	}
}

// SwiGLUBack sets, with s = sigmoid(gate), dgate = dact·up·s·(1+gate·(1-s)) and dup = dact·gate·s. dgate may be gate,
// dup may be up, and either may be dact.
func SwiGLUBack(dgate, dup, dact, gate, up []float32) {
	equalLengths(len(dgate), len(dup), len(dact), len(gate), len(up))
	n := len(dgate) &^ (lanes - 1)
	if n > 0 {
		current.swiGLUBack(&dgate[0], &dup[0], &dact[0], &gate[0], &up[0], n)
	}
	if n < len(dgate) {
		t := tails.Get().(*tail)
		for i, x := range [][]float32{dact, gate, up} {
			pad(&t[i], x[n:], 0)
		}
		current.swiGLUBack(&t[3][0], &t[4][0], &t[0][0], &t[1][0], &t[2][0], lanes)
		copy(dgate[n:], t[3][:])
		copy(dup[n:], t[4][:])
		tails.Put(t)
	}
}

// ExpSum sets dst[i] = e^(x[i]-shift) and returns their sum: a row of softmax, with shift its maximum, up to Scale.
// x may hold -Inf, which gives 0; shift is finite.
func ExpSum(dst, x []float32, shift float32) float32 {
	equalLengths(len(dst), len(x))
	n := len(x) &^ (lanes - 1)
	var sum float32
	if n > 0 {
		sum = current.expSum(&dst[0], &x[0], shift, n)
	}
	if n < len(x) {
		t := tails.Get().(*tail)
		pad(&t[0], x[n:], float32(math.Inf(-1)))
		sum += current.expSum(&t[0][0], &t[0][0], shift, lanes)
		copy(dst[n:], t[0][:])
		tails.Put(t)
	}
	return sum
}

// Dot returns Σ x[i]·y[i].
func Dot(x, y []float32) float32 {
	equalLengths(len(x), len(y))
	n := len(x) &^ (block - 1)
	var sum float32
	if n > 0 {
		sum = current.dot(&x[0], &y[0], n)
	}
	if n < len(x) {
		t := tails.Get().(*tail)
		pad(&t[0], x[n:], 0)
		pad(&t[1], y[n:], 0)
		sum += current.dot(&t[0][0], &t[1][0], block)
		tails.Put(t)
	}
	return sum
}

// Max returns the largest x[i], -Inf if there is none. With a NaN among them the result is a value of x or NaN.
func Max(x []float32) float32 {
	n := len(x) &^ (block - 1)
	m := float32(math.Inf(-1))
	if n > 0 {
		m = current.max(&x[0], n)
	}
	if n < len(x) {
		t := tails.Get().(*tail)
		pad(&t[0], x[n:], m)
		m = current.max(&t[0][0], block)
		tails.Put(t)
	}
	return m
}

// Axpy adds a·x[i] to y[i].
func Axpy(y []float32, a float32, x []float32) {
	equalLengths(len(y), len(x))
	n := len(y) &^ (lanes - 1)
	if n > 0 {
		current.axpy(&y[0], a, &x[0], n)
	}
	if n < len(y) {
		t := tails.Get().(*tail)
		pad(&t[0], y[n:], 0)
		pad(&t[1], x[n:], 0)
		current.axpy(&t[0][0], a, &t[1][0], lanes)
		copy(y[n:], t[0][:])
		tails.Put(t)
	}
}

// Scale sets dst[i] = a·x[i].
func Scale(dst []float32, a float32, x []float32) {
	equalLengths(len(dst), len(x))
	n := len(x) &^ (lanes - 1)
	if n > 0 {
		current.scale(&dst[0], a, &x[0], n)
	}
	for i := n; i < len(x); i++ {
		dst[i] = a * x[i]
	}
}
