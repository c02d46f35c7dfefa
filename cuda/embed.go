//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// Embed writes x[t] = table[ids[t]], and NEFTune's noise on top.
func (b *Backend) Embed(x ops.Tensor, table ops.Weight, batch *ops.Batch) {
	if !b.begin(ops.CheckEmbed(x, table, batch), stored("Embed", "x", x, ops.BF16)) {
		return
	}
	w, err := b.weight(table)
	if !b.begin(err) {
		return
	}
	m := w.matrix()
	b.launch("Embed", func() C.qk_status {
		return C.qk_embed(at(x), at(m), b.batch(batch), C.int32_t(x.Cols()), b.onStream())
	}, x, m)
}
