package nf4

import (
	"math"
	"math/bits"
	"slices"
)

// bounds[i] is between code i and i+1: what is above it takes the upper one.
var bounds = func() (b [15]float32) {
	for i := range b {
		b[i] = (Code[i] + Code[i+1]) / 2
	}
	return b
}()

// smallestAbsmax stands for the absmax of a block of zeros.
const smallestAbsmax = 1e-38

// QuantizeBlock writes the codes of a block of at most Block elements, two a byte, and returns its absmax. A short
// block's absmax is stored as the smallest one where it is zero; a full block's is only divided by.
func QuantizeBlock(codes []byte, x []float32) (absmax float32) {
	stored := largestMagnitude(x)
	absmax = max(stored, smallestAbsmax)
	if len(x) < Block {
		stored = absmax
	}
	inverse := 1 / absmax
	var code [Block + 1]byte
	code[len(x)] = nearest(0) // beyond an odd end
	for i, v := range x {
		code[i] = nearest(v * inverse)
	}
	for i := 0; i < len(x); i += 2 {
		codes[i/2] = code[i]<<4 | code[i+1]
	}
	return stored
}

// nearest is the code nearest to x; a tie takes the lower one.
func nearest(x float32) (code byte) {
	for _, half := range [4]byte{8, 4, 2, 1} {
		if x > bounds[code+half-1] {
			code += half
		}
	}
	return code
}

func largestMagnitude(x []float32) (top float32) {
	for _, v := range x {
		top = max(top, float32(math.Abs(float64(v))))
	}
	return top
}

// QuantizeAbsmax writes absmax in 8 bits, around their mean, which it returns. absmax is overwritten.
func QuantizeAbsmax(codes []byte, nested, absmax []float32) (offset float32) {
	offset = mean(absmax)
	for i := range absmax {
		absmax[i] -= offset
	}
	for i := range nested {
		block := absmax[i*NestedBlock : min(len(absmax), (i+1)*NestedBlock)]
		nested[i] = largestMagnitude(block)
		for j, x := range block {
			if nested[i] == 0 {
				codes[i*NestedBlock+j] = 0
				continue
			}
			codes[i*NestedBlock+j] = nearestNested(x / nested[i])
		}
	}
	return offset
}

// nearestNested is the entry of NestedCode nearest to x in [-1,1]. As in bitsandbytes on the processor, x is first
// rounded to one of 65536 levels, so near the middle of two entries it may be the other one.
func nearestNested(x float32) byte {
	level := math.Floor(float64(float32(float32((x+1)*0.5)*65535) + 0.5))
	x = float32(float32(level)*float32(2.0/65535)) - 1
	right, _ := slices.BinarySearch(NestedCode[:], x) // the first entry not below x
	if right == 0 {
		return 0
	}
	if right == len(NestedCode) || NestedCode[right]-x >= x-NestedCode[right-1] {
		right--
	}
	return byte(right)
}

// mean is torch's mean of a float32 vector on one thread, so that the offset has the bits that bitsandbytes stores: the
// vector as rows of 8 lanes, or as it is where it is shorter, summed by rowSum (SumKernel.cpp of ATen, AVX2).
func mean(x []float32) float32 {
	const lanes = 8
	if len(x) < lanes {
		return rowSum(len(x), func(i int) float32 { return x[i] }) / float32(len(x))
	}
	rows := len(x) / lanes
	var total float32
	for _, v := range x[rows*lanes:] {
		total += v
	}
	for lane := range lanes {
		total += rowSum(rows, func(i int) float32 { return x[i*lanes+lane] })
	}
	return total / float32(len(x))
}

// rowSum adds up n values in four interleaved cascades.
func rowSum(n int, at func(i int) float32) float32 {
	const ways = 4
	var sums [ways]float32
	for k := range sums {
		sums[k] = cascade(n/ways, func(i int) float32 { return at(i*ways + k) })
	}
	for i := n / ways * ways; i < n; i++ {
		sums[0] += at(i)
	}
	return sums[0] + sums[1] + sums[2] + sums[3]
}

// cascade adds up n values by levels: every 2^power of them a level's sum moves one up.
func cascade(n int, at func(i int) float32) float32 {
	const levels = 4
	power := max(4, bits.Len(uint(max(n, 1)-1))/levels)
	step := 1 << power
	var sums [levels]float32
	i := 0
	for i+step <= n {
		for range step {
			sums[0] += at(i)
			i++
		}
		for level := 1; level < levels; level++ {
			sums[level] += sums[level-1]
			sums[level-1] = 0
			if i&((step-1)<<(level*power)) != 0 {
				break
			}
		}
	}
	for ; i < n; i++ {
		sums[0] += at(i)
	}
	return sums[0] + sums[1] + sums[2] + sums[3]
}
