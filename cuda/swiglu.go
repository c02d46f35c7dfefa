//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// SwiGLU writes act = silu(gate)·up, and u of act's reader.
func (b *Backend) SwiGLU(act, u, gateup ops.Tensor, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckSwiGLU(act, u, gateup, l, batch), stored("SwiGLU", "act", act, ops.BF16)) {
		return
	}
	b.launch("SwiGLU", func() C.qk_status {
		return C.qk_swiglu_fwd(at(act), at(u), at(gateup), b.lora(0, l), b.batch(batch), C.int32_t(act.Cols()), b.onStream())
	}, act, u, gateup)
}

// SwiGLUBack writes dgate, dup in place of gateup, duGU, and adds dA of down and dB of gate and up.
func (b *Backend) SwiGLUBack(gateup, duGU, dact, duDown, uGU ops.Tensor, down, gu *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckSwiGLUBack(gateup, duGU, dact, duDown, uGU, down, gu, batch), stored("SwiGLUBack", "dact", dact, ops.BF16)) {
		return
	}
	b.launch("SwiGLUBack", func() C.qk_status {
		return C.qk_swiglu_bwd(at(gateup), at(duGU), at(dact), at(duDown), at(uGU), b.lora(0, down), b.lora(1, gu), b.batch(batch),
			C.int32_t(dact.Cols()), at(b.work), b.workBytes(), b.onStream())
	}, gateup, duGU, dact, duDown)
}
