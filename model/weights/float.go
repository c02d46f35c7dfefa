package weights

import (
	"encoding/binary"
	"math"

	"github.com/x448/float16"
)

// A decoder widens stored elements to float32, exactly. len(src) is the stored
// size of len(dst) elements, which fill whole blocks.
type decoder func(dst []float32, src []byte)

var decoders = map[DType]decoder{
	F32: widenF32, F16: widenF16, BF16: widenBF16,
}

func widenF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func widenBF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

func widenF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = half(src[2*i:])
	}
}

// half reads a float16.
func half(src []byte) float32 {
	return float16.Frombits(binary.LittleEndian.Uint16(src)).Float32()
}
