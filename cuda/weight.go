//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"gorgonia.org/cu"

	"qlora/model/ops"
)

// weight is a frozen matrix (Rows, Cols) bfloat16 in the arena, then its bias (Rows) float32, in the row order of
// layout.go.
type weight struct {
	spec ops.WeightSpec
	mem  ops.Tensor
}

// Spec is what the weight was made from.
func (w *weight) Spec() ops.WeightSpec { return w.spec }

// Bytes is the memory of the matrix and its bias.
func (w *weight) Bytes() int64 { return weightBytes(w.spec) }

func matrixBytes(s ops.WeightSpec) int64 {
	return aligned(int64(s.Rows()) * int64(s.Cols) * ops.BF16.Size())
}

func weightBytes(s ops.WeightSpec) int64 {
	if !s.Bias {
		return matrixBytes(s)
	}
	return matrixBytes(s) + aligned(int64(s.Rows())*ops.F32.Size())
}

func aligned(n int64) int64 { return (n + ops.Align - 1) / ops.Align * ops.Align }

// matrix and bias are where a weight's two parts start; there may be no bias.
func (w *weight) matrix() ops.Tensor {
	return ops.Tensor{Name: w.spec.Name, DType: ops.BF16, Shape: []int{w.spec.Rows(), w.spec.Cols}, Buf: w.mem.Buf, Off: w.mem.Off}
}

func (w *weight) bias() ops.Tensor {
	if !w.spec.Bias {
		return ops.Tensor{}
	}
	return ops.Tensor{Name: w.spec.Name + " bias", DType: ops.F32, Shape: []int{w.spec.Rows()}, Buf: w.mem.Buf, Off: w.mem.Off + matrixBytes(w.spec)}
}

// WeightBytes is what NewWeight fills of mem.
func (b *Backend) WeightBytes(s ops.WeightSpec) int64 { return weightBytes(s) }

// NewWeight streams the parts to the card, block by block: one is read while others are on their way. What is not
// bfloat16 is rounded, to the nearest and ties to even.
func (b *Backend) NewWeight(mem ops.Tensor, spec ops.WeightSpec, parts []ops.Source, bias []float32) (ops.Weight, error) {
	if err := ops.CheckNewWeight(mem, weightBytes(spec), spec, parts, bias); err != nil {
		return nil, err
	}
	if err := checkLayout(spec); err != nil {
		return nil, err
	}
	begun := time.Now()
	w := &weight{spec, mem}
	for p := range parts {
		if err := b.copyPart(w, p, &parts[p]); err != nil {
			return nil, err
		}
	}
	if spec.Bias {
		if err := ops.WriteF32(b, w.bias(), place(spec, bias)); err != nil {
			return nil, err
		}
	}
	if parts[0].Random == nil {
		b.loaded.Bytes += w.Bytes()
		b.loaded.Time += time.Since(begun)
	}
	return w, nil
}

// makePart makes part p on the card, from the stream of random numbers that it is.
func (b *Backend) makePart(w *weight, p int, from *ops.Source) {
	cols, rowBytes := from.Cols, from.Cols*int(ops.BF16.Size())
	for _, t := range strips(w.spec, p, 0, from.Rows) {
		to := ops.Tensor{Name: from.Name, DType: ops.BF16, Shape: []int{t.rows, cols}, Buf: w.mem.Buf, Off: w.mem.Off + int64(t.dst)*int64(rowBytes)}
		b.launch("NewWeight", func() C.qk_status {
			return C.qk_random_normal(at(to), C.int64_t(t.step*cols), C.int64_t(t.src)*C.int64_t(cols), C.int32_t(t.rows), C.int32_t(cols),
				C.uint32_t(from.Random.Seed), C.uint32_t(from.Random.Stream), C.float(from.Random.Scale()), b.onStream())
		}, to)
	}
}

// copyPart copies part p.
func (b *Backend) copyPart(w *weight, p int, from *ops.Source) error {
	rowBytes, unit := from.Cols*int(ops.BF16.Size()), unit(w.spec, p)
	block := slotBytes / rowBytes / unit * unit
	if block == 0 {
		return fmt.Errorf("cuda: weight %s: %d rows of %d columns do not fit the %d MiB of a copy", w.spec.Name, unit, from.Cols, slotBytes>>20)
	}
	if from.Random != nil {
		b.makePart(w, p, from)
		return nil
	}
	base := cu.DevicePtr(address(w.mem))
	for row := 0; row < from.Rows; row += block {
		n := min(block, from.Rows-row)
		var to *slot
		if err := b.do("NewWeight", func() (err error) { to, err = b.staging.take(); return err }); err != nil {
			return err
		}
		if err := b.readRows(to.bytes[:n*rowBytes], from, row, n); err != nil {
			return fmt.Errorf("cuda: weight %s: %s: %w", w.spec.Name, from.Name, err)
		}
		err := b.do("NewWeight", func() error { return to.sendStrips(base, strips(w.spec, p, row, n), rowBytes, b.stream) })
		if err != nil {
			return err
		}
	}
	return nil
}

// readRows reads n rows as bfloat16.
func (b *Backend) readRows(dst []byte, from *ops.Source, row, n int) error {
	if from.ReadBF16 != nil {
		return from.ReadBF16(dst, row, n)
	}
	if b.floats == nil {
		b.floats = make([]float32, slotBytes/ops.BF16.Size())
	}
	values := b.floats[:n*from.Cols]
	if err := from.ReadF32(values, row, n); err != nil {
		return err
	}
	for i, v := range values {
		binary.LittleEndian.PutUint16(dst[2*i:], bf16(v))
	}
	return nil
}

// bf16 rounds to the nearest bfloat16, ties to even. A NaN stays one.
func bf16(v float32) uint16 {
	bits := math.Float32bits(v)
	if v != v {
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// weight is w as this backend made it.
func (b *Backend) weight(w ops.Weight) (*weight, error) {
	own, ok := w.(*weight)
	if !ok {
		return nil, fmt.Errorf("cuda: weight %s was made by another backend (%T)", w.Spec().Name, w)
	}
	return own, nil
}
