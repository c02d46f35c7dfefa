// Package nf4 is bitsandbytes' 4-bit quantisation (Dettmers et al., "QLoRA", 2023) on the processor, bit for bit as
// bitsandbytes computes it there.
//
// Elements lie row by row in blocks of 64 that share an absmax; a code is one of 16 quantiles of the normal distribution.
// Two codes are a byte, the even element in the high nibble. With double quantisation absmax itself is 8 bits: an entry of
// a 256-entry map times the nested absmax of 256 of them, plus the mean of all. Each tensor has a mean of its own.
package nf4

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"qlora/internal/bfloat16"
)

const (
	Block       = 64  // elements that share an absmax
	NestedBlock = 256 // absmax values that share one of their own
)

// Code is the 16 values, as bitsandbytes prints them.
var Code = [16]float32{
	-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
	-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
	0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
}

// NestedCode is the dynamic map of the 8-bit absmax: seven decades of growing precision, either sign.
var NestedCode = dynamicMap()

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

// Scales are the absmax of a tensor's blocks.
type Scales struct {
	Absmax []float32 // without double quantisation; nil with it

	Absmax8 []byte    // indices of NestedCode
	Nested  []float32 // one for NestedBlock of them
	Offset  float32
}

// Double reports whether absmax is quantised too.
func (s *Scales) Double() bool { return s.Absmax == nil }

// At is the absmax of block i.
func (s *Scales) At(i int) float32 {
	if s.Absmax != nil {
		return s.Absmax[i]
	}
	return float32(NestedCode[s.Absmax8[i]]*s.Nested[i/NestedBlock]) + s.Offset
}

// Check says what is wrong with scales for n elements.
func (s *Scales) Check(n int) error {
	blocks := (n + Block - 1) / Block
	switch {
	case s.Absmax != nil && len(s.Absmax) != blocks:
		return fmt.Errorf("%d absmax for %d blocks of %d elements", len(s.Absmax), blocks, Block)
	case s.Absmax == nil && len(s.Absmax8) != blocks:
		return fmt.Errorf("%d absmax for %d blocks of %d elements", len(s.Absmax8), blocks, Block)
	case s.Absmax == nil && len(s.Nested) != (blocks+NestedBlock-1)/NestedBlock:
		return fmt.Errorf("%d nested absmax for %d blocks of %d", len(s.Nested), (blocks+NestedBlock-1)/NestedBlock, NestedBlock)
	}
	return nil
}

// Tensor is a quantised tensor.
type Tensor struct {
	Scales
	Codes []byte // two elements a byte
}

// CodeBytes is the size of the codes of n elements.
func CodeBytes(n int) int { return (n + 1) / 2 }

// Bytes is the size of a quantised tensor of n elements.
func Bytes(n int, double bool) int64 {
	blocks := (n + Block - 1) / Block
	if !double {
		return int64(CodeBytes(n)) + 4*int64(blocks)
	}
	return int64(CodeBytes(n)) + int64(blocks) + 4*int64((blocks+NestedBlock-1)/NestedBlock) + 4
}

// Quantize quantises a matrix whose rows are whole blocks; double: its absmax too. read fills in rows, from the first on,
// each once.
func Quantize(rows, cols int, double bool, read func(dst []float32, row, count int) error) (*Tensor, error) {
	if cols%Block != 0 {
		return nil, fmt.Errorf("nf4: rows of %d elements are not whole blocks of %d", cols, Block)
	}
	n, step := rows*cols, max(1, pieceElements/cols)
	t := &Tensor{Codes: make([]byte, CodeBytes(n))}
	absmax := make([]float32, n/Block)
	piece := make([]float32, min(rows, step)*cols)
	for row := 0; row < rows; row += step {
		count := min(step, rows-row)
		if err := read(piece[:count*cols], row, count); err != nil {
			return nil, err
		}
		first := row * cols / Block
		eachBlock(count*cols/Block, func(i int) {
			at := first + i
			absmax[at] = QuantizeBlock(t.Codes[at*Block/2:], piece[i*Block:(i+1)*Block])
		})
	}
	t.Scales = NewScales(absmax, double)
	return t, nil
}

// pieceElements are quantised at a time.
const pieceElements = 1 << 20

// eachBlock runs work for each of n blocks, on all cores.
func eachBlock(n int, work func(i int)) {
	tasks := min(runtime.GOMAXPROCS(0), (n+1023)/1024)
	var done sync.WaitGroup
	for task := range tasks {
		done.Go(func() {
			for i := n * task / tasks; i < n*(task+1)/tasks; i++ {
				work(i)
			}
		})
	}
	done.Wait()
}

// NewScales takes over the absmax of all blocks; double: quantised too.
func NewScales(absmax []float32, double bool) Scales {
	if !double {
		return Scales{Absmax: absmax}
	}
	s := Scales{Absmax8: make([]byte, len(absmax)), Nested: make([]float32, (len(absmax)+NestedBlock-1)/NestedBlock)}
	s.Offset = QuantizeAbsmax(s.Absmax8, s.Nested, absmax)
	return s
}

// Read writes elements at.. as float32; at is a multiple of Block.
func (t *Tensor) Read(dst []float32, at int) {
	for i := 0; i < len(dst); i += Block {
		Dequantize(dst[i:min(i+Block, len(dst))], t.Codes[(at+i)/2:], t.At((at+i)/Block))
	}
}

// ReadBF16 writes elements at.. rounded to bfloat16: what is computed with. at is even, and all of them lie in whole blocks
// or in one.
func (t *Tensor) ReadBF16(dst []float32, at int) {
	for len(dst) > 0 {
		n := min(len(dst), Block-at%Block)
		DequantizeBF16(dst[:n], t.Codes[at/2:], t.At(at/Block))
		dst, at = dst[n:], at+n
	}
}

// Dequantize writes a block's code·absmax.
func Dequantize(dst []float32, codes []byte, absmax float32) {
	var values [16]float32
	for i, c := range Code {
		values[i] = c * absmax
	}
	lookUp(dst, codes, &values)
}

// DequantizeBF16 is Dequantize rounded to the nearest bfloat16, ties to even.
func DequantizeBF16(dst []float32, codes []byte, absmax float32) {
	var values [16]float32
	for i, c := range Code {
		values[i] = bfloat16.Round(c * absmax)
	}
	lookUp(dst, codes, &values)
}

func lookUp(dst []float32, codes []byte, values *[16]float32) {
	n := len(dst) / 2
	for i, c := range codes[:n] {
		two := dst[2*i : 2*i+2 : 2*i+2]
		two[0], two[1] = values[c>>4], values[c&15]
	}
	if len(dst)%2 == 1 {
		dst[len(dst)-1] = values[codes[n]>>4]
	}
}
