package weights

import "math/bits"

// A DType names how the elements of a tensor are stored, by the name the
// safetensors or GGUF format gives it.
type DType string

// The stored types whose values this package reads as float32.
const (
	F32  DType = "F32"
	F16  DType = "F16"
	BF16 DType = "BF16"
	Q8_0 DType = "Q8_0"
	Q4_0 DType = "Q4_0"
	Q4_1 DType = "Q4_1"
	Q5_0 DType = "Q5_0"
	Q5_1 DType = "Q5_1"
	Q4_K DType = "Q4_K"
	Q5_K DType = "Q5_K"
	Q6_K DType = "Q6_K"
)

// A layout is the smallest run of elements that fills whole bytes.
type layout struct{ elems, bytes int }

// safetensorsTypes lists the types of a safetensors file in the order of the
// format's own enumeration, by which its writer sorts (by alignment).
var safetensorsTypes = []DType{
	"BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
	"I16", "U16", F16, BF16, "I32", "U32", F32, "C64", "F64", "I64", "U64",
}

var layouts = map[DType]layout{
	"BOOL": {1, 1}, "F4": {2, 1}, "F6_E2M3": {4, 3}, "F6_E3M2": {4, 3}, "U8": {1, 1}, "I8": {1, 1},
	"F8_E5M2": {1, 1}, "F8_E4M3": {1, 1}, "F8_E8M0": {1, 1}, "F8_E4M3FNUZ": {1, 1}, "F8_E5M2FNUZ": {1, 1},
	"I16": {1, 2}, "U16": {1, 2}, F16: {1, 2}, BF16: {1, 2}, "I32": {1, 4}, "U32": {1, 4}, F32: {1, 4},
	"C64": {1, 8}, "F64": {1, 8}, "I64": {1, 8}, "U64": {1, 8},
	Q8_0: {32, 34}, Q4_0: {32, 18}, Q4_1: {32, 20}, Q5_0: {32, 22}, Q5_1: {32, 24},
	Q4_K: {256, 144}, Q5_K: {256, 176}, Q6_K: {256, 210},
}

// size returns the bytes of n elements; ok is false when they do not fill whole
// blocks, or more than an int64 can count.
func (d DType) size(n int64) (size int64, ok bool) {
	l := layouts[d]
	if l.elems == 0 || n%int64(l.elems) != 0 {
		return 0, false
	}
	return product(n/int64(l.elems), int64(l.bytes))
}

// Blocked reports whether elements are stored in blocks that share a scale.
func (d DType) Blocked() bool { return layouts[d].elems >= 32 }

// product multiplies two counts; ok is false on overflow of an int64.
func product(a, b int64) (int64, bool) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	return int64(lo), hi == 0 && lo <= 1<<63-1
}

// elements returns the number of elements of a shape; ok is false when an int64
// cannot count them, or could not if the dimensions of 0 were 1.
func elements(shape []int) (n int64, ok bool) {
	empty := false
	n = 1
	for _, d := range shape {
		if d == 0 {
			empty = true
		} else if n, ok = product(n, int64(d)); !ok {
			return 0, false
		}
	}
	if empty {
		n = 0
	}
	return n, true
}
