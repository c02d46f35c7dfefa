//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"qlora/internal/nf4"
	"qlora/model/ops"
)

// QuantNF4 quantises src as bitsandbytes does.
func (b *Backend) QuantNF4(q ops.Quantized, src ops.Tensor) {
	if !b.begin(ops.CheckQuantNF4(q, src), stored("QuantNF4", "src", src, ops.BF16)) {
		return
	}
	n := src.Len()
	absmax := q.Absmax
	if absmax.DType != ops.F32 {
		absmax = b.work
	}
	b.launch("QuantNF4", func() C.qk_status {
		return C.qk_nf4_quant(at(q.Codes), at(absmax), at(src), C.int64_t(n), b.onStream())
	}, q.Codes, src)
	if q.Absmax.DType != ops.F32 {
		b.quantiseAbsmax(q, b.work, int64((n+nf4.Block-1)/nf4.Block))
	}
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
