package vec

import "qlora/internal/bfloat16"

// FromBF16 sets dst[i] to the float32 that the bfloat16 src[i] stands for.
func FromBF16(dst []float32, src []uint16) {
	equalLengths(len(dst), len(src))
	n := len(src) &^ (lanes - 1)
	if n > 0 {
		current.fromBF16(&dst[0], &src[0], n)
	}
	for i := n; i < len(src); i++ {
		dst[i] = bfloat16.Float32(src[i])
	}
}

// ToBF16 rounds src to bfloat16, to nearest, ties to even; a NaN stays a NaN.
func ToBF16(dst []uint16, src []float32) {
	equalLengths(len(dst), len(src))
	n := len(src) &^ (lanes - 1)
	if n > 0 {
		current.toBF16(&dst[0], &src[0], n)
	}
	for i := n; i < len(src); i++ {
		dst[i] = bfloat16.Bits(src[i])
	}
}
