//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// StoreKV copies k and v of every token to its place in the cache.
func (b *Backend) StoreKV(c ops.KVCache, qkv ops.Tensor, h ops.Heads, batch *ops.Batch) {
	if !b.begin(ops.CheckStoreKV(c, qkv, h, batch), stored("StoreKV", "qkv", qkv, ops.BF16)) {
		return
	}
	b.launch("StoreKV", func() C.qk_status {
		return C.qk_store_kv(at(c.K), at(c.V), at(qkv), heads(h), C.int32_t(c.K.Dim(1)), b.batch(batch), b.onStream())
	}, c.K, qkv)
}

// DecodeAttention attends from every token to its sequence's cached positions up to its own.
func (b *Backend) DecodeAttention(o, u, qkv ops.Tensor, c ops.KVCache, h ops.Heads, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckDecodeAttention(o, u, qkv, c, h, l, batch), stored("DecodeAttention", "qkv", qkv, ops.BF16)) {
		return
	}
	b.launch("DecodeAttention", func() C.qk_status {
		return C.qk_decode_attention(at(o), at(u), at(qkv), at(c.K), at(c.V), heads(h), C.int32_t(c.K.Dim(1)), b.lora(0, l),
			b.batch(batch), at(b.work), b.workBytes(), b.onStream())
	}, o, u, qkv, c.K)
}
