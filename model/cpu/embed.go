package cpu

import "qlora/model/ops"

// Embed writes x[t] = table[ids[t]].
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
	b.rows(batch.T, func(t int) { w.row(to[t*C:(t+1)*C], int(batch.Host.IDs[t])) })
}
