package ops

// CheckLogits checks the arguments of [Inference.Logits].
func CheckLogits(logits, xn Tensor, head Weight, b *Batch) error {
	c := checker{op: "Logits"}
	T, w, act := c.tokens(b), c.weight("head", head), c.act("xn", xn)
	if c.err != nil {
		return c.err
	}
	c.whole(w)
	c.in("xn", xn, reals, "(T,C)", T, w.Cols)
	c.out("logits", logits, state(act), "(N,V)", b.N, w.Rows())
	return c.done()
}

// CheckKL checks the arguments of [Inference.KL].
func CheckKL(kl, base, tuned Tensor, head Weight, b *Batch) error {
	c := checker{op: "KL"}
	T, w, act := c.tokens(b), c.weight("head", head), c.act("base", base)
	if c.err != nil {
		return c.err
	}
	c.whole(w)
	c.in("base", base, reals, "(T,C)", T, w.Cols)
	c.in("tuned", tuned, only(act), "(T,C)", T, w.Cols)
	c.out("kl", kl, state(act), "(N)", b.N)
	return c.done()
}

// CheckStoreKV checks the arguments of [Inference.StoreKV].
func CheckStoreKV(k KVCache, qkv Tensor, h Heads, b *Batch) error {
	c := checker{op: "StoreKV"}
	T := c.tokens(b)
	c.heads(h)
	c.in("qkv", qkv, reals, "(T,(H+2Hk)·D)", T, (h.H+2*h.Hk)*h.D)
	c.cache(k, true, qkv.DType, h, b)
	return c.done()
}

// CheckDecodeAttention checks the arguments of [Inference.DecodeAttention].
func CheckDecodeAttention(o, u, qkv Tensor, k KVCache, h Heads, l *LoRA, b *Batch) error {
	c := checker{op: "DecodeAttention"}
	T, act := c.tokens(b), c.act("qkv", qkv)
	c.heads(h)
	c.in("qkv", qkv, reals, "(T,(H+2Hk)·D)", T, (h.H+2*h.Hk)*h.D)
	c.cache(k, false, act, h, b)
	c.out("o", o, only(act), "(T,H·D)", T, h.H*h.D)
	c.loraIn("l", l, act, h.H*h.D)
	c.low("u", u, true, act, T, l)
	return c.done()
}

func (c *checker) cache(k KVCache, written bool, act DType, h Heads, b *Batch) {
	sequences, positions := 0, 0
	if len(k.K.Shape) == 3 {
		sequences, positions = k.K.Shape[0], k.K.Shape[1]
	}
	dims := [3]int{sequences, positions, h.Hk * h.D}
	c.tensor("cache k", k.K, written, only(act), "(sequences,positions,Hk·D)", dims[:])
	c.tensor("cache v", k.V, written, only(act), "(sequences,positions,Hk·D)", dims[:])
	if c.err == nil {
		c.below("sequence", b.Host.Sample, sequences, "sequences of the cache")
		c.below("position", b.Host.Pos, positions, "positions of the cache")
	}
}

// CheckSample checks the arguments of [Inference.Sample].
func CheckSample(next, logits Tensor, a SampleArgs) error {
	c := checker{op: "Sample"}
	V := c.cols("logits", logits)
	if c.err != nil {
		return c.err
	}
	N := logits.Shape[0]
	c.in("logits", logits, only(F32)|only(F64), "(N,V)", N, V)
	c.out("next", next, only(I32), "(N)", N)
	switch {
	case !finite(a.Temperature) || a.Temperature < 0:
		c.failf("temperature %g should be 0 or more", a.Temperature)
	case a.TopK < 0:
		c.failf("top-k %d should be 0 (off) or more", a.TopK)
	case !(a.TopP >= 0 && a.TopP <= 1):
		c.failf("top-p %g should be within 0 (off) and 1", a.TopP)
	case !finite(a.RepetitionPenalty) || a.RepetitionPenalty < 0:
		c.failf("repetition penalty %g should be positive, or 0 (off)", a.RepetitionPenalty)
	case a.Limit < 0 || a.Limit > V:
		c.failf("limit %d is outside the vocabulary's %d rows", a.Limit, V)
	case a.Penalised() && len(a.Context) != N:
		c.failf("the repetition penalty needs the ids so far of %d rows, not of %d", N, len(a.Context))
	case a.Temperature > 0 && len(a.Sequence) != N:
		c.failf("a draw needs the sequence numbers of %d rows, not of %d", N, len(a.Sequence))
	}
	if a.Penalised() {
		for _, ids := range a.Context {
			c.below("context id", ids, V, "rows of the vocabulary")
		}
	}
	return c.done()
}

// CheckQuantNF4 checks the arguments of [Inference.QuantNF4].
func CheckQuantNF4(q Quantized, src Tensor) error {
	c := checker{op: "QuantNF4"}
	c.in("src", src, reals, "as given", src.Shape...)
	c.nf4(q, true, src.Len())
	return c.done()
}

// CheckDequantNF4 checks the arguments of [Inference.DequantNF4].
func CheckDequantNF4(dst Tensor, q Quantized) error {
	c := checker{op: "DequantNF4"}
	c.out("dst", dst, reals, "as given", dst.Shape...)
	c.nf4(q, false, dst.Len())
	return c.done()
}

func (c *checker) nf4(q Quantized, written bool, n int) {
	codes, blocks := [1]int{(n + 1) / 2}, [1]int{(n + 63) / 64}
	groups, one := [1]int{(blocks[0] + 255) / 256}, [1]int{1}
	c.tensor("codes", q.Codes, written, only(U8), "two a byte", codes[:])
	if q.Absmax.DType == F32 {
		c.tensor("absmax", q.Absmax, written, only(F32), "one a block of 64", blocks[:])
		if !q.Nested.Nil() || !q.Offset.Nil() {
			c.failf("absmax is float32, so nested and offset should be absent")
		}
		return
	}
	c.tensor("absmax", q.Absmax, written, only(U8), "one a block of 64", blocks[:])
	c.tensor("nested", q.Nested, written, only(F32), "one for 256 blocks", groups[:])
	c.tensor("offset", q.Offset, written, only(F32), "one", one[:])
}
