package ops

import (
	"math"

	"qlora/internal/random"
)

// Dropout masks are never stored. Whether column c of token t is kept by a module is a pure
// function of (seed, step, sample, position, module, column), so that forward and backward, any
// packing and any tiling agree. One Philox4x32-10 block (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011) gives eight 16-bit lanes:
//
//	key     = (seed, step)
//	counter = (column / 8, position, sample, module)
//	lane    = column % 8: the low, then the high half of each of the four words
//	kept    = lane >= threshold,  threshold = round(p · 65536)
//
// A kept value is scaled by 65536 / (65536 - threshold): the exact inverse of the chance.

// DropThreshold is the 16-bit threshold of probability p, in 0..65535.
func DropThreshold(p float32) uint32 {
	return uint32(math.Round(float64(p) * 65536))
}

// DropScale is the factor on kept values.
func DropScale(threshold uint32) float32 {
	return float32(65536 / float64(65536-threshold))
}

// DropLanes fills the eight lanes of the columns 8·group .. 8·group+7.
func DropLanes(seed, step, group, pos, sample, module uint32) (lanes [8]uint16) {
	w := Philox([4]uint32{group, pos, sample, module}, [2]uint32{seed, step})
	for i, v := range w {
		lanes[2*i], lanes[2*i+1] = uint16(v), uint16(v>>16)
	}
	return lanes
}

// Philox is [random.Philox].
func Philox(ctr [4]uint32, key [2]uint32) [4]uint32 { return random.Philox(ctr, key) }

// SampleUniform is the uniform number in [0,1) that picks the token of a sequence at a step:
// 53 bits of the Philox block with key (seed, 0) and counter (step, sequence, 0, SampleStream).
func SampleUniform(seed, step, sequence uint32) float64 {
	w := Philox([4]uint32{step, sequence, 0, SampleStream}, [2]uint32{seed, 0})
	return float64(uint64(w[0])<<21|uint64(w[1])>>11) / (1 << 53)
}

// SampleStream sets the counters of sampling apart from those of dropout (module ids are small).
const SampleStream = 0x53414d50

func float32bits(f float32) int32 { return int32(math.Float32bits(f)) }
