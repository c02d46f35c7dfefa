package vec

import (
	"slices"
	"sync"
)

// kernels is one variant of the loops. n is a positive multiple of lanes, in dot and max of block, in dropout of dropoutBlock; pointers may be
// equal where the exported function allows it.
type kernels struct {
	variant    string
	exp        func(dst, x *float32, n int)
	swiGLU     func(act, gate, up *float32, n int)
	swiGLUBack func(dgate, dup, dact, gate, up *float32, n int)
	expSum     func(dst, x *float32, shift float32, n int) float32
	dot        func(x, y *float32, n int) float32
	max        func(x *float32, n int) float32
	axpy       func(y *float32, a float32, x *float32, n int)
	scale      func(dst *float32, a float32, x *float32, n int)
	fromBF16   func(dst *float32, src *uint16, n int)
	toBF16     func(dst *uint16, src *float32, n int)
	dropout    func(dst, x *float32, n int, seed, step, group, pos, sample, module, threshold uint32, scale float32)
}

const (
	lanes = 8
	block = 32 // four registers
)

// implementations are the loops that this processor can run, worst first.
var implementations = append([]*kernels{&generic}, assembly()...)

// current is what the exported functions run. Only tests change it.
var current = pick(Variant())

// pick returns the loops for a variant: AVX2's serve AVX512 too.
func pick(variant string) *kernels {
	i := slices.IndexFunc(implementations, func(k *kernels) bool { return k.variant == variant })
	if i < 0 {
		i = len(implementations) - 1
	}
	return implementations[i]
}

// tail holds copies of the last values of up to five slices, padded to a block: a slice's end goes through the same
// loop as its other values, so that a result does not depend on the place in the slice.
type tail [5][block]float32

var tails = sync.Pool{New: func() any { return new(tail) }}

// pad fills t with x and then with the padding.
func pad(t *[block]float32, x []float32, padding float32) {
	for i := copy(t[:], x); i < block; i++ {
		t[i] = padding
	}
}
