//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// RMSNorm writes rho = 1/sqrt(mean(x²)+eps), xn = x·rho·w, and u of the modules that read xn.
func (b *Backend) RMSNorm(xn, rho, u, x, w ops.Tensor, eps float32, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckRMSNorm(xn, rho, u, x, w, eps, l, batch), stored("RMSNorm", "x", x, ops.BF16)) {
		return
	}
	b.launch("RMSNorm", func() C.qk_status {
		return C.qk_rmsnorm_fwd(at(xn), at(rho), at(u), at(x), at(w), C.int32_t(w.DType), C.float(eps), b.lora(0, l), b.batch(batch),
			C.int32_t(x.Cols()), b.onStream())
	}, xn, u, x)
}

// RMSNormBack writes dx = dres + norm'(dxn + Σ mask∘(du·A)), and duOut = s·dx·B.
func (b *Backend) RMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w ops.Tensor, in, out *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckRMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w, in, out, batch),
		stored("RMSNormBack", "x", x, ops.BF16)) {
		return
	}
	b.launch("RMSNormBack", func() C.qk_status {
		return C.qk_rmsnorm_bwd(at(dx), at(duOut), at(dres), at(dxn), at(du), at(u), at(x), at(rho), at(w), C.int32_t(w.DType),
			b.lora(0, in), b.lora(1, out), b.batch(batch), C.int32_t(x.Cols()), b.onStream())
	}, dx, duOut, du, x)
}
