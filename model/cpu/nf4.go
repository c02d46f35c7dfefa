package cpu

import (
	"qlora/internal/nf4"
	"qlora/model/cpu/vec"
	"qlora/model/ops"
)

// QuantNF4 quantises src as bitsandbytes does on the processor, bit for bit. Its arithmetic is float32 on every backend.
func (b *Backend[T]) QuantNF4(q ops.Quantized, src ops.Tensor) {
	if !b.begin(ops.CheckQuantNF4(q, src)) {
		return
	}
	n, codes := src.Len(), raw(q.Codes)
	absmax := make([]float32, (n+nf4.Block-1)/nf4.Block)
	b.parallel(len(absmax), func(i int, _ *scratch[T]) {
		var block [nf4.Block]float32
		lo := i * nf4.Block
		values := block[:min(nf4.Block, n-lo)]
		load(values, src, lo)
		absmax[i] = nf4.QuantizeBlock(codes[lo/2:], values)
	})
	if q.Absmax.DType == ops.F32 {
		copy(view[float32](q.Absmax), absmax)
		return
	}
	view[float32](q.Offset)[0] = nf4.QuantizeAbsmax(raw(q.Absmax), view[float32](q.Nested), absmax)
}

// DequantNF4 writes code·absmax, rounded to dst's storage.
func (b *Backend[T]) DequantNF4(dst ops.Tensor, q ops.Quantized) {
	if !b.begin(ops.CheckDequantNF4(dst, q)) {
		return
	}
	n, codes, scales := dst.Len(), raw(q.Codes), scalesOf(q)
	b.parallel((n+nf4.Block-1)/nf4.Block, func(i int, _ *scratch[T]) {
		var block [nf4.Block]float32
		lo := i * nf4.Block
		values := block[:min(nf4.Block, n-lo)]
		nf4.Dequantize(values, codes[lo/2:], scales.At(i))
		store(dst, lo, values)
	})
}

// scalesOf views the absmax of q.
func scalesOf(q ops.Quantized) nf4.Scales {
	if q.Absmax.DType == ops.F32 {
		return nf4.Scales{Absmax: view[float32](q.Absmax)}
	}
	return nf4.Scales{Absmax8: raw(q.Absmax), Nested: view[float32](q.Nested), Offset: view[float32](q.Offset)[0]}
}

// load reads elements lo.. of t as float32.
func load(dst []float32, t ops.Tensor, lo int) {
	switch t.DType {
	case ops.F32:
		copy(dst, view[float32](t)[lo:])
	case ops.BF16:
		vec.FromBF16(dst, view[uint16](t)[lo:lo+len(dst)])
	case ops.F64:
		for i := range dst {
			dst[i] = float32(view[float64](t)[lo+i])
		}
	}
}

// store writes elements lo.. of t, rounded to its storage.
func store(t ops.Tensor, lo int, src []float32) {
	switch t.DType {
	case ops.F32:
		copy(view[float32](t)[lo:], src)
	case ops.BF16:
		vec.ToBF16(view[uint16](t)[lo:lo+len(src)], src)
	case ops.F64:
		for i, x := range src {
			view[float64](t)[lo+i] = float64(x)
		}
	}
}
