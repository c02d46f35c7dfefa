// Package random makes numbers by their place alone: number i of a stream is a pure function of the seed, the stream and
// i, so that any part of it can be made anywhere, in any order, to the same bits.
package random

import "math"

// Philox is Philox4x32-10, ten rounds of the counter-based generator (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011).
func Philox(ctr [4]uint32, key [2]uint32) [4]uint32 {
	for range 10 {
		p0 := uint64(ctr[0]) * 0xD2511F53
		p1 := uint64(ctr[2]) * 0xCD9E8D57
		ctr = [4]uint32{uint32(p1>>32) ^ ctr[1] ^ key[0], uint32(p1), uint32(p0>>32) ^ ctr[3] ^ key[1], uint32(p0)}
		key[0] += 0x9E3779B9
		key[1] += 0xBB67AE85
	}
	return ctr
}

// Normal is a stream of nearly normal numbers of mean 0. Number i is the sum of the eight 16-bit lanes of one Philox
// block, key (Seed, 0) and counter (i, i>>32, Stream, NormalStream), centred and scaled: a whole number times one float32,
// so that a card makes the same bits, which the logarithms of Box and Muller would not. It ends at 4.9 deviations, and its
// kurtosis is 2.85 in place of 3.
type Normal struct {
	Seed, Stream uint32
	Std          float32
}

// NormalStream sets the counters of normal numbers apart from others of the same seed.
const NormalStream = 0x4e4f524d

const (
	lanes  = 8
	most   = lanes * 0xffff // of a sum
	values = 1 << 16        // of a lane
)

// Scale is what twice a sum, less its mean, is multiplied by.
func (n Normal) Scale() float32 {
	return float32(float64(n.Std) / (2 * math.Sqrt(lanes*(values*values-1)/12.)))
}

// Fill writes numbers first, first+1, ... of the stream.
func (n Normal) Fill(dst []float32, first int64) {
	scale := n.Scale()
	for i := range dst {
		at := uint64(first) + uint64(i)
		sum := uint32(0)
		for _, w := range Philox([4]uint32{uint32(at), uint32(at >> 32), n.Stream, NormalStream}, [2]uint32{n.Seed, 0}) {
			sum += w&0xffff + w>>16
		}
		dst[i] = float32(2*int32(sum)-most) * scale
	}
}
