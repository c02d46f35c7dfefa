//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"fmt"

	"gorgonia.org/cu"

	"qlora/cuda/sizes"
	"qlora/internal/nf4"
	"qlora/model/ops"
)

// Weights in NF4. A product of many tokens reads bfloat16: its weight is dequantised just before, into one of two places of
// the workspace, which stay valid until another weight takes them. Products with wide weights (qkv, gate|up) and narrow ones
// (o, down) take turns, so that a weight may be made while the product before still reads its own. A few tokens of decoding
// read the codes themselves, but for widths that no Qwen2.5 has (matvecNF4Multiple).

// dequantised is a place for a weight in bfloat16, and the one that it holds.
type dequantised struct {
	at    ops.Tensor
	holds *weight
}

// part is where part p of a weight in NF4 lies.
func (w *weight) part(p int) ops.Quantized {
	at := w.mem.Off
	for i := range p {
		at += sizes.PartOf(w.spec, i).Bytes()
	}
	n, of := w.spec.Parts[p]*w.spec.Cols, sizes.PartOf(w.spec, p)
	blocks := (n + nf4.Block - 1) / nf4.Block
	tensor := func(name string, d ops.DType, off int64, length int) ops.Tensor {
		return ops.Tensor{Name: name, DType: d, Shape: []int{length}, Buf: w.mem.Buf, Off: at + off}
	}
	q := ops.Quantized{Codes: tensor("codes", ops.U8, 0, nf4.CodeBytes(n))}
	if w.spec.Single {
		q.Absmax = tensor("absmax", ops.F32, of.Codes, blocks)
		return q
	}
	q.Absmax = tensor("absmax", ops.U8, of.Codes, blocks)
	q.Nested = tensor("nested", ops.F32, of.Codes+of.Absmax, (blocks+nf4.NestedBlock-1)/nf4.NestedBlock)
	q.Offset = tensor("offset", ops.F32, of.Codes+of.Absmax+of.Nested, 1)
	return q
}

// quantisedArg is a weight in NF4 as launchers take it.
func (w *weight) quantisedArg() C.qk_nf4_weight {
	to := C.qk_nf4_weight{n: C.int32_t(len(w.spec.Parts)), kind: C.int32_t(w.spec.Kind), h: headsOf(w.spec), cols: C.int32_t(w.spec.Cols)}
	for p, rows := range w.spec.Parts {
		q := w.part(p)
		to.part[p] = C.qk_nf4_part{codes: at(q.Codes), absmax: at(q.Absmax), nested: at(q.Nested), offset: at(q.Offset), rows: C.int32_t(rows)}
	}
	return to
}

// matrix is a weight in bfloat16: as it lies, or dequantised now.
func (b *Backend) matrix(w *weight) ops.Tensor {
	if w.spec.DType != ops.NF4 {
		return w.matrix()
	}
	place := &b.dequant[0]
	if w.spec.Kind == ops.Plain {
		place = &b.dequant[1]
	}
	m := ops.Tensor{Name: w.spec.Name, DType: ops.BF16, Shape: []int{w.spec.Rows(), w.spec.Cols}, Buf: place.at.Buf, Off: place.at.Off}
	switch {
	case place.holds == w:
		return m
	case place.at.Nil() || m.Bytes() > place.at.Bytes():
		b.fail(fmt.Errorf("cuda: weight %s takes %d bytes dequantised, and the workspace has room for %v", w.spec.Name, m.Bytes(), place.at))
		return m
	}
	arg := w.quantisedArg()
	b.launch("Dequantise", func() C.qk_status { return C.qk_nf4_dequant_weight(at(m), &arg, b.onStream()) }, m)
	place.holds = w
	return m
}

// quantisePart brings part p into NF4: it is copied where it is stored so, else quantised on the card from bfloat16, a
// block of rows at a time, so that no more of it is ever held in 16 bits.
func (b *Backend) quantisePart(w *weight, p int, from *ops.Source) error {
	q := w.part(p)
	if from.NF4 != nil {
		return b.named(w, from, b.copyQuantised(q, from.NF4))
	}
	room, n := b.dequant[0].at, from.Rows*from.Cols
	b.dequant[0].holds, b.dequant[1].holds = nil, nil
	absmax := q.Absmax
	if !w.spec.Single {
		absmax = b.dequant[1].at
	}
	rowBytes := from.Cols * int(ops.BF16.Size())
	if room.Nil() || absmax.Nil() || room.Bytes() < int64(rowBytes) || absmax.Bytes() < sizes.Aligned(4*int64(n/nf4.Block))+sizes.NF4Absmax(int64(n/nf4.Block)) && !w.spec.Single {
		return fmt.Errorf("cuda: weight %s: the workspace has no room to quantise %s (%d,%d)", w.spec.Name, from.Name, from.Rows, from.Cols)
	}
	quantise := func(row, rows int) {
		src := ops.Tensor{Name: from.Name, DType: ops.BF16, Shape: []int{rows, from.Cols}, Buf: room.Buf, Off: room.Off}
		codes := q.Codes.Slice("codes", row*from.Cols/2, rows*from.Cols/2)
		scale := ops.Tensor{Name: "absmax", DType: ops.F32, Shape: []int{rows * from.Cols / nf4.Block}, Buf: absmax.Buf, Off: absmax.Off + 4*int64(row*from.Cols/nf4.Block)}
		b.launch("NewWeight", func() C.qk_status {
			return C.qk_nf4_quant(at(codes), at(scale), at(src), C.int64_t(src.Len()), b.onStream())
		}, codes, src)
	}
	if from.Random != nil {
		b.quantiseRandom(from, room, quantise)
	} else {
		err := b.eachBlock(w, from, 1, room.Bytes(), func(s *slot, row, rows int) error {
			return s.send(cu.DevicePtr(address(room)), rows*rowBytes, b.stream)
		}, quantise)
		if err != nil {
			return err
		}
	}
	if !w.spec.Single {
		b.quantiseAbsmax(q, absmax, int64(n/nf4.Block))
	}
	return nil
}

// quantiseRandom makes the stream of random numbers that a part is, as many rows at a time as there is room for.
func (b *Backend) quantiseRandom(from *ops.Source, room ops.Tensor, quantise func(row, rows int)) {
	step := int(room.Bytes() / (int64(from.Cols) * ops.BF16.Size()))
	for row := 0; row < from.Rows; row += step {
		rows := min(step, from.Rows-row)
		to := ops.Tensor{Name: from.Name, DType: ops.BF16, Shape: []int{rows, from.Cols}, Buf: room.Buf, Off: room.Off}
		b.launch("NewWeight", func() C.qk_status {
			return C.qk_random_normal(at(to), C.int64_t(from.Cols), C.int64_t(row)*C.int64_t(from.Cols), C.int32_t(rows), C.int32_t(from.Cols),
				C.uint32_t(from.Random.Seed), C.uint32_t(from.Random.Stream), C.float(from.Random.Scale()), b.onStream())
		}, to)
		quantise(row, rows)
	}
}

// quantiseAbsmax quantises the absmax of all blocks, float32 at the front of scratch.
func (b *Backend) quantiseAbsmax(q ops.Quantized, scratch ops.Tensor, blocks int64) {
	used := C.qk_ptr(sizes.Aligned(4 * blocks))
	b.launch("NewWeight", func() C.qk_status {
		return C.qk_nf4_absmax(at(q.Absmax), at(q.Nested), at(q.Offset), at(scratch), C.int64_t(blocks),
			at(scratch)+used, C.int64_t(scratch.Bytes())-C.int64_t(used), b.onStream())
	}, q.Absmax, scratch)
}

// copyQuantised copies a part as it is stored.
func (b *Backend) copyQuantised(q ops.Quantized, from *ops.NF4Source) error {
	to, left := cu.DevicePtr(address(q.Codes)), int(q.Codes.Bytes())
	for at := 0; left > 0; {
		n := min(left, slotBytes)
		var s *slot
		if err := b.do("NewWeight", func() (err error) { s, err = b.staging.take(); return err }); err != nil {
			return err
		}
		if err := readCodes(s.bytes[:n], from, at); err != nil {
			return err
		}
		if err := b.do("NewWeight", func() error { return s.send(to, n, b.stream) }); err != nil {
			return err
		}
		at, left, to = at+n, left-n, to+cu.DevicePtr(n)
	}
	if from.Absmax != nil {
		return ops.WriteF32(b, q.Absmax, from.Absmax)
	}
	if err := b.Write(q.Absmax, from.Absmax8); err != nil {
		return err
	}
	if err := ops.WriteF32(b, q.Nested, from.Nested); err != nil {
		return err
	}
	return ops.WriteF32(b, q.Offset, []float32{from.Offset})
}
