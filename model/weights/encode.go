package weights

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/x448/float16"

	"qlora/internal/bfloat16"
)

// An encoder turns float32 into stored elements, and returns the index of the first value that the type cannot hold, or
// -1. len(src) elements fill whole blocks.
type encoder func(dst []byte, src []float32) int

var encoders = map[DType]encoder{F32: encodeF32, F16: encodeF16, BF16: encodeBF16, Q8_0: encodeQ8_0, Q4_0: encodeQ4_0}

// Encode writes src into dst as elements of a type: F32, F16 and BF16 rounded to nearest, ties to even; Q8_0 and Q4_0 by
// the bits that ggml's reference quantisation gives. dst must have their exact size. A value that is not finite, or not
// in the type's range, is an error.
func Encode(d DType, dst []byte, src []float32) error {
	encode := encoders[d]
	size, ok := d.size(int64(len(src)))
	if encode == nil || !ok || size != int64(len(dst)) {
		return fmt.Errorf("weights: %d elements do not go into %d bytes of %s", len(src), len(dst), d)
	}
	if i := encode(dst, src); i >= 0 {
		return &RangeError{d, i, src[i]}
	}
	return nil
}

// EncodedBytes is the size of n elements, which must fill whole blocks.
func EncodedBytes(d DType, n int) (int, error) {
	size, ok := d.size(int64(n))
	if !ok {
		return 0, fmt.Errorf("weights: %d elements are no whole blocks of %s", n, d)
	}
	return int(size), nil
}

// RangeError is a value that a type cannot hold.
type RangeError struct {
	DType DType
	Index int
	Value float32
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("element %d is %v, which %s does not hold", e.Index, e.Value, e.DType)
}

// notFinite reports whether v is NaN or infinite.
func notFinite(v float32) bool {
	const exponent = 0x7f800000
	return math.Float32bits(v)&exponent == exponent
}

func encodeF32(dst []byte, src []float32) int {
	for i, v := range src {
		if notFinite(v) {
			return i
		}
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
	return -1
}

func encodeBF16(dst []byte, src []float32) int {
	for i, v := range src {
		b := bfloat16.Bits(v)
		if notFinite(bfloat16.Float32(b)) { // or rounded up to infinity
			return i
		}
		binary.LittleEndian.PutUint16(dst[2*i:], b)
	}
	return -1
}

func encodeF16(dst []byte, src []float32) int {
	for i, v := range src {
		h := float16.Fromfloat32(v)
		if h.IsInf(0) || h.IsNaN() {
			return i
		}
		binary.LittleEndian.PutUint16(dst[2*i:], h.Bits())
	}
	return -1
}

// putScale writes the scale of a block, and reports whether float16 holds it.
func putScale(dst []byte, d float32) bool {
	h := float16.Fromfloat32(d)
	binary.LittleEndian.PutUint16(dst, h.Bits())
	return !h.IsInf(0) && !h.IsNaN()
}

// inverse is 1/d, and 0 for what has none.
func inverse(d float32) float32 {
	if id := 1 / d; !notFinite(id) {
		return id
	}
	return 0
}

// largest is the index of the largest magnitude of a block, the first of equals; of a NaN where there is one.
func largest(block []float32) int {
	most := 0
	for i, v := range block {
		if v != v {
			return i
		}
		if abs(v) > abs(block[most]) {
			most = i
		}
	}
	return most
}

func abs(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }

// encodeQ8_0 writes d = max|x|/127 and x/d rounded, halves away from zero.
func encodeQ8_0(dst []byte, src []float32) int {
	for b := 0; b < len(src); b += 32 {
		block, out := src[b:b+32], dst[b/32*34:][:34]
		most := largest(block)
		d := abs(block[most]) / 127
		if notFinite(block[most]) || !putScale(out, d) {
			return b + most
		}
		id := inverse(d)
		for i, v := range block {
			x := float32(v * id)
			floor := float32(math.Floor(float64(abs(x))))
			q := floor + float32(math.Floor(float64(2*(abs(x)-floor))))
			if x < 0 {
				q = -q
			}
			out[2+i] = byte(int8(q))
		}
	}
	return -1
}

// encodeQ4_0 writes d, the value of largest magnitude over -8, and x/d + 8 rounded, at most 15.
func encodeQ4_0(dst []byte, src []float32) int {
	for b := 0; b < len(src); b += 32 {
		block, out := src[b:b+32], dst[b/32*18:][:18]
		most := largest(block)
		d := block[most] / -8
		if notFinite(d) || !putScale(out, d) {
			return b + most
		}
		id := inverse(d)
		code := func(v float32) byte { return byte(min(15, max(0, int(float32(v*id)+8.5)))) }
		for i := range 16 {
			out[2+i] = code(block[i]) | code(block[i+16])<<4
		}
	}
	return -1
}
