package cpu

import (
	"fmt"
	"math"

	"qlora/internal/bfloat16"
	"qlora/model/ops"
)

// scratch hands out memory that is not cleared, until free. It grows to the most that was taken at once and stays there.
type scratch[T Float] struct {
	slab []T
	used int
}

func (s *scratch[T]) take(n int) []T {
	if s.used+n > len(s.slab) {
		s.slab = make([]T, s.used+n) // what was taken before keeps the old slab
		s.used = 0
	}
	taken := s.slab[s.used : s.used+n : s.used+n]
	s.used += n
	return taken
}

func (s *scratch[T]) free() { s.used = 0 }

// result is what an op computes for a tensor stored as another type than T.
type result[T Float] struct {
	to     ops.Tensor
	values []T
}

// in is the elements of t for reading.
func (b *Backend[T]) in(t ops.Tensor) []T {
	if v := b.held(t); v != nil {
		return v
	}
	values := b.scratch.take(t.Len())
	b.widen(values, t)
	return values
}

// out is room for the elements of t, which finish stores.
func (b *Backend[T]) out(t ops.Tensor) []T {
	if v := b.held(t); v != nil {
		return v
	}
	values := b.scratch.take(t.Len())
	b.results = append(b.results, result[T]{t, values})
	return values
}

// inout is the elements of t, which finish stores again.
func (b *Backend[T]) inout(t ops.Tensor) []T {
	if v := b.held(t); v != nil {
		return v
	}
	values := b.out(t)
	b.widen(values, t)
	return values
}

// held is t's elements where they are at hand: in its storage or among the results of this op.
func (b *Backend[T]) held(t ops.Tensor) []T {
	for _, r := range b.results {
		if r.to.Buf == t.Buf && r.to.Off == t.Off && r.to.Len() == t.Len() {
			return r.values
		}
	}
	return direct[T](t)
}

// direct is a view of t where it is stored as T, and nil elsewhere.
func direct[T Float](t ops.Tensor) []T {
	var v []T
	switch p := any(&v).(type) {
	case *[]float32:
		if t.DType == ops.F32 {
			*p = view[float32](t)
		}
	case *[]float64:
		if t.DType == ops.F64 {
			*p = view[float64](t)
		}
	}
	return v
}

// widen reads t, stored as another type than T.
func (b *Backend[T]) widen(values []T, t ops.Tensor) {
	switch t.DType {
	case ops.F32:
		for i, x := range view[float32](t) {
			values[i] = T(x)
		}
	case ops.BF16:
		for i, x := range view[uint16](t) {
			values[i] = T(bfloat16.Float32(x))
		}
	default:
		b.fail(fmt.Errorf("cpu: %s: %T arithmetic does not read this storage type", t, T(0)))
	}
}

// narrow stores values in t, rounded once to the nearest, ties to even.
func narrow[T Float](t ops.Tensor, values []T) {
	switch t.DType {
	case ops.F32:
		to := view[float32](t)
		for i, x := range values {
			to[i] = float32(x)
		}
	case ops.BF16:
		to := view[uint16](t)
		for i, x := range values {
			to[i] = toBF16(x)
		}
	}
}

// round makes values what they will be once stored as d.
func round[T Float](values []T, d ops.DType) {
	switch {
	case d == ops.BF16:
		for i, x := range values {
			values[i] = T(bfloat16.Float32(toBF16(x)))
		}
	case d == ops.F32 && isFloat64[T]():
		for i, x := range values {
			values[i] = T(float32(x))
		}
	}
}

// toBF16 rounds once: a float64 goes to float32 by rounding to odd, so that the second rounding sees on which side
// of a tie it was.
func toBF16[T Float](x T) uint16 {
	f := float32(x)
	if T(f) != x && f == f && !math.IsInf(float64(f), 0) {
		bits := math.Float32bits(f)
		if math.Abs(float64(f)) > math.Abs(float64(x)) {
			bits-- // toward zero
		}
		f = math.Float32frombits(bits | 1)
	}
	return bfloat16.Bits(f)
}
