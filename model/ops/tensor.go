package ops

import (
	"fmt"
	"strings"
)

// DType is the storage type of a tensor. Arithmetic is float32 on every backend (float64
// in the oracle), whatever the storage.
type DType uint8

const (
	F32 DType = iota + 1
	BF16
	F64 // the oracle alone
	I32
	U8
	NF4 // of frozen weights alone: 4 bits in blocks of 64 (see internal/nf4), computed with as bfloat16
)

// Size is the bytes of one element; 0 of NF4, whose elements have none of their own.
func (d DType) Size() int64 {
	switch d {
	case F64:
		return 8
	case F32, I32:
		return 4
	case BF16:
		return 2
	case U8:
		return 1
	}
	return 0
}

func (d DType) String() string {
	switch d {
	case F32:
		return "float32"
	case BF16:
		return "bfloat16"
	case F64:
		return "float64"
	case I32:
		return "int32"
	case U8:
		return "uint8"
	case NF4:
		return "nf4"
	}
	return fmt.Sprintf("dtype(%d)", uint8(d))
}

// Buffer is a block of a backend's memory: an arena, made once by [Backend.NewArena].
type Buffer interface {
	Bytes() int64
}

// Tensor is a named view of a Buffer: row-major, contiguous, starting Off bytes in. The zero
// Tensor (Nil) stands for "not given" where an argument is optional.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	Buf   Buffer
	Off   int64
}

// Align is the alignment of every tensor in an arena, in bytes: a cache line of the CPU, and
// what the tensor memory accelerator of a Hopper card asks of a tile twice over.
const Align = 256

// Nil reports whether the tensor is absent.
func (t Tensor) Nil() bool { return t.Buf == nil }

// Len is the number of elements.
func (t Tensor) Len() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Bytes is the storage the elements take.
func (t Tensor) Bytes() int64 { return int64(t.Len()) * t.DType.Size() }

// Dim is the length of axis i.
func (t Tensor) Dim(i int) int { return t.Shape[i] }

// Cols is the length of the last axis.
func (t Tensor) Cols() int { return t.Shape[len(t.Shape)-1] }

// Rows views rows lo to hi of the first axis.
func (t Tensor) Rows(lo, hi int) Tensor {
	stride := int64(t.Len()/max(t.Shape[0], 1)) * t.DType.Size()
	v := t
	v.Shape = append([]int{hi - lo}, t.Shape[1:]...)
	v.Off += int64(lo) * stride
	return v
}

// Slice views n elements from element lo of a tensor seen as flat, with a shape of its own.
func (t Tensor) Slice(name string, lo int, shape ...int) Tensor {
	return Tensor{Name: name, DType: t.DType, Shape: shape, Buf: t.Buf, Off: t.Off + int64(lo)*t.DType.Size()}
}

// String names the tensor as errors do: "xn (2048,3584) bfloat16".
func (t Tensor) String() string {
	if t.Nil() {
		return t.Name + "<none>"
	}
	return fmt.Sprintf("%s (%s) %s", t.Name, dimsText(t.Shape), t.DType)
}

func dimsText(shape []int) string {
	dims := make([]string, len(shape))
	for i, d := range shape {
		dims[i] = fmt.Sprint(d)
	}
	return strings.Join(dims, ",")
}
