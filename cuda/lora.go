//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// LoRAPackBytes is both factors in bfloat16 as the kernels read them.
func (b *Backend) LoRAPackBytes(l *ops.LoRA) int64 { return b.sizes().LoRAPackBytes(l) }

// PackLoRA fills the packs of all from A and B, in one launch.
func (b *Backend) PackLoRA(all []*ops.LoRA) {
	if !b.begin(ops.CheckPackLoRA(all, b.LoRAPackBytes)) || len(all) == 0 {
		return
	}
	packs := make([]C.qk_lora, len(all))
	for i, l := range all {
		if !b.begin(stored("PackLoRA", "A", l.Modules[0].A, ops.F32)) { // B is of its type
			return
		}
		packs[i] = loraOf(l)
	}
	b.launch("PackLoRA", func() C.qk_status {
		return C.qk_lora_pack(&packs[0], C.int32_t(len(packs)), b.onStream())
	}, all[0].Pack, all[0].Modules[0].A, all[0].Modules[0].B)
}

// LoRAGrad adds to dA or dB of the modules of each job, in one launch.
func (b *Backend) LoRAGrad(of []ops.GradJob, batch *ops.Batch) {
	if !b.begin(ops.CheckLoRAGrad(of, batch)) || len(of) == 0 {
		return
	}
	for i := range of {
		if !b.begin(stored("LoRAGrad", "wide", of[i].Wide, ops.BF16)) {
			return
		}
	}
	all, unpin := jobs(of)
	defer unpin()
	b.launch("LoRAGrad", func() C.qk_status {
		return C.qk_lora_grad(&all[0], C.int32_t(len(all)), b.batch(batch), at(b.work), b.workBytes(), b.onStream())
	}, of[0].Wide, of[0].Low)
}
