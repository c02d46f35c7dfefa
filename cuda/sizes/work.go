package sizes

import (
	"qlora/internal/nf4"
	"qlora/model/ops"
)

// How much of a run one launch takes at most, where an op can take it in pieces: more would cost memory, and gain nothing.
const (
	KLRows       = 64
	DecodeTokens = 64
	SampleRows   = 16
	gradBytes    = 256 << 20
	leastWork    = 1 << 20 // also for what no dimension of a run bounds
)

// Work is the parts of the workspace: what the ops use one after the other; where weights are NF4, room for two of them in
// bfloat16, the wide ones of a layer (qkv, gate|up) and the narrow (o, down), products with which take turns; and, for
// training, what lasts as long as a batch: the plan of attention's backward.
type Work struct{ Ops, Wide, Narrow, Plan int64 }

// Bytes is the whole workspace.
func (w Work) Bytes() int64 { return w.Ops + w.Wide + w.Narrow + w.Plan }

// WorkOf is the workspace of ops within d.
func (c Card) WorkOf(d ops.Dims) Work {
	w := Work{Ops: leastWork}
	for _, bytes := range c.each(d) {
		w.Ops = max(w.Ops, bytes)
	}
	w.Ops = Aligned(w.Ops)
	if d.Quantized {
		heads, C, F := int64(d.H)*int64(d.D), int64(d.C), int64(d.F)
		w.Wide = Aligned(2 * C * max(heads+2*int64(d.Hk)*int64(d.D), 2*F))
		w.Narrow = Aligned(2 * C * max(heads, F))
	}
	if d.Training {
		w.Plan = AttentionPlan(d.T, d.S, ops.Heads{H: d.H, Hk: d.Hk, D: d.D})
	}
	return w
}

// WorkspaceBytes is the whole workspace of ops within d.
func (c Card) WorkspaceBytes(d ops.Dims) int64 { return c.WorkOf(d).Bytes() }

// each is what each op takes for its largest launch within d.
func (c Card) each(d ops.Dims) []int64 {
	all := []int64{HeadLoss(d.N, d.C, d.V)}
	if d.Training {
		return append(all, AttentionBack(d.T, d.S, ops.Heads{H: d.H, Hk: d.Hk, D: d.D}, c.Multiprocessors), grads(d))
	}
	blocks := ceil(int64(max(d.F, d.C))*int64(d.C), nf4.Block) // of the largest matrix
	all = append(all, KL(min(d.N, KLRows), d.V), ContextBytes(d.V)+Sample(SampleRows, d.V), Aligned(4*blocks)+NF4Absmax(blocks))
	if d.Context > 0 {
		all = append(all, DecodeAttention(min(d.T, DecodeTokens), ops.Heads{H: d.H, Hk: d.Hk, D: d.D}, d.Context))
	}
	return all
}

// grads is what the gradients of the adapters take: all tokens at once unless that is more than gradBytes.
func grads(d ops.Dims) int64 {
	attention, feed := 2*d.C+2*(d.H+d.Hk)*d.D, 2*d.C // columns of x and dy of the adapters of each half of a layer
	tile := d.T
	if d.Tile > 0 {
		tile = min(tile, d.Tile)
	}
	work := func(T int) int64 {
		return max(LoRAGrad(T, attention, d.Width), LoRAGrad(ops.GradBlock, attention+feed, d.Width), SwiGLUBack(min(T, tile), d.F, d.Rank))
	}
	T := d.T
	for T > ops.GradBlock && work(T) > gradBytes {
		T = (T/2 + ops.GradBlock - 1) / ops.GradBlock * ops.GradBlock
	}
	return work(T)
}

// ContextIDs is room for the ids of a sampling's rows at once, and ContextBytes that in the workspace.
func ContextIDs(V int) int { return max(V, 1<<16) }

// ContextBytes is the room for ids, their number and the row's sequence.
func ContextBytes(V int) int64 { return Aligned(4 * int64(2*SampleRows+ContextIDs(V))) }

// What the launchers of kernels/ take, by the same arithmetic: qk_*_work of each.

// HeadLoss is qk_head_loss_work.
func HeadLoss(N, C, V int) int64 {
	const chunk, tile, part, stat = 1024, 128, 64, 12
	rows, v := int64(min(N, chunk)), int64(V)
	parts := ceil(v, tile) * (tile / part)
	return Aligned(rows*ceil(v, 8)*8*2) + Aligned(rows*parts*stat) + Aligned(rows*4) + Aligned(rows*int64(C)*2)
}

// KL is qk_kl_work.
func KL(N, V int) int64 { return 2 * int64(min(N, 1024)) * int64(V) * 4 }

// Sample is qk_sample_work: three words an id, and two for each run of 4096.
func Sample(n, V int) int64 { return int64(n) * Aligned(12*int64(V)+8*int64((V+4095)/4096)) }

// NF4Absmax is qk_nf4_absmax_work.
func NF4Absmax(blocks int64) int64 { return (blocks/16 + 64) * 4 }

// DecodeAttention is qk_decode_attention_work.
func DecodeAttention(T int, h ops.Heads, cap int) int64 {
	const maxSplits, least = 128, 128
	keys := max(ceil(ceil(int64(cap), maxSplits), 64)*64, least)
	return int64(T) * ceil(int64(cap), keys) * int64(h.H) * int64(h.D+2) * 4
}

const attentionRows = 128 // of a tile

// AttentionPlan is qk_attention_plan_bytes.
func AttentionPlan(T, S int, h ops.Heads) int64 {
	const item, sum, counts = 16, 16, 16
	tiles := int64(T/attentionRows + S)
	return Aligned(counts) + Aligned(4*tiles) + 2*Aligned(tiles*int64(h.H)*item) + Aligned(tiles*int64(h.Hk)*sum)
}

// AttentionBack is qk_attention_bwd_work.
func AttentionBack(T, S int, h ops.Heads, multiprocessors int) int64 {
	const slots = 2
	tiles, H := int64(T/attentionRows+S), int64(h.H)
	most := min(slots*int64(multiprocessors), tiles*H)
	return 2*Aligned(H*tiles*attentionRows*4) + Aligned(most*2*attentionRows*int64(h.D)*4)
}

// LoRAGrad is qk_lora_grad_work.
func LoRAGrad(T, columns, rank int) int64 {
	const jobs, modules, strip = 8, 3, 64
	return ceil(int64(T), ops.GradBlock) * (int64(columns) + jobs*modules*strip) * (int64(rank) + 7*modules) * 4
}

// SwiGLUBack is qk_swiglu_bwd_work.
func SwiGLUBack(T, F, rank int) int64 {
	const threads, float4 = 128, 16
	blocks, tiles, chunks := ceil(int64(T), ops.GradBlock), int64(1), int64(2)
	switch {
	case rank > 32:
		tiles, chunks = 8, 1
	case rank > 16:
		tiles, chunks = 4, 1
	case rank > 8:
		tiles = 2
	}
	runs := ceil(int64(F), 64*chunks)
	bytes := blocks * runs * chunks * 3 * tiles * threads * float4
	if tiles <= 2 {
		bytes += blocks * runs * ops.GradBlock * 16 * tiles * 4
	}
	return bytes
}
