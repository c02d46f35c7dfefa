package vec

import "math"

// FromBF16 widens src to float32, exactly. dst is at least as long as src.
func FromBF16(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	for i, b := range src {
		dst[i] = math.Float32frombits(uint32(b) << 16)
	}
}

// ToBF16 rounds src to bfloat16, to nearest, ties to even; a NaN stays a NaN. dst is at least as long as src.
func ToBF16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	for i, x := range src {
		dst[i] = roundBF16(x)
	}
}

func roundBF16(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
