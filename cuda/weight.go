//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"fmt"
	"time"

	"gorgonia.org/cu"

	"qlora/cuda/sizes"
	"qlora/internal/nf4"
	"qlora/model/ops"
)

// weight is a frozen matrix (Rows, Cols) bfloat16 in the arena, then its bias (Rows) float32, in the row order of
// layout.go. In NF4 its parts lie one after the other as they are stored, and the dequantising kernel puts their rows in
// order; see quantized.go.
type weight struct {
	spec ops.WeightSpec
	mem  ops.Tensor
}

// Spec is what the weight was made from.
func (w *weight) Spec() ops.WeightSpec { return w.spec }

// Bytes is the memory of the matrix and its bias.
func (w *weight) Bytes() int64 { return weightBytes(w.spec) }

// weightBytes does not depend on the card.
func weightBytes(s ops.WeightSpec) int64 { return sizes.Card{}.WeightBytes(s) }

func aligned(n int64) int64 { return sizes.Aligned(n) }

// matrix and bias are where a weight's two parts start; there may be no bias.
func (w *weight) matrix() ops.Tensor {
	return ops.Tensor{Name: w.spec.Name, DType: ops.BF16, Shape: []int{w.spec.Rows(), w.spec.Cols}, Buf: w.mem.Buf, Off: w.mem.Off}
}

func (w *weight) bias() ops.Tensor {
	if !w.spec.Bias {
		return ops.Tensor{}
	}
	without := w.spec
	without.Bias = false
	return ops.Tensor{Name: w.spec.Name + " bias", DType: ops.F32, Shape: []int{w.spec.Rows()}, Buf: w.mem.Buf, Off: w.mem.Off + weightBytes(without)}
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
		if err := b.loadPart(w, p, &parts[p]); err != nil {
			return nil, err
		}
	}
	if spec.Bias {
		if err := ops.WriteF32(b, w.bias(), place(spec, bias)); err != nil {
			return nil, err
		}
	}
	if parts[0].Random == nil {
		for _, p := range parts {
			b.loaded.Bytes += sourceBytes(&p)
		}
		b.loaded.Time += time.Since(begun)
	}
	return w, nil
}

// sourceBytes is what is read of a part, of one in 32 bits as of one in 16.
func sourceBytes(p *ops.Source) int64 {
	if p.NF4 != nil {
		return int64(nf4.CodeBytes(p.Rows * p.Cols))
	}
	return int64(p.Rows) * int64(p.Cols) * ops.BF16.Size()
}

// loadPart brings part p to its place.
func (b *Backend) loadPart(w *weight, p int, from *ops.Source) error {
	switch {
	case w.spec.DType == ops.NF4:
		return b.quantisePart(w, p, from)
	case from.Random != nil:
		b.makePart(w, p, from)
		return nil
	}
	return b.copyPart(w, p, from)
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
	rowBytes := from.Cols * int(ops.BF16.Size())
	if host := hostBytes(w.mem); host != nil { // plain, read where it stays
		return b.named(w, from, readRows(host[:from.Rows*rowBytes], from, 0, from.Rows))
	}
	base := cu.DevicePtr(address(w.mem))
	return b.eachBlock(w, from, unit(w.spec, p), slotBytes, func(s *slot, row, n int) error {
		return s.sendStrips(base, strips(w.spec, p, row, n), rowBytes, b.stream)
	})
}

// eachBlock reads the rows of a part into slots, in blocks of a multiple of unit rows and at most so many bytes, has send
// copy each to the card, and then calls what is to be done with it there.
func (b *Backend) eachBlock(w *weight, from *ops.Source, unit int, most int64, send func(s *slot, row, n int) error, then ...func(row, n int)) error {
	rowBytes := from.Cols * int(ops.BF16.Size())
	block := int(min(most, slotBytes)) / rowBytes / unit * unit
	if block == 0 {
		return fmt.Errorf("cuda: weight %s: %d rows of %d columns do not fit the %d MiB of a copy", w.spec.Name, unit, from.Cols, min(most, slotBytes)>>20)
	}
	for row := 0; row < from.Rows; row += block {
		n := min(block, from.Rows-row)
		var to *slot
		if err := b.do("NewWeight", func() (err error) { to, err = b.staging.take(); return err }); err != nil {
			return err
		}
		if err := b.named(w, from, readRows(to.bytes[:n*rowBytes], from, row, n)); err != nil {
			return err
		}
		if err := b.do("NewWeight", func() error { return send(to, row, n) }); err != nil {
			return err
		}
		for _, f := range then {
			f(row, n)
		}
	}
	return nil
}

// named says of which weight an error of a source is.
func (b *Backend) named(w *weight, from *ops.Source, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cuda: weight %s: %s: %w", w.spec.Name, from.Name, err)
}

// weight is w as this backend made it.
func (b *Backend) weight(w ops.Weight) (*weight, error) {
	own, ok := w.(*weight)
	if !ok {
		return nil, fmt.Errorf("cuda: weight %s was made by another backend (%T)", w.Spec().Name, w)
	}
	return own, nil
}
