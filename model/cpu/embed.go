package cpu

import "qlora/model/ops"

// Embed writes x[t] = table[ids[t]], and NEFTune's noise on top.
func (b *Backend[T]) Embed(x ops.Tensor, table ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckEmbed(x, table, batch)) {
		return
	}
	w, err := b.weight(table)
	if !b.begin(err) {
		return
	}
	defer b.finish()
	to, C := b.out(x), x.Cols()
	b.rows(batch.T, func(t int) {
		row := to[t*C : (t+1)*C]
		w.row(row, int(batch.Host.IDs[t]))
		if batch.Host.Noise > 0 {
			addNoise(row, &batch.Host, t)
		}
	})
}

// addNoise adds the noise of token t.
func addNoise[T Float](row []T, h *ops.HostBatch, t int) {
	unit := T(ops.NoiseUnit(h.Noise, h.SegmentLength(t), len(row)))
	for i := 0; i < len(row); i += 8 {
		lanes := ops.DropLanes(h.Seed, h.Step, uint32(i/8), uint32(h.Pos[t]), uint32(h.Sample[t]), ops.NoiseStream)
		for j := range row[i:min(i+8, len(row))] {
			row[i+j] += T(T(ops.NoiseStep(lanes[j])) * unit)
		}
	}
}
