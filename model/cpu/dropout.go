package cpu

import (
	"qlora/model/cpu/vec"
	"qlora/model/ops"
)

// dropRow writes dst = scale·mask∘src for all columns of token t, under the mask of module m. dst may be src.
func dropRow[T Float](dst, src []T, m *ops.Module, h *ops.HostBatch, t int) {
	mask := vec.Mask{
		Seed: h.Seed, Step: h.Step, Pos: uint32(h.Pos[t]), Sample: uint32(h.Sample[t]), Module: m.Stream,
		Threshold: ops.DropThreshold(m.Drop),
	}
	scale := ops.DropScale(mask.Threshold)
	if dst, ok := any(dst).([]float32); ok {
		vec.Dropout(dst, any(src).([]float32), mask, scale)
		return
	}
	for i := 0; i < len(src); i += 8 {
		lanes := ops.DropLanes(mask.Seed, mask.Step, uint32(i/8), mask.Pos, mask.Sample, mask.Module)
		for j := range min(8, len(src)-i) {
			kept := T(0)
			if uint32(lanes[j]) >= mask.Threshold {
				kept = src[i+j] * T(scale)
			}
			dst[i+j] = kept
		}
	}
}

// dropped is dropout(x) of a module for tokens lo to hi; x is (hi-lo, cols) and is returned itself where nothing is dropped.
func (b *Backend[T]) dropped(x []T, cols int, m *ops.Module, h *ops.HostBatch, lo, hi int) []T {
	if ops.DropThreshold(m.Drop) == 0 {
		return x
	}
	y := b.scratch.take((hi - lo) * cols)
	b.rows(hi-lo, func(i int) {
		dropRow(y[i*cols:(i+1)*cols], x[i*cols:(i+1)*cols], m, h, lo+i)
	})
	return y
}
