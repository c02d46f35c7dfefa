//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"fmt"

	"qlora/cuda/sizes"
	"qlora/model/ops"
)

// sizes is what memory takes on this card.
func (b *Backend) sizes() sizes.Card { return sizes.Card{Multiprocessors: b.dev.Multiprocessors} }

// WorkspaceBytes is the most that any op within d takes, and room for weights that are dequantised.
func (b *Backend) WorkspaceBytes(d ops.Dims) int64 { return b.sizes().WorkspaceBytes(d) }

// SetWorkspace gives the ops their memory.
func (b *Backend) SetWorkspace(t ops.Tensor, d ops.Dims) {
	w := b.sizes().WorkOf(d)
	if t.Nil() || t.Bytes() < w.Bytes() {
		b.fail(fmt.Errorf("cuda: a workspace of %v for ops that take %d bytes", t, w.Bytes()))
		return
	}
	part := func(name string, at, bytes int64) ops.Tensor { return t.Slice(name, int(at), int(bytes)) }
	b.work = part("workspace", 0, w.Ops)
	b.dequant = [2]dequantised{{at: part("wide weight", w.Ops, w.Wide)}, {at: part("narrow weight", w.Ops+w.Wide, w.Narrow)}}
	b.plan, b.planned = part("attention plan", w.Ops+w.Wide+w.Narrow, w.Plan), planned{}
}

// planned is what the plan in memory was made for.
type planned struct {
	batch *ops.Batch
	load  int // number of the load that filled it
	heads ops.Heads
}

// planAttention makes the plan of a batch, once for all layers.
func (b *Backend) planAttention(batch *ops.Batch, h ops.Heads) {
	want := planned{batch, b.loads, h}
	if b.planned == want {
		return
	}
	b.planned = want
	b.launch("AttentionPlan", func() C.qk_status {
		return C.qk_attention_plan(at(b.plan), C.int64_t(b.plan.Bytes()), heads(h), b.batch(batch), b.onStream())
	}, b.plan)
}
