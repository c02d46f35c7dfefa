package cpu

import "qlora/model/ops"

// StoreKV copies k and v of every token to its place (Sample, Pos) in the cache.
func (b *Backend[T]) StoreKV(c ops.KVCache, qkv ops.Tensor, h ops.Heads, batch *ops.Batch) {
	if !b.begin(ops.CheckStoreKV(c, qkv, h, batch)) {
		return
	}
	size := int(qkv.DType.Size())
	from, row, positions := raw(qkv), (h.H+2*h.Hk)*h.D*size, c.K.Dim(1)
	k, v, width := raw(c.K), raw(c.V), h.Hk*h.D*size
	for t := range batch.T {
		at := (int(batch.Host.Sample[t])*positions + int(batch.Host.Pos[t])) * width
		src := from[t*row+h.H*h.D*size:]
		copy(k[at:at+width], src)
		copy(v[at:at+width], src[width:])
	}
}

// DecodeAttention attends from every token to the cached positions 0..Pos of its sequence. The query heads that share a
// key are the rows of one product.
func (b *Backend[T]) DecodeAttention(o, u, qkv ops.Tensor, c ops.KVCache, h ops.Heads, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckDecodeAttention(o, u, qkv, c, h, l, batch)) {
		return
	}
	defer b.finish()
	in, ks, vs, to := newQKV(b.in(qkv), h), b.in(c.K), b.in(c.V), b.out(o)
	group, width, positions := h.H/h.Hk, h.Hk*h.D, c.K.Dim(1)
	b.parallel(batch.T*h.Hk, func(task int, s *scratch[T]) {
		t, hk := task/h.Hk, task%h.Hk
		keys := int(batch.Host.Pos[t]) + 1
		at := int(batch.Host.Sample[t])*positions*width + hk*h.D
		p := s.take(group * keys)
		mulT(p, keys, in.q(t, hk*group), h.D, ks[at:], width, group, keys, h.D, false)
		y := to[(t*h.H+hk*group)*h.D:][:group*h.D]
		for i := range group {
			row := p[i*keys : (i+1)*keys]
			scaleRow(row, in.scale)
			scaleRow(row, 1/expSum(row, largest(row)))
		}
		mul(y, h.D, p, keys, vs[at:], width, group, h.D, keys, false)
	})
	round(to, o.DType)
	if l != nil {
		b.loraDown(b.out(u), to, l, whole(batch))
	}
}
