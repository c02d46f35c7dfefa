//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// launcherWork is what the launchers say of their scratch memory. A test holds package sizes, by which a plan is made, to it.
type launcherWork struct{}

func (launcherWork) headLoss(N, c, V int) int64 {
	return int64(C.qk_head_loss_work(C.int32_t(N), C.int32_t(c), C.int32_t(V)))
}

func (launcherWork) kl(N, V int) int64 { return int64(C.qk_kl_work(C.int32_t(N), C.int32_t(V))) }

func (launcherWork) sample(n, V int) int64 {
	return int64(C.qk_sample_work(C.int32_t(n), C.int32_t(V)))
}

func (launcherWork) nf4Absmax(blocks int64) int64 {
	return int64(C.qk_nf4_absmax_work(C.int64_t(blocks)))
}

func (launcherWork) decodeAttention(T int, h ops.Heads, cap int) int64 {
	return int64(C.qk_decode_attention_work(C.int32_t(T), heads(h), C.int32_t(cap)))
}

func (launcherWork) attentionPlan(T, S int, h ops.Heads) int64 {
	return int64(C.qk_attention_plan_bytes(C.int32_t(T), C.int32_t(S), heads(h)))
}

func (launcherWork) attentionBack(T, S int, h ops.Heads, multiprocessors int) int64 {
	return int64(C.qk_attention_bwd_work(C.int32_t(T), C.int32_t(S), heads(h), C.int32_t(multiprocessors)))
}

func (launcherWork) loraGrad(T, columns, rank int) int64 {
	return int64(C.qk_lora_grad_work(C.int32_t(T), C.int64_t(columns), C.int32_t(rank)))
}

func (launcherWork) swigluBack(T, F, rank int) int64 {
	return int64(C.qk_swiglu_bwd_work(C.int32_t(T), C.int32_t(F), C.int32_t(rank)))
}

func (launcherWork) gradNorm(n int64) int64 { return int64(C.qk_grad_norm_work(C.int64_t(n))) }
