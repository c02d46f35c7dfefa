//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// How much of a run one launch takes at most, where an op can take it in pieces: more would cost memory, and gain nothing.
const (
	klRows       = 64
	decodeTokens = 64
	sampleRows   = 16
	gradBytes    = 256 << 20
	leastWork    = 1 << 20 // also for what no dimension of a run bounds
)

// WorkspaceBytes is the most that any op within d takes, for they use it one after the other, and behind it what lasts as
// long as a batch: the plan of attention's backward.
func (b *Backend) WorkspaceBytes(d ops.Dims) int64 {
	var most int64 = leastWork
	err := b.do("WorkspaceBytes", func() error {
		for _, bytes := range workOf(d) {
			most = max(most, bytes)
		}
		return nil
	})
	if err != nil {
		return 0 // kept as b.fault
	}
	return aligned(most) + planBytes(d)
}

// planBytes is the plan of the largest batch of d.
func planBytes(d ops.Dims) int64 {
	if !d.Training {
		return 0
	}
	return aligned(int64(C.qk_attention_plan_bytes(C.int32_t(d.T), C.int32_t(d.S), heads(ops.Heads{H: d.H, Hk: d.Hk, D: d.D}))))
}

// workOf is what each op takes for its largest launch within d.
func workOf(d ops.Dims) []int64 {
	i32 := func(n int) C.int32_t { return C.int32_t(n) }
	h := heads(ops.Heads{H: d.H, Hk: d.Hk, D: d.D})
	all := []int64{
		int64(C.qk_head_loss_work(i32(d.N), i32(d.C), i32(d.V))),
		int64(C.qk_kl_work(i32(min(d.N, klRows)), i32(d.V))),
		contextBytes(d.V) + int64(C.qk_sample_work(sampleRows, i32(d.V))),
		int64(C.qk_nf4_quant_work(C.int64_t(max(d.F, d.C)) * C.int64_t(d.C))),
	}
	if d.Context > 0 {
		all = append(all, int64(C.qk_decode_attention_work(i32(min(d.T, decodeTokens)), h, i32(d.Context))))
	}
	if d.Training {
		all = append(all, int64(C.qk_attention_bwd_work(i32(d.T), i32(d.S), h)), gradWork(d))
	}
	return all
}

// gradWork is what the gradients of the adapters take: all tokens at once unless that is more than gradBytes.
func gradWork(d ops.Dims) int64 {
	attention, feed := 2*d.C+2*(d.H+d.Hk)*d.D, 2*d.C // columns of x and dy of the adapters of each half of a layer
	work := func(T int) int64 {
		rank := C.int32_t(d.Rank)
		return int64(max(
			C.qk_lora_grad_work(C.int32_t(T), C.int64_t(attention), rank),
			C.qk_lora_grad_work(ops.GradBlock, C.int64_t(attention+feed), rank),
			C.qk_swiglu_bwd_work(C.int32_t(T), C.int32_t(d.F), C.int32_t(d.ModuleRank))))
	}
	T := d.T
	for T > ops.GradBlock && work(T) > gradBytes {
		T = (T/2 + ops.GradBlock - 1) / ops.GradBlock * ops.GradBlock
	}
	return work(T)
}

// SetWorkspace gives the ops their memory.
func (b *Backend) SetWorkspace(t ops.Tensor, d ops.Dims) {
	scratch := int(t.Bytes() - planBytes(d))
	b.work, b.plan = t.Slice("workspace", 0, scratch), t.Slice("attention plan", scratch, int(t.Bytes())-scratch)
	b.planned = planned{}
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
