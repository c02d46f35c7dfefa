package opstest

import (
	"fmt"

	"qlora/model/ops"
)

// problems lists what RunGradients checks.
func problems() []problem {
	all := []problem{headProblem(0), headProblem(0.3), headProblem(1), decoderProblem(0.5), decoderProblem(0)}
	for _, k := range []ops.WeightKind{ops.Plain, ops.QKV, ops.GateUp} {
		all = append(all, linearProblem(k))
	}
	two, one := []adapters{{}, {[]int{3, 5}, 0}, {[]int{3, 5}, 0.5}, {[]int{0, 4}, 0.5}}, []adapters{{}, {[]int{4}, 0.5}}
	for i, in := range two {
		for _, out := range one {
			all = append(all, normProblem(in, out, residual(i%3)))
		}
		all = append(all, swigluProblem(one[min(i, 1)], in))
	}
	for i, qkv := range []adapters{{}, {[]int{2, 3, 4}, 0.5}, {[]int{0, 0, 4}, 0}} {
		all = append(all, attentionProblem(one[0], qkv, i != 1), attentionProblem(one[1], qkv, true))
	}
	for _, a := range []adapters{{[]int{2, 3, 4}, 0.5}, {[]int{2, 0, 4}, 0}} {
		all = append(all, gradProblem(a, false), gradProblem(a, true))
	}
	return all
}

func linearProblem(kind ops.WeightKind) problem {
	const T = 7
	k := linearCase{m: small, kind: kind}
	return problem{fmt.Sprintf("LinearBack/kind %d", kind), small, batch(T, 2, 0, 9), func(r *rig) gradients {
		spec := k.spec(r, "w")
		w := r.newWeight(spec, nil)
		x, dx := r.in("x", nil, T, spec.Cols), r.out("dx", byProduct, T, spec.Cols)
		dy, y := r.wide("dy", input, byProduct, nil, T, spec), r.wide("y", output, byProduct, nil, T, spec)
		return gradients{
			forward: func() float64 {
				r.b.Linear(y, x, w, none, nil, ops.Epilogue{}, r.batch)
				return r.against("y", r.byName["dy"].values)
			},
			backward: func() { r.b.LinearBack(dx, dy, w) },
			pairs:    []pair{{"x", "dx", false}},
		}
	}}
}

// normProblem: the loss reads xn, u of the modules of in, and x itself past the norm (dres).
func normProblem(in, out adapters, res residual) problem {
	const T = 5
	return problem{fmt.Sprintf("RMSNormBack/in %v out %v dres %d", in, out, res), small, batch(T, 2, 0, 9), func(r *rig) gradients {
		lin, lout := r.lora("in", r.gateUp("", small.F, small.C), in, 0), r.lora("out", r.plain("", small.C, small.F), out, 0)
		x, w, dxn, dres := r.in("x", nil, T, small.C), r.in("w", nil, small.C), r.in("dxn", nil, T, small.C), r.in("dres", nil, T, small.C)
		xn, rho := r.out("xn", byElement, T, small.C), r.outState("rho", byElement, T)
		u, du, duOut, dx := r.lowOut("u", T, lin), r.lowIn("du", T, lin), r.lowOut("duOut", T, lout), r.out("dx", byElement, T, small.C)
		g := gradients{pairs: []pair{{"x", "dx", false}}}
		g.forward = func() float64 {
			r.b.RMSNorm(xn, rho, u, x, w, eps, lin, r.batch)
			loss := r.against("xn", r.byName["dxn"].values)
			if lin != nil {
				loss += r.against("u", slopes(lin, r.byName["du"].values))
			}
			if res != alone {
				loss += r.against("x", r.byName["dres"].values)
			}
			return loss
		}
		g.backward = func() {
			through := []ops.Tensor{alone: none, other: dres, inPlace: dx}[res]
			if res == inPlace {
				r.set("dx", r.byName["dres"].values)
			}
			r.b.RMSNormBack(dx, duOut, through, dxn, du, u, x, rho, w, lin, lout, r.batch)
		}
		if lout != nil {
			g.also = func() map[string][]float64 {
				return map[string][]float64{"duOut": upRankBack(lout, r.seconds(lout), r.get("dx"), precise)}
			}
		}
		return g
	}}
}

// attentionProblem: x goes through rope, as a product with the identity, so that the gradient
// is the one before rope.
func attentionProblem(o, qkv adapters, rope bool) problem {
	const T = 11
	host := batch(T, 3, 0, 9)
	h := small.h
	return problem{fmt.Sprintf("AttentionBack/o %v qkv %v rope %v", o, qkv, rope), small, host, func(r *rig) gradients {
		wide, narrow := (h.H+2*h.Hk)*h.D, h.H*h.D
		spec := r.qkv("identity", h, wide)
		identity := r.newWeight(spec, func(i int) float64 {
			if i/wide == i%wide {
				return 1
			}
			return 0
		})
		lo, lqkv := r.lora("lo", r.plain("", small.C, narrow), o, 0), r.lora("lqkv", r.qkv("", h, small.C), qkv, 0)
		x, qkvs, dqkv := r.in("x", nil, T, wide), r.wide("qkv", output, byRule, nil, T, spec), r.wide("dqkv", output, byRule, nil, T, spec)
		os, lse := r.out("o", byRule, T, narrow), r.outState("lse", byElement, h.H, T)
		u, duO, duQKV := r.lowOut("u", T, lo), r.lowIn("duO", T, lo), r.lowOut("duQKV", T, lqkv)
		do := r.update("do", byRule, T, narrow)
		var e ops.Epilogue
		if rope {
			e.Rope = r.rope(T, h.D)
		}
		g := gradients{pairs: []pair{{"x", "dqkv", false}}}
		g.forward = func() float64 {
			r.b.Linear(qkvs, x, identity, none, nil, e, r.batch)
			r.b.Attention(os, lse, u, qkvs, h, lo, r.batch)
			loss := r.against("o", r.byName["do"].values)
			if lo != nil {
				loss += r.against("u", slopes(lo, r.byName["duO"].values))
			}
			return loss
		}
		g.backward = func() {
			r.b.AttentionBack(dqkv, duQKV, do, duO, os, lse, qkvs, h, e.Rope, lo, lqkv, r.batch)
		}
		g.also = func() map[string][]float64 {
			sum := append([]float64(nil), r.byName["do"].values...)
			if lo != nil {
				for i, v := range lowRankBack(&host, lo, r.factors(lo), r.byName["duO"].values) {
					sum[i] += v
				}
			}
			all := map[string][]float64{"do": sum}
			if lqkv != nil {
				all["duQKV"] = upRankBack(lqkv, r.seconds(lqkv), r.get("dqkv"), precise)
			}
			return all
		}
		return g
	}}
}

// swigluProblem crosses two edges of GradBlock, for the gradients of down's A, and gate's and up's B.
func swigluProblem(down, gu adapters) problem {
	const T = 2*ops.GradBlock + 3
	m := small
	m.F = 10
	return problem{fmt.Sprintf("SwiGLUBack/down %v gateup %v", down, gu), m, batch(T, 3, 0, 9), func(r *rig) gradients {
		spec := r.gateUp("", m.F, m.C)
		ld, lgu := r.lora("down", r.plain("", m.C, m.F), down, gradA), r.lora("gu", spec, gu, gradB)
		gateup := r.wide("gateup", update, byElement, nil, T, spec)
		act, u := r.out("act", byElement, T, m.F), r.lowOut("u", T, ld)
		dact, duDown := r.in("dact", nil, T, m.F), r.lowIn("duDown", T, ld)
		uGU, duGU := r.lowIn("uGU", T, lgu), r.lowOut("duGU", T, lgu)
		g := gradients{pairs: []pair{{"gateup", "gateup", false}}}
		if ld != nil {
			g.pairs = append(g.pairs, pair{"down0.A", "down0.dA", true})
		}
		g.forward = func() float64 {
			r.b.SwiGLU(act, u, gateup, ld, r.batch)
			loss := r.against("act", r.byName["dact"].values)
			if ld != nil {
				loss += r.against("u", slopes(ld, r.byName["duDown"].values))
			}
			return loss
		}
		g.backward = func() {
			r.b.SwiGLUBack(gateup, duGU, dact, duDown, uGU, ld, lgu, r.batch)
		}
		g.also = func() map[string][]float64 {
			all := map[string][]float64{}
			if lgu != nil {
				all["duGU"] = upRankBack(lgu, r.seconds(lgu), r.get("gateup"), precise)
				r.sumsB(all, lgu, r.get("gateup"), r.byName["uGU"].values)
			}
			return all
		}
		return g
	}}
}

// sumsB are dB of each module after dyᵀ·u was added to what it held.
func (r *rig) sumsB(into map[string][]float64, l *ops.LoRA, dy, u []float64) {
	out := l.Weight.Rows()
	for i := range l.Modules {
		m := &l.Modules[i]
		sum := append([]float64(nil), r.byName[m.DB.Name].values...)
		row := l.Row(i, l.Weight.Parts)
		for t := range len(u) / l.Width {
			for j := range m.B.Dim(0) {
				for c := range m.Rank {
					sum[j*m.Rank+c] += dy[t*out+row+j] * u[t*l.Width+l.Col(i)+c]
				}
			}
		}
		into[m.DB.Name] = sum
	}
}

// gradProblem: u through A, and y through B, over more than three blocks of tokens; dA from xn, or from x of the norm.
func gradProblem(a adapters, normed bool) problem {
	const T = 3*ops.GradBlock + 1
	m := modelShape{name: "narrow", C: 9, F: 8, V: 9, h: ops.Heads{H: 2, Hk: 1, D: 4}}
	return problem{fmt.Sprintf("LoRAGrad/%v normed %v", a, normed), m, batch(T, 3, 0, 9), func(r *rig) gradients {
		spec := r.qkv("w", m.h, m.C)
		w, l := r.newWeight(spec, nil), r.lora("l", spec, a, gradA|gradB)
		x, scale, xn, rho := r.in("x", nil, T, m.C), r.in("scale", nil, m.C), r.out("xn", byElement, T, m.C), r.outState("rho", byElement, T)
		u, du := r.lowOut("u", T, l), r.lowIn("du", T, l)
		dy, y := r.wide("dy", input, byProduct, nil, T, spec), r.wide("y", output, byProduct, nil, T, spec)
		fixed := r.in("u fixed", nil, T, l.Width)
		var g gradients
		for _, m := range l.Modules {
			g.pairs = append(g.pairs, pair{m.A.Name, m.DA.Name, true}, pair{m.B.Name, m.DB.Name, true})
		}
		g.forward = func() float64 {
			r.b.RMSNorm(xn, rho, u, x, scale, eps, l, r.batch)
			r.b.Linear(y, xn, w, fixed, l, ops.Epilogue{}, r.batch)
			return r.against("u", slopes(l, r.byName["du"].values)) + r.against("y", r.byName["dy"].values)
		}
		wide, norm := xn, ops.Norm{}
		if normed {
			wide, norm = x, ops.Norm{Rho: rho, W: scale}
		}
		g.backward = func() {
			r.b.LoRAGrad([]ops.GradJob{{LoRA: l, Side: ops.SideA, Wide: wide, Low: du, Norm: norm}, {LoRA: l, Side: ops.SideB, Wide: dy, Low: fixed}}, r.batch)
		}
		return g
	}}
}

func headProblem(smoothing float32) problem {
	const T, N = 9, 5
	host := batch(T, 2, N, small.V)
	host.Smoothing = smoothing
	return problem{fmt.Sprintf("HeadLoss/smoothing %g", smoothing), small, host, func(r *rig) gradients {
		w := r.newWeight(r.plain("head", small.V, small.C), nil)
		xn, dxn := r.in("xn", nil, T, small.C), r.out("dxn", byProduct, T, small.C)
		nll, hit := r.outState("nll", byElement, N), r.outState("hit", equal, N)
		return gradients{
			forward: func() float64 {
				r.b.HeadLoss(none, nll, hit, xn, w, r.batch)
				return r.against("nll", take(constant(float64(host.LossScale)), N, ops.F64))
			},
			backward: func() { r.b.HeadLoss(dxn, nll, hit, xn, w, r.batch) },
			pairs:    []pair{{"xn", "dxn", false}},
		}
	}}
}

// decoderProblem: two layers end to end, A and B of all seven modules, with dropout and packing.
func decoderProblem(drop float32) problem {
	const T, N = 9, 6
	a := decoderLoRA{adapters{[]int{2, 3, 4}, drop}, adapters{[]int{2}, drop}, adapters{[]int{3, 2}, drop}, adapters{[]int{3}, drop}}
	return problem{fmt.Sprintf("decoder of two layers/drop %g", drop), small, batch(T, 2, N, small.V), func(r *rig) gradients {
		d := newDecoder(r, small, 2, a, T, N, false)
		g := gradients{backward: d.backward, pairs: []pair{{"x0", "dx", false}}}
		for _, m := range d.modules() {
			g.pairs = append(g.pairs, pair{m + ".A", m + ".dA", true}, pair{m + ".B", m + ".dB", true})
		}
		g.forward = func() float64 {
			d.forward()
			return d.loss()
		}
		return g
	}}
}
