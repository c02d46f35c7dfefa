// Package bfloat16 rounds to the upper half of a float32.
package bfloat16

import "math"

// Bits rounds to the nearest bfloat16, ties to even. A NaN stays one.
func Bits(v float32) uint16 {
	bits := math.Float32bits(v)
	if v != v {
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// Float32 is the number that bits stand for.
func Float32(bits uint16) float32 { return math.Float32frombits(uint32(bits) << 16) }

// Round is v as bfloat16 stores it.
func Round(v float32) float32 { return Float32(Bits(v)) }
