package ops

import (
	"math"
	"sort"
)

// NEFTune (Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", 2023) adds to every element of an
// embedding, in training alone, alpha / sqrt(L·C) times a number uniform in (-1, 1), L being the tokens of the
// sample. Here that number is, as a dropout mask is, a pure function of (seed, step, sample, position, column): lane of
// the Philox block of [DropLanes] whose module is NoiseStream,
//
//	noise = (2·lane - 65535) · unit,  unit = alpha / (65536·sqrt(L·C))
//
// so that packing, tiling and going on change none. L is a segment's, where transformers takes the longest of a batch,
// padding included.

// NoiseStream sets the counters of noise apart from those of dropout (module ids are small).
const NoiseStream = 0x4e454654

// NoiseUnit is what the whole numbers of noise are multiplied by, in a segment of length tokens.
func NoiseUnit(alpha float32, length, cols int) float64 {
	return float64(alpha) / (65536 * math.Sqrt(float64(length)*float64(cols)))
}

// NoiseStep is the whole number, odd, from -65535 to 65535, that a lane stands for.
func NoiseStep(lane uint16) int32 { return 2*int32(lane) - 65535 }

// SegmentLength is the tokens of the segment that token t is in.
func (h *HostBatch) SegmentLength(t int) int {
	s := sort.Search(len(h.SegStart), func(i int) bool { return int(h.SegStart[i]) > t })
	return int(h.SegStart[s] - h.SegStart[s-1])
}
