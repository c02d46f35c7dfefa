package bfloat16_test

import (
	"math"
	"testing"

	"qlora/internal/bfloat16"
)

// TestBits takes ties, overflow, denormals and NaN.
func TestBits(t *testing.T) {
	for _, c := range []struct {
		bits uint32
		want uint16
	}{
		{0, 0}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80},
		{0x3f808000, 0x3f80}, // a tie, to even
		{0x3f818000, 0x3f82}, // a tie, to even
		{0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80},
		{0x00000001, 0}, {0x7f7fffff, 0x7f80}, // a denormal; overflow
		{0x7f800000, 0x7f80}, {0xff800000, 0xff80},
		{0x7f800001, 0x7fc0}, {0xffc12345, 0xffc1}, // NaN stays NaN
	} {
		if got := bfloat16.Bits(math.Float32frombits(c.bits)); got != c.want {
			t.Errorf("Bits(%#08x) = %#04x, want %#04x", c.bits, got, c.want)
		}
	}
}
