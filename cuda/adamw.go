//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// GradNorm writes norm[0] = the L2 norm of grads and norm[1] = how many are not finite.
func (b *Backend) GradNorm(norm, grads ops.Tensor) {
	if !b.begin(ops.CheckGradNorm(norm, grads), stored("GradNorm", "grads", grads, ops.F32), stored("GradNorm", "norm", norm, ops.F32)) {
		return
	}
	b.launch("GradNorm", func() C.qk_status {
		return C.qk_grad_norm(at(norm), at(grads), C.int64_t(grads.Len()), at(b.work), b.workBytes(), b.onStream())
	}, norm, grads)
}

// AdamW updates params, m, v in place.
func (b *Backend) AdamW(params, m, v, grads, norm ops.Tensor, a ops.AdamWArgs) {
	if !b.begin(ops.CheckAdamW(params, m, v, grads, norm, a), stored("AdamW", "params", params, ops.F32), stored("AdamW", "norm", norm, ops.F32)) {
		return
	}
	groups := make([]C.qk_adamw_group, len(a.Groups))
	for i, g := range a.Groups {
		groups[i] = C.qk_adamw_group{len: C.int64_t(g.Len), lr: C.double(g.LR), weight_decay: C.double(g.WeightDecay)}
	}
	if len(groups) == 0 {
		return // no parameters
	}
	b.launch("AdamW", func() C.qk_status {
		return C.qk_adamw(at(params), at(m), at(v), at(grads), at(norm), C.int64_t(params.Len()), &groups[0], C.int32_t(len(groups)),
			C.int32_t(a.Step), C.double(a.Beta1), C.double(a.Beta2), C.double(a.Eps), C.double(a.MaxNorm), b.onStream())
	}, params, grads)
}
