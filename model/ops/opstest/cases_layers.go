package opstest

import (
	"qlora/model/ops"
)

var none ops.Tensor

func embedCases() []Case {
	var all []Case
	add := func(m modelShape, T, S int, noise float32) {
		if sizeOf(T, m.C) == Small {
			m.V = min(m.V, 300)
		}
		host, tol := batch(T, S, 0, m.V), equal
		if host.Noise = noise; noise > 0 {
			tol = byElement
		}
		c := newCase("Embed", sizeOf(T, m.C), m, host, 0, "V%d noise %g", m.V, noise)
		c.Bytes = 4 * float64(T) * float64(m.C)
		c.plan.wire = func(r *rig) func() {
			w := r.newWeight(r.plain("table", m.V, m.C), nil)
			x := r.out("x", tol, T, m.C)
			return func() { r.b.Embed(x, w, r.batch) }
		}
		all = append(all, c)
	}
	for i, m := range allModels {
		add(m, lengths[i+3], 1, 0)
		add(m, lengths[i+3], segmentsFor(i, lengths[i+3]), 5)
	}
	for _, noise := range []float32{0, 5} {
		add(qwen7B, 2048, 4, noise)
	}
	add(qwen7B, past2G(qwen7B.C), 1, 5)
	return all
}

func rmsnormCases() []Case {
	var all []Case
	add := func(m modelShape, T, S int, a adapters, keep bool) {
		c := newCase("RMSNorm", sizeOf(T, m.C), m, batch(T, S, 0, 9), a.rank(), "%v rho %v", a, keep)
		c.FLOPs = 4*sum(T)*sum(m.C) + product2(T, a.rank(), m.C)
		c.Bytes = 2 * sum(T) * sum(m.C, m.C, a.rank())
		c.plan.wire = func(r *rig) func() {
			l := r.lora("l", r.qkv("", m.h, m.C), a, 0)
			x, w := r.in("x", nil, T, m.C), r.in("w", normal("w", 1), m.C)
			xn, u, rho := r.out("xn", byElement, T, m.C), r.lowOut("u", T, l), none
			if keep {
				rho = r.outState("rho", byElement, T)
			}
			return func() { r.b.RMSNorm(xn, rho, u, x, w, 1e-6, l, r.batch) }
		}
		all = append(all, c)
	}
	for i, T := range lengths {
		add([]modelShape{tinyEven, tinyOdd}[i%2], T, segmentsFor(i, T), patterns(i, 3), i%4 != 3)
	}
	for i, m := range allModels {
		add(m, 5+i, 2, patterns(i+1, 3), true)
	}
	add(qwen7B, 2048, 7, adapters{[]int{8, 8, 8}, 0.05}, true)
	add(qwen7B, 2048, 7, adapters{[]int{8, 8, 8}, 0}, true)
	add(qwen7B, 2048, 7, adapters{}, true)
	add(qwen7B, past2G(qwen7B.C), 7, adapters{[]int{8, 0, 8}, 0.05}, true)
	return all
}

// residual says what a Linear adds to its output.
type residual uint8

const (
	alone residual = iota
	other
	inPlace
)

type linearCase struct {
	m        modelShape
	kind     ops.WeightKind
	down     bool // a plain weight from F to C, not from H·D
	T, S     int
	a        adapters
	bias     bool
	residual residual
	rope     bool
	decode   bool // a weight of inference, which may take few tokens another way
}

func (k linearCase) spec(r *rig, name string) ops.WeightSpec {
	var s ops.WeightSpec
	switch {
	case k.kind == ops.QKV:
		s = r.qkv(name, k.m.h, k.m.C)
	case k.kind == ops.GateUp:
		s = r.gateUp(name, k.m.F, k.m.C)
	case k.down:
		s = r.plain(name, k.m.C, k.m.F)
	default:
		s = r.plain(name, k.m.C, k.m.h.H*k.m.h.D)
	}
	s.Bias, s.Back = k.bias, !k.decode
	return s
}

func (k linearCase) build(op string) Case {
	spec := k.spec(&rig{weight: ops.BF16}, "")
	out, in := spec.Rows(), spec.Cols
	c := newCase(op, sizeOf(k.T, max(in, out)), k.m, batch(k.T, k.S, 0, 9), k.a.rank(), "%d->%d %v bias %v residual %d rope %v", in, out, k.a, k.bias, k.residual, k.rope)
	if k.decode {
		c.Name += " decode"
	}
	c.Cols = in
	c.FLOPs = product2(k.T, out, in) + product2(k.T, k.a.rank(), out)
	c.Products = []Product{{M: k.T, N: out, K: in, Back: op == "LinearBack"}}
	c.Bytes = 2 * (sum(k.T)*sum(in, out, k.a.rank()) + sum(out)*sum(in))
	return c
}

func linearCases() []Case {
	var all []Case
	add := func(k linearCase) {
		c := k.build("Linear")
		c.plan.wire = func(r *rig) func() {
			spec := k.spec(r, "w")
			w := r.newWeight(spec, nil)
			l := r.lora("l", spec, k.a, 0)
			x, u := r.in("x", nil, k.T, spec.Cols), r.lowIn("u", k.T, l)
			var e ops.Epilogue
			if k.rope {
				e.Rope = r.rope(k.T, k.m.h.D)
			}
			var y ops.Tensor
			switch k.residual {
			case inPlace:
				y = r.wide("y", update, byProduct, nil, k.T, spec)
				e.Residual = y
			case other:
				e.Residual = r.wide("residual", input, byProduct, nil, k.T, spec)
				fallthrough
			default:
				y = r.wide("y", output, byProduct, nil, k.T, spec)
			}
			return func() { r.b.Linear(y, x, w, u, l, e, r.batch) }
		}
		all = append(all, c)
	}
	kinds := []struct {
		kind  ops.WeightKind
		parts int
	}{{ops.QKV, 3}, {ops.Plain, 1}, {ops.GateUp, 2}}
	for i, T := range lengths {
		for j, k := range kinds {
			n := i + 2*j
			add(linearCase{m: []modelShape{tinyEven, tinyOdd, smolLM}[(i+j)%3], kind: k.kind, down: i%2 == 0, T: T, S: segmentsFor(i, T), a: patterns(n, k.parts),
				bias: n%2 == 0, residual: residual(n % 3), rope: k.kind == ops.QKV && i%3 != 0})
		}
	}
	for T := 1; T <= 9; T++ {
		for j, k := range kinds {
			n := T + 2*j
			add(linearCase{m: []modelShape{tinyEven, tinyOdd, smolLM}[(T+j)%3], kind: k.kind, down: T%2 == 0, T: T, S: T, a: patterns(n, k.parts),
				bias: n%2 == 0, residual: residual(n % 3), rope: k.kind == ops.QKV && T%3 != 0, decode: true})
		}
	}
	for i, T := range []int{1, 4, 5, 8} { // widths of real models have kernels of their own
		for j, k := range kinds {
			add(linearCase{m: qwen05B, kind: k.kind, down: i%2 == 0, T: T, S: T, a: patterns(i+j, k.parts), bias: k.kind == ops.QKV,
				residual: residual((i + j) % 3), rope: k.kind == ops.QKV, decode: true})
		}
	}
	long := modelShape{"long rows", 72, qwen7B.F, tinyEven.h, tinyEven.V}
	for _, T := range []int{1, 4} {
		add(linearCase{m: long, kind: ops.Plain, down: true, T: T, S: T, a: patterns(T, 1), residual: other, decode: true})
	}
	for i, m := range []modelShape{qwen05B, qwen15B, qwen7B} {
		add(linearCase{m: m, kind: ops.QKV, T: 3, S: 2, a: adapters{[]int{8, 8, 8}, 0.05}, bias: true, rope: true})
		if i < 2 {
			add(linearCase{m: m, kind: ops.Plain, T: 2 + i, S: 1, a: adapters{[]int{8}, 0.05}, residual: other})
		}
	}
	for _, a := range []adapters{{}, {[]int{8, 8, 8}, 0.05}, {[]int{64, 64, 64}, 0.05}} {
		part := func(n int) adapters { return adapters{a.ranks[:min(n, len(a.ranks))], a.drop} }
		add(linearCase{m: qwen7B, kind: ops.QKV, T: 2048, S: 4, a: a, bias: true, rope: true})
		add(linearCase{m: qwen7B, kind: ops.Plain, T: 2048, S: 4, a: part(1), residual: other})
		add(linearCase{m: qwen7B, kind: ops.GateUp, T: 2048, S: 4, a: part(2)})
		add(linearCase{m: qwen7B, kind: ops.Plain, down: true, T: 2048, S: 4, a: part(1), residual: other})
	}
	add(linearCase{m: qwen7B, kind: ops.GateUp, T: past2G(2 * qwen7B.F), S: 4, a: adapters{[]int{8, 8}, 0.05}})
	return all
}

type attentionCase struct {
	m    modelShape
	T, S int
	a    adapters // of o
	qkv  adapters // of q, k, v: backward
	keep bool     // lse
	rope bool     // backward
}

// causal is the query-key pairs of a batch.
func causal(h ops.HostBatch) float64 {
	n := 0.0
	for _, p := range h.Pos {
		n += float64(p) + 1
	}
	return n
}

// attentionShapes are the lengths and heads of forward and backward.
func attentionShapes() []attentionCase {
	var all []attentionCase
	for i, T := range lengths {
		all = append(all, attentionCase{m: []modelShape{tinyOdd, tinyEven, smolLM}[i%3], T: T, S: segmentsFor(i/2, T), a: patterns(i, 1),
			qkv: patterns(i+1, 3), keep: i%4 != 1, rope: i%3 != 1})
	}
	for i, m := range []modelShape{qwen05B, qwen15B, qwen7B, smolLM} {
		for j, T := range []int{2, 65, 113} {
			all = append(all, attentionCase{m: m, T: T, S: []int{1, 2, 7}[(i+j)%3]*min(1, T/7) + 1 - min(1, T/7), a: patterns(i+j, 1), qkv: patterns(i+j+2, 3), keep: true, rope: true})
		}
	}
	lora := attentionCase{a: adapters{[]int{8}, 0.05}, qkv: adapters{[]int{8, 8, 8}, 0.05}, keep: true, rope: true}
	for _, m := range []modelShape{qwen7B, qwen05B} {
		for _, s := range []int{1, 16} {
			k := lora
			k.m, k.T, k.S = m, 2048, s
			all = append(all, k)
		}
	}
	long := lora
	long.m, long.T, long.S = qwen7B, 32768, 1
	huge := lora
	huge.m, huge.S = qwen7B, 512
	huge.T = past2G((huge.m.h.H + 2*huge.m.h.Hk) * huge.m.h.D)
	return append(all, long, huge)
}

func (k attentionCase) wide() int { return (k.m.h.H + 2*k.m.h.Hk) * k.m.h.D }

// shape is what other libraries compute as well: nil for more than one segment.
func (k attentionCase) shape() *AttentionShape {
	if k.S > 1 {
		return nil
	}
	return &AttentionShape{T: k.T, Heads: k.m.h}
}

func attentionCases() []Case {
	var all []Case
	for _, k := range attentionShapes() {
		host := batch(k.T, k.S, 0, 9)
		h, narrow := k.m.h, k.m.h.H*k.m.h.D
		c := newCase("Attention", sizeOf(k.T, k.wide()), k.m, host, k.a.rank(), "heads %d:%d D%d %v lse %v", h.H, h.Hk, h.D, k.a, k.keep)
		c.FLOPs = 4*causal(host)*float64(narrow) + product2(k.T, k.a.rank(), narrow)
		c.Bytes = 2 * sum(k.T) * sum(k.wide(), narrow, k.a.rank())
		c.Attention = k.shape()
		c.plan.wire = func(r *rig) func() {
			l := r.lora("l", r.plain("", k.m.C, narrow), k.a, 0)
			qkv := r.wide("qkv", input, byRule, nil, k.T, r.qkv("", h, k.m.C))
			tol, low, lse := byRule, byProduct, none
			if r.coarsely() {
				tol.coarse, _ = attentionForward(r.byName["qkv"].values, h, r.host.SegStart, rounded)
				if l != nil {
					low = byRule
					low.coarse = lowRank(&r.host, l, r.factors(l), tol.coarse, rounded)
				}
			}
			o := r.out("o", tol, k.T, narrow)
			if k.keep {
				lse = r.outState("lse", byElement, h.H, k.T)
			}
			u := r.lowOut("u", k.T, l)
			if l != nil {
				r.byName["u"].tol = low
			}
			return func() { r.b.Attention(o, lse, u, qkv, h, l, r.batch) }
		}
		all = append(all, c)
	}
	return all
}

// factors are the values of A of each module.
func (r *rig) factors(l *ops.LoRA) [][]float64 {
	var a [][]float64
	for _, m := range l.Modules {
		a = append(a, r.byName[m.A.Name].values)
	}
	return a
}

func swigluCases() []Case {
	var all []Case
	add := func(m modelShape, T, S int, a adapters, decode bool) {
		c := newCase("SwiGLU", sizeOf(T, 2*m.F), m, batch(T, S, 0, 9), a.rank(), "%v decode %v", a, decode)
		c.FLOPs = 6*sum(T)*sum(m.F) + product2(T, a.rank(), m.F)
		c.Bytes = 2 * sum(T) * sum(3*m.F, a.rank())
		c.plan.wire = func(r *rig) func() {
			reader := r.plain("", m.C, m.F)
			reader.Back = !decode
			l := r.lora("l", reader, a, 0)
			gateup := r.wide("gateup", input, byElement, normal("gateup", 2), T, r.gateUp("", m.F, m.C))
			act, u := r.out("act", byElement, T, m.F), r.lowOut("u", T, l)
			return func() { r.b.SwiGLU(act, u, gateup, l, r.batch) }
		}
		all = append(all, c)
	}
	for i, T := range lengths {
		add([]modelShape{tinyEven, tinyOdd}[i%2], T, segmentsFor(i, T), patterns(i, 1), i%3 == 1)
	}
	for i, m := range allModels {
		add(m, 3+i, 2, patterns(i+1, 1), i%2 == 0)
	}
	add(qwen7B, 2048, 4, adapters{[]int{8}, 0.05}, false)
	add(qwen7B, 2048, 4, adapters{}, false)
	add(qwen7B, past2G(2*qwen7B.F), 4, adapters{[]int{8}, 0.05}, false)
	return all
}
