package weights

import (
	"encoding/binary"
	"math"
	"sync"

	"github.com/x448/float16"
)

// A decoder turns stored elements into float32. len(src) is the stored
// size of len(dst) elements, which fill whole blocks.
type decoder func(dst []float32, src []byte)

var decoders = map[DType]decoder{
	F32: widenF32, F16: widenF16, BF16: widenBF16,
	Q8_0: dequantQ8_0, Q4_0: dequantQ4_0, Q4_1: dequantQ4_1, Q5_0: dequantQ5_0, Q5_1: dequantQ5_1,
	Q4_K: dequantQ4K, Q5_K: dequantQ5K, Q6_K: dequantQ6K,
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
	table := halves()
	for i := range dst {
		dst[i] = table[binary.LittleEndian.Uint16(src[2*i:])]
	}
}

// halves is every float16, which is faster looked up than computed.
var halves = sync.OnceValue(func() *[1 << 16]float32 {
	table := new([1 << 16]float32)
	for i := range table {
		table[i] = float16.Frombits(uint16(i)).Float32()
	}
	return table
})

// half reads a float16.
func half(src []byte) float32 {
	return float16.Frombits(binary.LittleEndian.Uint16(src)).Float32()
}

func le32(src []byte) uint32 { return binary.LittleEndian.Uint32(src) }
