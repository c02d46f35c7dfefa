// Package cpu runs the model on the processor: the backend for machines without a card, and the oracle of all others.
//
// [Backend] is generic over the type of its arithmetic. Backend[float32] is the product's: frozen weights are packed
// once for the matrix kernels of package gemm, element-wise work goes through package vec. Backend[float64] runs the
// same ops through plain loops and is what every backend is compared with.
//
// Storage is a tensor's own. An op reads its operands into []T (a view where storage is T already), computes, and
// stores its results, rounded once to the nearest, ties to even. What an op derives from its own output (u from
// x, du from dx) it derives from the stored, rounded values: those are what the next product reads.
//
// Results do not depend on GOMAXPROCS. Work is cut at places that depend on shapes alone, and the pieces write to
// different places. What a token gets (its outputs, and dx in the backward) depends on its own segment alone: the same
// bits whether packed with others or not. Sums over tokens run over blocks of ops.GradBlock, added in index order.
package cpu

import (
	"fmt"
	"runtime"

	"qlora/model/cpu/vec"
	"qlora/model/ops"
)

// Float is the arithmetic of a backend.
type Float interface{ float32 | float64 }

// Backend is ops.Backend on the processor. The zero value is not ready: call New.
type Backend[T Float] struct {
	err     error // the first since the last Sync
	scratch scratch[T]
	results []result[T] // of the running op, to be stored by finish
	workers []scratch[T]
}

var (
	_ ops.Backend = (*Backend[float32])(nil)
	_ ops.Backend = (*Backend[float64])(nil)
)

// New returns a backend that computes in T. A request for kernels that this processor lacks (see vec.VariantError) comes out
// of the first Sync.
func New[T Float]() *Backend[T] {
	b := &Backend[T]{}
	if !isFloat64[T]() {
		b.fail(vec.VariantError())
	}
	return b
}

// Name is "cpu".
func (b *Backend[T]) Name() string { return "cpu" }

// Describe tells the arithmetic, the kernels in use and the cores.
func (b *Backend[T]) Describe() string {
	kernels := vec.Variant()
	if isFloat64[T]() {
		kernels = "plain Go"
	}
	return fmt.Sprintf("%s %s, %T arithmetic, %s kernels, %d cores", runtime.GOOS, runtime.GOARCH, T(0), kernels, runtime.GOMAXPROCS(0))
}

// Sync returns the first error since the last Sync, and forgets it.
func (b *Backend[T]) Sync() error {
	err := b.err
	b.err = nil
	return err
}

// Close frees nothing: memory is Go's.
func (b *Backend[T]) Close() error { return nil }

// begin opens an op whose arguments were found to be err. It reports whether to go on: not after an error.
func (b *Backend[T]) begin(err error) bool {
	b.fail(err)
	return b.err == nil
}

// finish closes an op: its results go to their tensors, its scratch memory is free again.
func (b *Backend[T]) finish() {
	for _, r := range b.results {
		narrow(r.to, r.values)
	}
	b.results = b.results[:0]
	b.scratch.free()
}

func (b *Backend[T]) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func isFloat64[T Float]() bool {
	_, ok := any(T(0)).(float64)
	return ok
}
