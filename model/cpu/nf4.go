package cpu

import (
	"math"
	"math/bits"
	"slices"

	"qlora/model/cpu/vec"
	"qlora/model/ops"
)

const (
	nf4Block    = 64  // elements that share an absmax
	nestedBlock = 256 // absmax values that share one of their own
)

// nf4Code is the 16 values of NF4: quantiles of the normal distribution, as bitsandbytes prints them.
var nf4Code = [16]float32{
	-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
	-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
	0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
}

// nestedCode is bitsandbytes' dynamic map for the 8-bit absmax: seven decades of growing precision, either sign.
var nestedCode = dynamicMap()

func dynamicMap() (code [256]float32) {
	n := 0
	add := func(x float32) { code[n] = x; n++ }
	for decade := range 7 {
		items := 1 << decade
		power := float32(math.Pow10(decade - 6))
		// The boundaries are torch.linspace(0.1, 1, items+1): fused multiply-adds from the nearer end.
		from, to := float64(float32(0.1)), 1.0
		step := float64(float32(to-from) / float32(items))
		boundary := func(i int) float32 {
			if i < (items+1)/2 {
				return float32(from + step*float64(i))
			}
			return float32(to - step*float64(items-i))
		}
		for i := range items {
			mean := float32(boundary(i)+boundary(i+1)) / 2
			add(power * mean)
			add(-(power * mean))
		}
	}
	add(0)
	add(1)
	slices.Sort(code[:])
	return code
}

// nf4Bounds[i] is between code i and i+1: what is above it takes the upper one.
var nf4Bounds = func() (bounds [15]float32) {
	for i := range bounds {
		bounds[i] = (nf4Code[i] + nf4Code[i+1]) / 2
	}
	return bounds
}()

// smallestAbsmax stands for the absmax of a block of zeros.
const smallestAbsmax = 1e-38

// QuantNF4 quantises src as bitsandbytes does on the processor, bit for bit. Its arithmetic is float32 on every backend.
func (b *Backend[T]) QuantNF4(q ops.NF4, src ops.Tensor) {
	if !b.begin(ops.CheckQuantNF4(q, src)) {
		return
	}
	n, codes := src.Len(), raw(q.Codes)
	absmax := make([]float32, (n+nf4Block-1)/nf4Block)
	b.parallel(len(absmax), func(i int, _ *scratch[T]) {
		var block [nf4Block]float32
		lo := i * nf4Block
		values := block[:min(nf4Block, n-lo)]
		load(values, src, lo)
		absmax[i] = quantBlock(codes[lo/2:], values)
	})
	if q.Absmax.DType == ops.F32 {
		copy(view[float32](q.Absmax), absmax)
		return
	}
	offset := meanOf(absmax)
	view[float32](q.Offset)[0] = offset
	to, nested := raw(q.Absmax), view[float32](q.Nested)
	for i := range absmax {
		absmax[i] -= offset
	}
	for i := range nested {
		block := absmax[i*nestedBlock : min(len(absmax), (i+1)*nestedBlock)]
		nested[i] = largestMagnitude(block)
		for j, x := range block {
			if nested[i] == 0 {
				to[i*nestedBlock+j] = 0
				continue
			}
			to[i*nestedBlock+j] = nearest(x / nested[i])
		}
	}
}

// quantBlock writes the codes of a block, two a byte, and returns its absmax. A short block's absmax is stored as the
// smallest one where it is zero; a full block's is only divided by.
func quantBlock(codes []byte, x []float32) float32 {
	stored := largestMagnitude(x)
	absmax := max(stored, smallestAbsmax)
	if len(x) < nf4Block {
		stored = absmax
	}
	inverse := 1 / absmax
	var code [nf4Block + 1]byte
	code[len(x)] = nf4Of(0) // beyond an odd end
	for i, v := range x {
		code[i] = nf4Of(v * inverse)
	}
	for i := 0; i < len(x); i += 2 {
		codes[i/2] = code[i]<<4 | code[i+1]
	}
	return stored
}

// nf4Of is the code nearest to x; a tie takes the lower one.
func nf4Of(x float32) (code byte) {
	for _, bound := range nf4Bounds {
		if x > bound {
			code++
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

// nearest is the entry of nestedCode nearest to x in [-1,1]. As in bitsandbytes on the processor, x is first rounded to
// one of 65536 levels, so near the middle of two entries it may be the other one.
func nearest(x float32) byte {
	level := math.Floor(float64(float32(float32((x+1)*0.5)*65535) + 0.5))
	x = float32(float32(level)*float32(2.0/65535)) - 1
	right, _ := slices.BinarySearch(nestedCode[:], x) // the first entry not below x
	if right == 0 {
		return 0
	}
	if right == len(nestedCode) || nestedCode[right]-x >= x-nestedCode[right-1] {
		right--
	}
	return byte(right)
}

// DequantNF4 writes code·absmax, rounded to dst's storage.
func (b *Backend[T]) DequantNF4(dst ops.Tensor, q ops.NF4) {
	if !b.begin(ops.CheckDequantNF4(dst, q)) {
		return
	}
	n, codes := dst.Len(), raw(q.Codes)
	absmax := absmaxOf(q)
	b.parallel((n+nf4Block-1)/nf4Block, func(i int, _ *scratch[T]) {
		var block [nf4Block]float32
		lo := i * nf4Block
		values, scale := block[:min(nf4Block, n-lo)], absmax(i)
		for j := range values {
			code := codes[(lo+j)/2] >> 4
			if j%2 == 1 {
				code = codes[(lo+j)/2] & 15
			}
			values[j] = nf4Code[code] * scale
		}
		store(dst, lo, values)
	})
}

// absmaxOf returns the absmax of block i, from its float32 or its 8 bits.
func absmaxOf(q ops.NF4) func(i int) float32 {
	if q.Absmax.DType == ops.F32 {
		values := view[float32](q.Absmax)
		return func(i int) float32 { return values[i] }
	}
	codes, nested, offset := raw(q.Absmax), view[float32](q.Nested), view[float32](q.Offset)[0]
	return func(i int) float32 { return float32(nestedCode[codes[i]]*nested[i/nestedBlock]) + offset }
}

// load reads elements lo.. of t as float32.
func load(dst []float32, t ops.Tensor, lo int) {
	switch t.DType {
	case ops.F32:
		copy(dst, view[float32](t)[lo:])
	case ops.BF16:
		vec.FromBF16(dst, view[uint16](t)[lo:lo+len(dst)])
	case ops.F64:
		for i := range dst {
			dst[i] = float32(view[float64](t)[lo+i])
		}
	}
}

// store writes elements lo.. of t, rounded to its storage.
func store(t ops.Tensor, lo int, src []float32) {
	switch t.DType {
	case ops.F32:
		copy(view[float32](t)[lo:], src)
	case ops.BF16:
		vec.ToBF16(view[uint16](t)[lo:lo+len(src)], src)
	case ops.F64:
		for i, x := range src {
			view[float64](t)[lo+i] = float64(x)
		}
	}
}

// meanOf is torch's mean of a float32 vector on one thread, so that the offset has the bits that bitsandbytes stores: the
// vector as rows of 8 lanes, or as it is where it is shorter, summed by rowSum (SumKernel.cpp of ATen, AVX2).
func meanOf(x []float32) float32 {
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
