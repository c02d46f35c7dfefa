package opstest

import (
	"fmt"
	"math"

	"qlora/model/ops"
)

func linearBackCases() []Case {
	var all []Case
	add := func(k linearCase) {
		c := k.build("LinearBack")
		c.plan.wire = func(r *rig) func() {
			spec := k.spec(r, "w")
			w := r.newWeight(spec, nil)
			dy, dx := r.wide("dy", input, byProduct, nil, k.T, spec), r.out("dx", byProduct, k.T, spec.Cols)
			return func() { r.b.LinearBack(dx, dy, w) }
		}
		all = append(all, c)
	}
	for i, T := range lengths {
		for j, kind := range []ops.WeightKind{ops.QKV, ops.Plain, ops.GateUp} {
			add(linearCase{m: []modelShape{tinyOdd, tinyEven, smolLM}[(i+j)%3], kind: kind, down: i%2 == 0, T: T, S: 1})
		}
	}
	for i, m := range []modelShape{qwen05B, qwen15B, qwen7B} {
		add(linearCase{m: m, kind: ops.QKV, T: 3, S: 1})
		if i < 2 {
			add(linearCase{m: m, kind: ops.Plain, T: 2 + i, S: 1})
		}
	}
	for _, down := range []bool{false, true} {
		add(linearCase{m: qwen7B, kind: ops.Plain, down: down, T: 2048, S: 1})
	}
	add(linearCase{m: qwen7B, kind: ops.QKV, T: 2048, S: 1})
	add(linearCase{m: qwen7B, kind: ops.GateUp, T: 2048, S: 1})
	add(linearCase{m: qwen7B, kind: ops.GateUp, T: past2G(2 * qwen7B.F), S: 1})
	return all
}

// lowOf places u of the modules that read the norm of x.
func (r *rig) lowOf(name string, T int, l *ops.LoRA, x, w, rho ops.Tensor) ops.Tensor {
	if l == nil || r.sizing || r.timing {
		return r.lowIn(name, T, l)
	}
	return r.in(name, values(lowRank(&r.host, l, r.factors(l), r.normed(x, w, rho), precise)), T, l.Width)
}

// normed is x·rho·w.
func (r *rig) normed(x, w, rho ops.Tensor) []float64 {
	xs, ws, rhos := r.byName[x.Name].values, r.byName[w.Name].values, r.byName[rho.Name].values
	xn := make([]float64, len(xs))
	for i, v := range xs {
		xn[i] = v * rhos[i/len(ws)] * ws[i%len(ws)]
	}
	return xn
}

// inverseNorm is rho of the rows of x (T,C).
func inverseNorm(x []float64, C int) gen {
	return func(t int) float64 {
		row := x[t*C : (t+1)*C]
		return 1 / math.Sqrt(dot(row, row)/float64(C)+1e-6)
	}
}

func rmsnormBackCases() []Case {
	var all []Case
	add := func(m modelShape, T, S int, in, out adapters, res residual) {
		c := newCase("RMSNormBack", sizeOf(T, m.C), m, batch(T, S, 0, 9), max(in.rank(), out.rank()), "in %v out %v dres %d", in, out, res)
		c.FLOPs = 8*sum(T)*sum(m.C) + product2(T, in.rank()+out.rank(), m.C)
		c.Bytes = 2 * sum(T) * sum(4*m.C, in.rank(), out.rank())
		c.plan.wire = func(r *rig) func() {
			lin, lout := r.lora("in", r.gateUp("", m.F, m.C), in, 0), r.lora("out", r.plain("", m.C, m.F), out, 0)
			x, w, dxn := r.in("x", nil, T, m.C), r.in("w", normal("w", 1), m.C), r.in("dxn", nil, T, m.C)
			var rho ops.Tensor
			if r.sizing || r.timing {
				rho = r.inState("rho", constant(1), T)
			} else {
				rho = r.inState("rho", inverseNorm(r.byName["x"].values, m.C), T)
			}
			du, duOut := r.lowIn("du", T, lin), r.lowOut("duOut", T, lout)
			u := r.lowOf("u", T, lin, x, w, rho)
			var dx, dres ops.Tensor
			switch res {
			case inPlace:
				dx = r.update("dx", byElement, T, m.C)
				dres = dx
			case other:
				dres = r.in("dres", nil, T, m.C)
				fallthrough
			default:
				dx = r.out("dx", byElement, T, m.C)
			}
			if lin != nil { // a sum over ranks beside the norm
				r.byName["dx"].tol = byProduct
			}
			return func() { r.b.RMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w, lin, lout, r.batch) }
		}
		all = append(all, c)
	}
	for i, T := range lengths {
		add([]modelShape{tinyOdd, tinyEven}[i%2], T, segmentsFor(i, T), patterns(i, 2), patterns(i+1, 1), residual(i%3))
	}
	for i, m := range allModels {
		add(m, 4+i, 2, patterns(i+1, 2), patterns(i+4, 1), residual(i%3))
	}
	r8, r88 := adapters{[]int{8}, 0.05}, adapters{[]int{8, 8}, 0.05}
	add(qwen7B, 2048, 4, r88, r8, inPlace)
	add(qwen7B, 2048, 4, adapters{}, adapters{}, inPlace)
	add(qwen7B, past2G(qwen7B.C), 4, r88, r8, other)
	return all
}

func attentionBackCases() []Case {
	var all []Case
	for _, k := range attentionShapes() {
		host := batch(k.T, k.S, 0, 9)
		h, narrow := k.m.h, k.m.h.H*k.m.h.D
		c := newCase("AttentionBack", sizeOf(k.T, k.wide()), k.m, host, max(k.a.rank(), k.qkv.rank()), "heads %d:%d D%d o %v qkv %v rope %v", h.H, h.Hk, h.D, k.a, k.qkv, k.rope)
		c.FLOPs = 10*causal(host)*float64(narrow) + product2(k.T, k.a.rank(), narrow) + product2(k.T, k.qkv.rank(), k.wide())
		c.Bytes = 2 * sum(k.T) * sum(2*k.wide(), 3*narrow, k.a.rank(), k.qkv.rank())
		if c.Attention = k.shape(); c.Attention != nil {
			c.Attention.Back = true
		}
		c.plan.wire = k.wireBack
		all = append(all, c)
	}
	return all
}

func (k attentionCase) wireBack(r *rig) func() {
	h, narrow := k.m.h, k.m.h.H*k.m.h.D
	spec := r.qkv("", h, k.m.C)
	lo, lqkv := r.lora("lo", r.plain("", k.m.C, narrow), k.a, 0), r.lora("lqkv", spec, k.qkv, 0)
	qkv := r.wide("qkv", input, byRule, nil, k.T, spec)
	var ov, lv gen
	if !r.sizing && !r.timing {
		o, lse := attentionForward(r.byName["qkv"].values, h, r.host.SegStart, precise)
		ov, lv = values(o), values(lse)
	}
	o, lse := r.in("o", ov, k.T, narrow), r.inState("lse", lv, h.H, k.T)
	if r.timing && !r.sizing {
		r.b.Attention(o, lse, none, qkv, h, nil, r.batch)
	}
	do, duO := r.update("do", byProduct, k.T, narrow), r.lowIn("duO", k.T, lo)
	var rope *ops.Rope
	if k.rope {
		rope = r.rope(k.T, h.D)
	}
	dqkv, duQKV := r.wide("dqkv", output, byRule, nil, k.T, spec), r.lowOut("duQKV", k.T, lqkv)
	if r.coarsely() {
		k.coarse(r, lo, lqkv)
	}
	return func() { r.b.AttentionBack(dqkv, duQKV, do, duO, o, lse, qkv, h, rope, lo, lqkv, r.batch) }
}

// coarse sets the tolerances of AttentionBack to those of a plain bfloat16 computation.
func (k attentionCase) coarse(r *rig, lo, lqkv *ops.LoRA) {
	h := k.m.h
	do := append([]float64(nil), r.byName["do"].values...)
	if lo != nil {
		for i, v := range lowRankBack(&r.host, lo, r.factors(lo), r.byName["duO"].values) {
			do[i] = rounded(do[i] + v)
		}
	}
	d := attentionBackward(r.byName["qkv"].values, r.byName["o"].values, do, h, r.host.SegStart, rounded)
	if k.rope {
		rotate(d, r.byName["cos"].values, r.byName["sin"].values, h, r.host.Pos, true)
	}
	for i, v := range d {
		d[i] = rounded(v)
	}
	r.byName["dqkv"].tol.coarse = d
	if lqkv != nil {
		r.byName["duQKV"].tol = tolerance{rule: attention, coarse: upRankBack(lqkv, r.seconds(lqkv), d, rounded)}
	}
}

// seconds are the values of B of each module.
func (r *rig) seconds(l *ops.LoRA) [][]float64 {
	var b [][]float64
	for _, m := range l.Modules {
		b = append(b, r.byName[m.B.Name].values)
	}
	return b
}

func swigluBackCases() []Case {
	var all []Case
	add := func(m modelShape, T, S int, down, gu adapters) {
		c := newCase("SwiGLUBack", sizeOf(T, 2*m.F), m, batch(T, S, 0, 9), max(down.rank(), gu.rank()), "down %v gateup %v", down, gu)
		c.FLOPs = 12*sum(T)*sum(m.F) + 2*product2(T, down.rank(), m.F) + 2*product2(T, gu.rank(), m.F)
		c.Bytes = 2 * sum(T) * sum(5*m.F, down.rank(), 2*gu.rank())
		c.consumes = true
		c.plan.wire = func(r *rig) func() {
			spec := r.gateUp("", m.F, m.C)
			ld, lgu := r.lora("down", r.plain("", m.C, m.F), down, gradA), r.lora("gu", spec, gu, gradB)
			gateup := r.wide("gateup", update, byElement, normal("gateup", 2), T, spec)
			if ld != nil {
				r.byName["gateup"].tol = byProduct
			}
			dact, duDown := r.in("dact", nil, T, m.F), r.lowIn("duDown", T, ld)
			uGU, duGU := r.lowIn("uGU", T, lgu), r.lowOut("duGU", T, lgu)
			return func() { r.b.SwiGLUBack(gateup, duGU, dact, duDown, uGU, ld, lgu, r.batch) }
		}
		all = append(all, c)
	}
	for i, T := range lengths {
		add([]modelShape{tinyOdd, tinyEven}[i%2], T, segmentsFor(i, T), patterns(i, 1), patterns(i+1, 2))
	}
	add(tinyEven, 600, 2, adapters{[]int{4}, 0.05}, adapters{[]int{4, 4}, 0.05}) // more than two blocks of GradBlock
	add(tinyEven, 192, 2, adapters{[]int{4}, 0.05}, adapters{[]int{4, 4}, 0.05})
	for i, m := range allModels {
		add(m, 3+i, 2, patterns(i+4, 1), patterns(i+1, 2))
	}
	r8, r88 := adapters{[]int{8}, 0.05}, adapters{[]int{8, 8}, 0.05}
	add(qwen7B, 2048, 4, r8, r88)
	add(qwen7B, 2048, 4, adapters{}, adapters{})
	add(qwen7B, past2G(2*qwen7B.F), 4, r8, r88)
	return all
}

func loraGradCases() []Case {
	var all []Case
	add := func(m modelShape, T, S int, qkv, o adapters) {
		normed := len(all)%2 == 1 // dA of q, k, v from the input of the norm they read
		c := newCase("LoRAGrad", sizeOf(T, m.C), m, batch(T, S, 0, 9), max(qkv.rank(), o.rank()), "qkv %v o %v normed %v", qkv, o, normed)
		narrow, wide := m.h.H*m.h.D, (m.h.H+2*m.h.Hk)*m.h.D
		c.FLOPs = product2(T, qkv.rank(), m.C) + product2(T, qkv.rank(), wide) + product2(T, o.rank(), m.C+narrow)
		c.Bytes = 2 * sum(T) * sum(2*m.C, wide, narrow, 2*qkv.rank(), 2*o.rank())
		c.plan.wire = func(r *rig) func() {
			spec := r.qkv("", m.h, m.C)
			lq, lo := r.lora("qkv", spec, qkv, gradA|gradB), r.lora("o", r.plain("", m.C, narrow), o, gradA|gradB)
			var jobs []ops.GradJob
			var norm ops.Norm
			if normed {
				norm = ops.Norm{Rho: r.inState("rho", normal("rho", 1), T), W: r.in("w", normal("w", 1), m.C)}
			}
			if lq != nil {
				jobs = append(jobs,
					ops.GradJob{LoRA: lq, Side: ops.SideA, Wide: r.in("xn", nil, T, m.C), Low: r.lowIn("duQKV", T, lq), Norm: norm},
					ops.GradJob{LoRA: lq, Side: ops.SideB, Wide: r.wide("dqkv", input, byProduct, nil, T, spec), Low: r.lowIn("uQKV", T, lq)})
			}
			if lo != nil {
				jobs = append(jobs,
					ops.GradJob{LoRA: lo, Side: ops.SideB, Wide: r.in("dx", nil, T, m.C), Low: r.lowIn("uO", T, lo)},
					ops.GradJob{LoRA: lo, Side: ops.SideA, Wide: r.in("o", nil, T, narrow), Low: r.lowIn("duO", T, lo)})
			}
			return func() { r.b.LoRAGrad(jobs, r.batch) }
		}
		all = append(all, c)
	}
	for i, T := range lengths {
		add([]modelShape{tinyOdd, tinyEven}[i%2], T, segmentsFor(i, T), patterns(i, 3), patterns(i+1, 1))
	}
	r8, r888 := adapters{[]int{8}, 0.05}, adapters{[]int{8, 8, 8}, 0.05}
	add(tinyEven, 769, 7, r888, r8) // three full blocks and one token
	add(tinyEven, 192, 3, r888, r8)
	for i, m := range allModels {
		add(m, 3+i, 2, patterns(i+1, 3), patterns(i+2, 1))
	}
	add(qwen7B, 2048, 4, r888, r8)
	add(qwen7B, past2G(qwen7B.C), 4, r888, r8)
	return all
}

func headCases() []Case {
	var all []Case
	add := func(m modelShape, T, S, N int, op string, smoothing float32) {
		host := batch(T, S, N, m.V)
		host.Smoothing = smoothing
		c := newCase(op, sizeOf(T, m.C), m, host, 0, "N%d V%d", N, m.V)
		if smoothing > 0 {
			c.Name += fmt.Sprintf(" smoothing %g", smoothing)
			c.plan.name = c.Name
		}
		c.plan.dims.Training = op == "HeadLoss"
		n := len(host.Rows)
		if n*m.V > 1<<31 {
			c.Size = Huge
		}
		c.FLOPs = product2(n, m.V, m.C)
		c.Bytes = 2 * (sum(m.V)*sum(m.C) + sum(T)*sum(m.C))
		c.Products = []Product{{M: n, N: m.V, K: m.C}}
		switch op {
		case "HeadLoss":
			c.FLOPs *= 2
			c.Products = append(c.Products, Product{M: n, N: m.V, K: m.C, Back: true})
		case "KL":
			c.FLOPs *= 2
			c.Products = append(c.Products, c.Products[0])
		}
		c.plan.wire = func(r *rig) func() {
			w := r.newWeight(r.plain("head", m.V, m.C), nil)
			xn := r.in("xn", nil, T, m.C)
			switch op {
			case "HeadLoss", "HeadLoss eval":
				nll, hit, dxn := r.outState("nll", byElement, n), r.outState("hit", equal, n), none
				if op == "HeadLoss" {
					dxn = r.out("dxn", byProduct, T, m.C)
				}
				return func() { r.b.HeadLoss(dxn, nll, hit, xn, w, r.batch) }
			case "Logits":
				logits := r.outState("logits", byElement, n, m.V)
				return func() { r.b.Logits(logits, xn, w, r.batch) }
			}
			near := r.in("near", jitter(r, xn), T, m.C)
			kl := r.outState("kl", byNats, n)
			return func() { r.b.KL(kl, xn, near, w, r.batch) }
		}
		all = append(all, c)
	}
	small := smolLM
	small.V = 1000
	for i, T := range lengths {
		m := []modelShape{tinyOdd, tinyEven}[i%2]
		N := []int{T, 1, (T + 2) / 3, 0}[i%4]
		add(m, T, segmentsFor(i, T), N, "HeadLoss", 0)
		add(m, T, segmentsFor(i, T), N, "HeadLoss", []float32{0.1, 0.9, 1}[i%3])
		add(m, T, segmentsFor(i, T), N, []string{"HeadLoss eval", "Logits", "KL"}[i%3], 0)
	}
	for _, op := range []string{"HeadLoss", "HeadLoss eval", "Logits", "KL"} {
		add(small, 19, 2, 7, op, 0)
		add(qwen7B, 2048, 4, 600, op, 0)
	}
	for _, op := range []string{"HeadLoss", "HeadLoss eval"} {
		add(small, 19, 2, 7, op, 0.1)
		add(qwen7B, 2048, 4, 600, op, 0.1)
	}
	add(qwen7B, 2048, 4, 2048, "HeadLoss", 0)
	add(qwen7B, past2G(qwen7B.C), 4, 1000, "HeadLoss", 0)
	add(qwen7B, 16384, 4, 15000, "Logits", 0)
	return all
}

// jitter is xn with a little noise: the tuned model's hidden states.
func jitter(r *rig, xn ops.Tensor) gen {
	if r.sizing || r.timing {
		return nil
	}
	g, x := normal("near", 0.3), r.byName[xn.Name].values
	return func(i int) float64 { return x[i] + g(i) }
}

func optimizerCases() []Case {
	var all []Case
	grad := func(n int, scale float64) {
		c := Case{Op: "GradNorm", Name: "GradNorm/" + count(n), Size: Small, FLOPs: 2 * sum(n), Bytes: 4 * sum(n)}
		c.plan = plan{name: c.Name, plain: true, dims: ops.Dims{T: 1, S: 1, N: 1, C: 8, F: 8, V: 8, H: 1, Hk: 1, D: 8, Width: 1}}
		c.Size, c.plan.flat = flatSize(n), n
		c.plan.wire = func(r *rig) func() {
			g := r.inState("grads", normal("grads", scale), n)
			norm := r.outState("norm", byElement, 2)
			return func() { r.b.GradNorm(norm, g) }
		}
		all = append(all, c)
	}
	adam := func(n, step int, maxNorm float64, groups ...ops.LRGroup) {
		c := Case{Op: "AdamW", Name: "AdamW/" + count(n), FLOPs: 12 * sum(n), Bytes: 28 * sum(n), Size: flatSize(n)}
		c.Name += " step " + count(step) + " groups " + count(len(groups))
		c.plan = plan{name: c.Name, plain: true, dims: ops.Dims{T: 1, S: 1, N: 1, C: 8, F: 8, V: 8, H: 1, Hk: 1, D: 8, Width: 1}}
		c.plan.wire = func(r *rig) func() {
			p := r.updateState("params", byElement, normal("params", 1), n)
			m := r.updateState("m", byElement, normal("m", 0.1), n)
			square := normal("v", 0.1)
			v := r.updateState("v", byElement, func(i int) float64 { return math.Pow(square(i), 2) }, n)
			g := r.inState("grads", normal("grads", 0.1), n)
			norm := r.inState("norm", func(i int) float64 { return []float64{3.5, 0}[i] }, 2)
			a := ops.AdamWArgs{Step: step, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, MaxNorm: maxNorm, Groups: groups}
			return func() { r.b.AdamW(p, m, v, g, norm, a) }
		}
		all = append(all, c)
	}
	for _, n := range []int{1, 2, 31, 4097, 70001} {
		grad(n, 1)
	}
	grad(1000, 1e-15)
	adam(1, 1, 0, ops.LRGroup{Len: 1, LR: 1e-3})
	adam(4097, 1, 1, ops.LRGroup{Len: 4097, LR: 1e-3, WeightDecay: 0.1})
	adam(70001, 100, 1, ops.LRGroup{Len: 1, LR: 1e-2}, ops.LRGroup{Len: 30000, LR: 1e-3, WeightDecay: 0.1}, ops.LRGroup{Len: 40000, LR: 0})
	grad(40<<20, 1)
	adam(40<<20, 10, 1, ops.LRGroup{Len: 20 << 20, LR: 1e-4, WeightDecay: 0.1}, ops.LRGroup{Len: 20 << 20, LR: 1.6e-3})
	grad(1<<31+4097, 1)
	return all
}

func flatSize(n int) Size {
	switch {
	case n > 1<<31:
		return Huge
	case n > 1<<20:
		return Bench
	}
	return Small
}
