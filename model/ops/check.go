package ops

import "math"

// The checks of the arguments, one function an op, with the arguments of the op. A backend calls
// them first, so that every backend refuses the same mistakes with the same words:
//
//	ops: RMSNorm: u (2048,16) bfloat16 should be (2048,24): the modules' ranks add up to 24
//
// They check shapes, storage types, which optional tensors are given, that tensors written do not
// overlap others, LoRA factors, and that the ids, positions and samples of the batch are within
// their tables. Activations of one op share a type, float32 or bfloat16 (float64 in the oracle);
// statistics, LoRA factors and gradients are float32 (or float64 in the oracle).

// CheckEmbed checks the arguments of [Layers.Embed].
func CheckEmbed(x Tensor, table Weight, b *Batch) error {
	c := checker{op: "Embed"}
	T, w := c.tokens(b), c.weight("table", table)
	if c.err != nil {
		return c.err
	}
	c.whole(w)
	c.out("x", x, reals, "(T,C)", T, w.Cols)
	c.below("id", b.Host.IDs, w.Rows(), "rows of the embedding table")
	if n := float64(b.Host.Noise); !(n >= 0) || math.IsInf(n, 0) {
		c.failf("noise %g should be finite and not negative", n)
	}
	return c.done()
}

// CheckRMSNorm checks the arguments of [Layers.RMSNorm].
func CheckRMSNorm(xn, rho, u, x, w Tensor, eps float32, l *LoRA, b *Batch) error {
	c := checker{op: "RMSNorm"}
	T, C, act := c.tokens(b), c.cols("x", x), c.act("x", x)
	c.in("x", x, reals, "(T,C)", T, C)
	c.in("w", w, reals, "(C)", C)
	c.out("xn", xn, only(act), "(T,C)", T, C)
	if !rho.Nil() {
		c.out("rho", rho, state(act), "(T)", T)
	}
	c.loraIn("l", l, act, C)
	c.low("u", u, true, act, T, l)
	if !(eps >= 0) || math.IsInf(float64(eps), 0) {
		c.failf("eps %g should be finite and not negative", eps)
	}
	return c.done()
}

// CheckLinear checks the arguments of [Layers.Linear].
func CheckLinear(y, x Tensor, w Weight, u Tensor, l *LoRA, e Epilogue, b *Batch) error {
	c := checker{op: "Linear"}
	T, s, act := c.tokens(b), c.weight("w", w), c.act("x", x)
	if c.err != nil {
		return c.err
	}
	c.in("x", x, reals, "(T,in)", T, s.Cols)
	c.out("y", y, only(act), "(T,out)", T, s.Rows())
	c.loraIn("l", l, act, s.Cols)
	c.loraOut("l", l, act, s.Parts...)
	c.low("u", u, false, act, T, l)
	if !e.Residual.Nil() {
		c.in("residual", e.Residual, only(act), "(T,out)", T, s.Rows())
	}
	if e.Rope != nil && s.Kind != QKV {
		c.failf("rope asks for a QKV weight, and %s is another kind", s.Name)
	}
	c.rope(e.Rope, s.HeadDim, b)
	return c.done([2]string{"y", "residual"})
}

// CheckAttention checks the arguments of [Layers.Attention].
func CheckAttention(o, lse, u, qkv Tensor, h Heads, l *LoRA, b *Batch) error {
	c := checker{op: "Attention"}
	T, act := c.tokens(b), c.act("qkv", qkv)
	c.heads(h)
	c.in("qkv", qkv, reals, "(T,(H+2Hk)·D)", T, (h.H+2*h.Hk)*h.D)
	c.out("o", o, only(act), "(T,H·D)", T, h.H*h.D)
	if !lse.Nil() {
		c.out("lse", lse, state(act), "(H,T)", h.H, T)
	}
	c.loraIn("l", l, act, h.H*h.D)
	c.low("u", u, true, act, T, l)
	return c.done()
}

// CheckSwiGLU checks the arguments of [Layers.SwiGLU].
func CheckSwiGLU(act, u, gateup Tensor, l *LoRA, b *Batch) error {
	c := checker{op: "SwiGLU"}
	T, F, a := c.tokens(b), c.cols("act", act), c.act("act", act)
	c.out("act", act, reals, "(T,F)", T, F)
	c.in("gateup", gateup, only(a), "(T,2F)", T, 2*F)
	c.loraIn("l", l, a, F)
	c.low("u", u, true, a, T, l)
	return c.done()
}

// CheckLinearBack checks the arguments of [Training.LinearBack].
func CheckLinearBack(dx, dy Tensor, w Weight) error {
	c := checker{op: "LinearBack"}
	s, act := c.weight("w", w), c.act("dy", dy)
	if c.err != nil {
		return c.err
	}
	c.cols("dy", dy)
	T := 0
	if c.err == nil {
		T = dy.Shape[0]
	}
	c.in("dy", dy, reals, "(T,out)", T, s.Rows())
	c.out("dx", dx, only(act), "(T,in)", T, s.Cols)
	if !s.Back {
		c.failf("weight %s was loaded without Back: its spec must ask for a training run", s.Name)
	}
	return c.done()
}

// CheckRMSNormBack checks the arguments of [Training.RMSNormBack].
func CheckRMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w Tensor, in, out *LoRA, b *Batch) error {
	c := checker{op: "RMSNormBack"}
	T, C, act := c.tokens(b), c.cols("x", x), c.act("x", x)
	c.in("x", x, reals, "(T,C)", T, C)
	c.in("w", w, reals, "(C)", C)
	c.in("rho", rho, state(act), "(T)", T)
	c.in("dxn", dxn, only(act), "(T,C)", T, C)
	c.out("dx", dx, only(act), "(T,C)", T, C)
	if !dres.Nil() {
		c.in("dres", dres, only(act), "(T,C)", T, C)
	}
	c.loraIn("in", in, act, C)
	c.low("du", du, false, act, T, in)
	c.low("u", u, false, act, T, in)
	c.loraOut("out", out, act, C)
	c.low("duOut", duOut, true, act, T, out)
	return c.done([2]string{"dx", "dres"})
}

// CheckAttentionBack checks the arguments of [Training.AttentionBack].
func CheckAttentionBack(dqkv, duQKV, do, duO, o, lse, qkv Tensor, h Heads, rope *Rope, lo, lqkv *LoRA, b *Batch) error {
	c := checker{op: "AttentionBack"}
	T, act := c.tokens(b), c.act("qkv", qkv)
	c.heads(h)
	wide, narrow := (h.H+2*h.Hk)*h.D, h.H*h.D
	c.in("qkv", qkv, reals, "(T,(H+2Hk)·D)", T, wide)
	c.in("o", o, only(act), "(T,H·D)", T, narrow)
	c.in("lse", lse, state(act), "(H,T)", h.H, T)
	c.out("do", do, only(act), "(T,H·D)", T, narrow)
	c.out("dqkv", dqkv, only(act), "(T,(H+2Hk)·D)", T, wide)
	c.loraIn("lo", lo, act, narrow)
	c.low("duO", duO, false, act, T, lo)
	c.loraOut("lqkv", lqkv, act, h.H*h.D, h.Hk*h.D, h.Hk*h.D)
	c.low("duQKV", duQKV, true, act, T, lqkv)
	c.rope(rope, h.D, b)
	return c.done()
}

// CheckSwiGLUBack checks the arguments of [Training.SwiGLUBack].
func CheckSwiGLUBack(gateup, duGU, dact, duDown, uGU Tensor, down, gu *LoRA, b *Batch) error {
	c := checker{op: "SwiGLUBack"}
	T, F, act := c.tokens(b), c.cols("dact", dact), c.act("dact", dact)
	c.in("dact", dact, reals, "(T,F)", T, F)
	c.out("gateup", gateup, only(act), "(T,2F)", T, 2*F)
	c.loraIn("down", down, act, F)
	c.low("duDown", duDown, false, act, T, down)
	c.gradients("down", down, SideA, act)
	c.loraOut("gu", gu, act, F, F)
	c.low("duGU", duGU, true, act, T, gu)
	c.low("uGU", uGU, false, act, T, gu)
	c.gradients("gu", gu, SideB, act)
	return c.done()
}

// gradients checks that each module has the gradient of one side, of the factor's shape.
func (c *checker) gradients(arg string, l *LoRA, side Side, act DType) {
	if l == nil {
		return
	}
	for i := range l.Modules {
		if c.err != nil {
			return
		}
		m := &l.Modules[i]
		name, of, grad, why := "dA", m.A, m.DA, "the shape of A"
		if side == SideB {
			name, of, grad, why = "dB", m.B, m.DB, "the shape of B"
		}
		if len(of.Shape) != 2 {
			c.failf("module %d of %s: %s should be a matrix", i, arg, of)
			return
		}
		c.factor(arg, i, name, grad, act, of.Shape[0], of.Shape[1], why)
	}
}

// CheckLoRAGrad checks the arguments of [Training.LoRAGrad].
func CheckLoRAGrad(jobs []GradJob, b *Batch) error {
	first := checker{op: "LoRAGrad"}
	T := first.tokens(b)
	if first.err != nil {
		return first.err
	}
	for i := range jobs {
		if err := checkGradJob(&jobs[i], T); err != nil {
			return err
		}
	}
	return nil
}

func checkGradJob(j *GradJob, T int) error {
	c := checker{op: "LoRAGrad"}
	if j.LoRA == nil {
		c.failf("a job has no LoRA")
		return c.err
	}
	act := c.act("wide", j.Wide)
	spec := &j.LoRA.Weight
	if len(spec.Parts) == 0 {
		c.failf("the LoRA does not say which weight it adapts: set LoRA.Weight")
	}
	switch j.Side {
	case SideA:
		c.in("wide", j.Wide, reals, "x (T,in)", T, spec.Cols)
		c.loraIn("lora", j.LoRA, act, spec.Cols)
		if !j.Norm.Rho.Nil() || !j.Norm.W.Nil() {
			c.in("rho", j.Norm.Rho, state(act), "(T)", T)
			c.in("w", j.Norm.W, reals, "(in)", spec.Cols)
		}
	case SideB:
		if !j.Norm.Rho.Nil() || !j.Norm.W.Nil() {
			c.failf("a job of dB has a norm: only dA reads what a norm wrote")
		}
		c.in("wide", j.Wide, reals, "dy (T,out)", T, spec.Rows())
		c.loraOut("lora", j.LoRA, act, spec.Parts...)
	default:
		c.failf("side %d is neither SideA nor SideB", j.Side)
	}
	c.low("low", j.Low, false, act, T, j.LoRA)
	c.gradients("lora", j.LoRA, j.Side, act)
	return c.done()
}

// CheckHeadLoss checks the arguments of [Training.HeadLoss].
func CheckHeadLoss(dxn, nll, hit, xn Tensor, head Weight, b *Batch) error {
	c := checker{op: "HeadLoss"}
	T, w, act := c.tokens(b), c.weight("head", head), c.act("xn", xn)
	if c.err != nil {
		return c.err
	}
	c.whole(w)
	c.in("xn", xn, reals, "(T,C)", T, w.Cols)
	c.out("nll", nll, state(act), "(N)", b.N)
	c.out("hit", hit, state(act), "(N)", b.N)
	c.below("target", b.Host.Targets, w.Rows(), "rows of the head")
	if e := b.Host.Smoothing; !(e >= 0 && e <= 1) {
		c.failf("label smoothing %g should be from 0 to 1", e)
	}
	if !dxn.Nil() {
		c.out("dxn", dxn, only(act), "(T,C)", T, w.Cols)
		if !w.Back {
			c.failf("weight %s was loaded without Back: its spec must ask for a training run", w.Name)
		}
	}
	return c.done()
}

// CheckGradNorm checks the arguments of [Training.GradNorm].
func CheckGradNorm(norm, grads Tensor) error {
	c := checker{op: "GradNorm"}
	flat := only(F32) | only(F64)
	c.in("grads", grads, flat, "flat", grads.Len())
	c.out("norm", norm, flat, "norm, count", 2)
	return c.done()
}

// CheckAdamW checks the arguments of [Training.AdamW].
func CheckAdamW(params, m, v, grads, norm Tensor, a AdamWArgs) error {
	c := checker{op: "AdamW"}
	n, flat := params.Len(), only(F32)|only(F64)
	c.out("params", params, flat, "flat", n)
	c.out("m", m, only(params.DType), "flat, as params", n)
	c.out("v", v, only(params.DType), "flat, as params", n)
	c.in("grads", grads, only(params.DType), "flat, as params", n)
	c.in("norm", norm, flat, "norm, count", 2)
	sum := 0
	for i := range a.Groups {
		g := &a.Groups[i]
		sum += g.Len
		if g.Len < 0 || !finite(g.LR) || !finite(g.WeightDecay) {
			c.failf("group %d has length %d, learning rate %g, weight decay %g", i, g.Len, g.LR, g.WeightDecay)
		}
	}
	switch {
	case sum != n:
		c.failf("the groups cover %d parameters of %d", sum, n)
	case a.Step < 1:
		c.failf("step %d: steps count from 1", a.Step)
	case !(a.Beta1 >= 0 && a.Beta1 < 1 && a.Beta2 >= 0 && a.Beta2 < 1):
		c.failf("betas %g and %g should be 0 or more and below 1", a.Beta1, a.Beta2)
	case !(a.Eps >= 0) || !(a.MaxNorm >= 0):
		c.failf("eps %g and max norm %g should not be negative", a.Eps, a.MaxNorm)
	}
	return c.done()
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }
