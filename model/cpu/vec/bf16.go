package vec

import "math"

// FromBF16 sets dst[i] to the float32 that the bfloat16 src[i] stands for.
func FromBF16(dst []float32, src []uint16) {
	equalLengths(len(dst), len(src))
	n := len(src) &^ (lanes - 1)
	if n > 0 {
		current.fromBF16(&dst[0], &src[0], n)
	}
	for i := n; i < len(src); i++ {
		dst[i] = widenBF16(src[i])
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
		dst[i] = roundBF16(src[i])
	}
}

func widenBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

func roundBF16(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
