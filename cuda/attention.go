//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// Attention is causal softmax(q·kᵀ/√D)·v within each segment.
func (b *Backend) Attention(o, lse, u, qkv ops.Tensor, h ops.Heads, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckAttention(o, lse, u, qkv, h, l, batch), stored("Attention", "qkv", qkv, ops.BF16)) {
		return
	}
	b.launch("Attention", func() C.qk_status {
		return C.qk_attention_fwd(at(o), at(lse), at(u), at(qkv), heads(h), b.lora(0, l), b.batch(batch),
			b.onStream(), b.variant())
	}, o, u, qkv)
}

// AttentionBack writes dqkv before rope and duQKV from do + mask∘(duO·A), and leaves that sum in do.
func (b *Backend) AttentionBack(dqkv, duQKV, do, duO, o, lse, qkv ops.Tensor, h ops.Heads, rope *ops.Rope, lo, lqkv *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckAttentionBack(dqkv, duQKV, do, duO, o, lse, qkv, h, rope, lo, lqkv, batch),
		stored("AttentionBack", "qkv", qkv, ops.BF16), storedRope("AttentionBack", rope)) {
		return
	}
	var angles ops.Rope
	if rope != nil {
		angles = *rope
	}
	if b.planAttention(batch, h); !b.begin() {
		return
	}
	b.launch("AttentionBack", func() C.qk_status {
		return C.qk_attention_bwd(at(dqkv), at(duQKV), at(do), at(duO), at(o), at(lse), at(qkv), at(angles.Cos), at(angles.Sin), heads(h),
			b.lora(0, lo), b.lora(1, lqkv), b.batch(batch), at(b.plan), at(b.work), b.workBytes(), b.onStream(), b.variant())
	}, dqkv, duQKV, do, qkv)
}
