//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import "qlora/model/ops"

// QuantNF4 quantises src as bitsandbytes does.
func (b *Backend) QuantNF4(q ops.Quantized, src ops.Tensor) {
	if !b.begin(ops.CheckQuantNF4(q, src), stored("QuantNF4", "src", src, ops.BF16)) {
		return
	}
	b.launch("QuantNF4", func() C.qk_status {
		return C.qk_nf4_quant(at(q.Codes), at(q.Absmax), at(q.Nested), at(q.Offset), at(src), C.int64_t(src.Len()),
			at(b.work), b.workBytes(), b.onStream())
	}, q.Codes, src)
}

// DequantNF4 writes code·absmax.
func (b *Backend) DequantNF4(dst ops.Tensor, q ops.Quantized) {
	if !b.begin(ops.CheckDequantNF4(dst, q), stored("DequantNF4", "dst", dst, ops.BF16)) {
		return
	}
	b.launch("DequantNF4", func() C.qk_status {
		return C.qk_nf4_dequant(at(dst), at(q.Codes), at(q.Absmax), at(q.Nested), at(q.Offset), C.int64_t(dst.Len()), b.onStream())
	}, dst, q.Codes)
}
