package cpu

import "qlora/model/ops"

// dropRow writes dst = scale·mask∘src for columns col.. of token t, under the mask of module m; col is a multiple of 8.
// dst may be src.
func dropRow[T Float](dst, src []T, col int, m *ops.Module, h *ops.HostBatch, t int) {
	threshold := ops.DropThreshold(m.Drop)
	scale := T(ops.DropScale(threshold))
	dst = dst[:len(src)]
	for i := 0; i < len(src); i += 8 {
		lanes := ops.DropLanes(h.Seed, h.Step, uint32((col+i)/8), uint32(h.Pos[t]), uint32(h.Sample[t]), m.Stream)
		for j := range min(8, len(src)-i) {
			kept := T(0)
			if uint32(lanes[j]) >= threshold {
				kept = src[i+j] * scale
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
		dropRow(y[i*cols:(i+1)*cols], x[i*cols:(i+1)*cols], 0, m, h, lo+i)
	})
	return y
}
