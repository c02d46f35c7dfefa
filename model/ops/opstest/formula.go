package opstest

import (
	"fmt"
	"math"
	"testing"

	"qlora/model/ops"
)

// formula is a call of forward ops, and what the plain formulas make of its inputs.
type formula struct {
	name string
	m    modelShape
	host ops.HostBatch
	wire func(r *rig) (call func(), want func() map[string][]float64)
}

// RunReference holds the float64 oracle to the formulas of the ops, written a second time in the
// plainest code (reference.go).
func RunReference(t *testing.T, oracle New) {
	all := append(layerFormulas(), headFormulas()...)
	for _, f := range append(all, optimizerFormulas()...) {
		t.Run(f.name, func(t *testing.T) {
			m := &machine{b: oracle()}
			var want func() map[string][]float64
			var c Case
			c.dims(f.m, f.host, 64)
			c.plan.wire = func(r *rig) (call func()) {
				call, want = f.wire(r)
				return call
			}
			r, err := m.build(&c.plan, ops.F32, ops.F64)
			if err != nil {
				t.Fatal(err)
			}
			r.run()
			if err := r.b.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := r.matches(want()); err != nil {
				t.Error(err)
			}
			if err := m.b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func layerFormulas() []formula {
	const T = 13
	host, m, h := batch(T, 3, 0, 20), small, small.h
	three, two, one := adapters{[]int{2, 0, 5}, 0.5}, adapters{[]int{3, 4}, 0.5}, adapters{[]int{6}, 0.5}
	all := []formula{
		embedFormula(m, host, 0), embedFormula(m, host, 5),
		{"RMSNorm", m, host, func(r *rig) (func(), func() map[string][]float64) {
			l := r.lora("l", r.qkv("", h, m.C), three, 0)
			x, w := r.in("x", nil, T, m.C), r.in("w", nil, m.C)
			xn, rho, u := r.out("xn", byElement, T, m.C), r.outState("rho", byElement, T), r.lowOut("u", T, l)
			return func() { r.b.RMSNorm(xn, rho, u, x, w, 0.25, l, r.batch) }, func() map[string][]float64 {
				normed, inverse := make([]float64, T*m.C), make([]float64, T)
				for t := range T {
					row := r.byName["x"].values[t*m.C : (t+1)*m.C]
					inverse[t] = 1 / math.Sqrt(dot(row, row)/float64(m.C)+0.25)
					for c, v := range row {
						normed[t*m.C+c] = v * inverse[t] * r.byName["w"].values[c]
					}
				}
				return map[string][]float64{"xn": normed, "rho": inverse, "u": lowRank(&host, l, r.factors(l), normed, precise)}
			}
		}},
		{"Attention", m, host, func(r *rig) (func(), func() map[string][]float64) {
			l := r.lora("l", r.plain("", m.C, h.H*h.D), one, 0)
			qkv := r.wide("qkv", input, byRule, nil, T, r.qkv("", h, m.C))
			o, lse, u := r.out("o", byRule, T, h.H*h.D), r.outState("lse", byElement, h.H, T), r.lowOut("u", T, l)
			return func() { r.b.Attention(o, lse, u, qkv, h, l, r.batch) }, func() map[string][]float64 {
				values, sums := attentionForward(r.byName["qkv"].values, h, host.SegStart, precise)
				return map[string][]float64{"o": values, "lse": sums, "u": lowRank(&host, l, r.factors(l), values, precise)}
			}
		}},
		{"SwiGLU", m, host, func(r *rig) (func(), func() map[string][]float64) {
			l := r.lora("l", r.plain("", m.C, m.F), one, 0)
			gateup := r.wide("gateup", input, byElement, nil, T, r.gateUp("", m.F, m.C))
			act, u := r.out("act", byElement, T, m.F), r.lowOut("u", T, l)
			return func() { r.b.SwiGLU(act, u, gateup, l, r.batch) }, func() map[string][]float64 {
				a := make([]float64, T*m.F)
				for i := range a {
					gate := r.byName["gateup"].values[i/m.F*2*m.F+i%m.F]
					a[i] = gate / (1 + math.Exp(-gate)) * r.byName["gateup"].values[i/m.F*2*m.F+m.F+i%m.F]
				}
				return map[string][]float64{"act": a, "u": lowRank(&host, l, r.factors(l), a, precise)}
			}
		}},
	}
	for _, k := range []linearCase{
		{m: m, kind: ops.QKV, a: three, bias: true, residual: other, rope: true},
		{m: m, kind: ops.QKV, a: adapters{}, rope: true},
		{m: m, kind: ops.GateUp, a: two, bias: true},
		{m: m, kind: ops.Plain, a: one, residual: inPlace},
		{m: m, kind: ops.Plain, down: true},
	} {
		k.T, k.S = T, 3
		all = append(all, linearFormula(k, host))
	}
	return all
}

func embedFormula(m modelShape, host ops.HostBatch, noise float32) formula {
	host.Noise = noise
	return formula{fmt.Sprintf("Embed/noise %g", noise), m, host, func(r *rig) (func(), func() map[string][]float64) {
		spec := r.plain("table", m.V, m.C)
		w, x := r.newWeight(spec, nil), r.out("x", byElement, len(host.IDs), m.C)
		return func() { r.b.Embed(x, w, r.batch) }, func() map[string][]float64 {
			table, _ := r.weightValues(spec, nil)
			var rows []float64
			for s := range len(host.SegStart) - 1 {
				length := host.SegStart[s+1] - host.SegStart[s]
				for t := host.SegStart[s]; t < host.SegStart[s+1]; t++ {
					for c := range m.C {
						lanes := ops.DropLanes(host.Seed, host.Step, uint32(c/8), uint32(host.Pos[t]), uint32(host.Sample[t]), ops.NoiseStream)
						uniform := (2*float64(lanes[c%8]) - 65535) / 65536 // in (-1, 1)
						rows = append(rows, table[int(host.IDs[t])*m.C+c]+float64(noise)/math.Sqrt(float64(length)*float64(m.C))*uniform)
					}
				}
			}
			return map[string][]float64{"x": rows}
		}
	}}
}

func linearFormula(k linearCase, host ops.HostBatch) formula {
	name := k.build("Linear").Name
	return formula{name, k.m, host, func(r *rig) (func(), func() map[string][]float64) {
		spec := k.spec(r, "w")
		w, l := r.newWeight(spec, nil), r.lora("l", spec, k.a, 0)
		x, u := r.in("x", nil, k.T, spec.Cols), r.lowIn("u", k.T, l)
		y := r.wide("y", update, byProduct, nil, k.T, spec)
		var e ops.Epilogue
		if k.rope {
			e.Rope = r.rope(k.T, k.m.h.D)
		}
		start := make([]float64, y.Len())
		switch k.residual {
		case inPlace:
			e.Residual, start = y, r.byName["y"].values
		case other:
			e.Residual = r.wide("residual", input, byProduct, nil, k.T, spec)
			start = r.byName["residual"].values
		}
		return func() { r.b.Linear(y, x, w, u, l, e, r.batch) }, func() map[string][]float64 {
			wv, bias := r.weightValues(spec, nil)
			want := append([]float64(nil), start...)
			for i := range want {
				t, row := i/spec.Rows(), i%spec.Rows()
				want[i] += dot(r.byName["x"].values[t*spec.Cols:(t+1)*spec.Cols], wv[row*spec.Cols:])
				if bias != nil {
					want[i] += float64(bias[row])
				}
			}
			if l != nil {
				r.addLoRA(want, l, r.byName["u"].values)
			}
			if k.rope {
				rotate(want, r.byName["cos"].values, r.byName["sin"].values, k.m.h, host.Pos, false)
			}
			return map[string][]float64{"y": want}
		}
	}}
}

// addLoRA adds u·Bᵀ to y (T,out).
func (r *rig) addLoRA(y []float64, l *ops.LoRA, u []float64) {
	out, b := l.Weight.Rows(), r.seconds(l)
	for i := range l.Modules {
		m := &l.Modules[i]
		row := l.Row(i, l.Weight.Parts)
		for t := range len(y) / out {
			low := u[t*l.Width+l.Col(i):][:m.Rank]
			for j := range l.Weight.Parts[m.Part] {
				y[t*out+row+j] += dot(low, b[i][j*m.Rank:])
			}
		}
	}
}

// headFormulas have two equal rows in the head, so that the lowest id of equals shows.
func headFormulas() []formula {
	const T, N = 9, 5
	m, host := small, batch(T, 2, N, small.V)
	const low, high = 4, 20
	host.Targets[0], host.Targets[1] = low, high
	head := func() gen {
		g := normal("head", 1)
		var first []float64
		return func(i int) float64 {
			v := g(i)
			switch i / m.C {
			case low:
				v *= 10
				first = append(first, v)
			case high:
				v = first[i%m.C]
			}
			return v
		}
	}
	logits := func(r *rig, xn string) [][]float64 {
		w, _ := r.weightValues(r.plain("head", m.V, m.C), head())
		var rows [][]float64
		for _, t := range host.Rows {
			x, row := r.byName[xn].values[int(t)*m.C:(int(t)+1)*m.C], make([]float64, m.V)
			for v := range row {
				row[v] = dot(x, w[v*m.C:])
			}
			rows = append(rows, row)
		}
		return rows
	}
	all := []formula{
		{"Logits and KL", m, host, func(r *rig) (func(), func() map[string][]float64) {
			w, base, tuned := r.newWeight(r.plain("head", m.V, m.C), head()), r.in("base", nil, T, m.C), r.in("tuned", nil, T, m.C)
			out, kl := r.outState("logits", byElement, N, m.V), r.outState("kl", byElement, N)
			return func() {
					r.b.Logits(out, base, w, r.batch)
					r.b.KL(kl, base, tuned, w, r.batch)
				}, func() map[string][]float64 {
					var flat, divergence []float64
					p, q := logits(r, "base"), logits(r, "tuned")
					for i := range p {
						flat = append(flat, p[i]...)
						sum, lp, lq := 0.0, logSum(p[i]), logSum(q[i])
						for v := range p[i] {
							sum += math.Exp(p[i][v]-lp) * (p[i][v] - lp - q[i][v] + lq)
						}
						divergence = append(divergence, sum)
					}
					return map[string][]float64{"logits": flat, "kl": divergence}
				}
		}},
	}
	for _, smoothing := range []float32{0, 0.125, 1} {
		host := host
		host.Smoothing = smoothing
		all = append(all, formula{fmt.Sprintf("HeadLoss/smoothing %g", smoothing), m, host, func(r *rig) (func(), func() map[string][]float64) {
			w, xn := r.newWeight(r.plain("head", m.V, m.C), head()), r.in("xn", nil, T, m.C)
			nll, hit := r.outState("nll", byElement, N), r.outState("hit", equal, N)
			return func() { r.b.HeadLoss(none, nll, hit, xn, w, r.batch) }, func() map[string][]float64 {
				var losses, hits []float64
				for i, row := range logits(r, "xn") {
					best := 0
					for v := range row {
						if row[v] > row[best] {
							best = v
						}
					}
					target, loss := int(host.Targets[i]), 0.0
					for v := range row {
						q := float64(smoothing) / float64(m.V)
						if v == target {
							q += 1 - float64(smoothing)
						}
						loss -= q * (row[v] - logSum(row))
					}
					losses = append(losses, loss)
					hits = append(hits, map[bool]float64{true: 1}[best == target])
				}
				return map[string][]float64{"nll": losses, "hit": hits}
			}
		}})
	}
	return all
}

func logSum(row []float64) float64 {
	most, sum := math.Inf(-1), 0.0
	for _, v := range row {
		most = max(most, v)
	}
	for _, v := range row {
		sum += math.Exp(v - most)
	}
	return most + math.Log(sum)
}

func optimizerFormulas() []formula {
	const n, steps = 50, 3
	host, groups := batch(1, 1, 0, 9), []ops.LRGroup{{Len: 20, LR: 1e-2, WeightDecay: 0.1}, {Len: 30, LR: 3e-3}}
	adam := func(name string, spoil func(i int) float64, maxNorm float64) formula {
		return formula{name, small, host, func(r *rig) (func(), func() map[string][]float64) {
			g := normal("grads", 1)
			p := r.updateState("params", byElement, normal("params", 1), n)
			m, v := r.updateState("m", byElement, constant(0), n), r.updateState("v", byElement, constant(0), n)
			grads := r.inState("grads", func(i int) float64 { return g(i) + spoil(i) }, n)
			norm2 := r.outState("norm", byElement, 2)
			return func() {
					r.b.GradNorm(norm2, grads)
					for s := range steps {
						r.b.AdamW(p, m, v, grads, norm2, ops.AdamWArgs{Step: s + 1, Beta1: 0.875, Beta2: 0.9375, Eps: 0x1p-27, MaxNorm: maxNorm, Groups: groups})
					}
				}, func() map[string][]float64 {
					return adamFormula(r.byName["params"].values, r.byName["grads"].values, groups, steps, maxNorm)
				}
		}}
	}
	whole := func(int) float64 { return 0 }
	return []formula{
		adam("GradNorm and AdamW clipped", whole, 1), adam("GradNorm and AdamW", whole, 0), adam("GradNorm and AdamW below the limit", whole, 1000),
		adam("AdamW and a gradient that is not a number", func(i int) float64 { return []float64{0, math.NaN()}[map[bool]int{true: 1}[i == 7]] }, 1),
	}
}

// adamFormula is Loshchilov and Hutter's algorithm 2 with the gradients clipped to a norm, for the
// same gradients in each step. Where they are not finite all stays as it was.
func adamFormula(params, grads []float64, groups []ops.LRGroup, steps int, maxNorm float64) map[string][]float64 {
	p, m, v := append([]float64(nil), params...), make([]float64, len(params)), make([]float64, len(params))
	length, scale := norm(grads), 1.0
	if math.IsNaN(length) {
		return map[string][]float64{"params": p, "m": m, "v": v}
	}
	if maxNorm > 0 {
		scale = min(1, maxNorm/(length+1e-6))
	}
	for s := 1; s <= steps; s++ {
		i := 0
		for _, group := range groups {
			for range group.Len {
				g := scale * grads[i]
				m[i] = 0.875*m[i] + 0.125*g
				v[i] = 0.9375*v[i] + 0.0625*g*g
				mean, variance := m[i]/(1-math.Pow(0.875, float64(s))), v[i]/(1-math.Pow(0.9375, float64(s)))
				p[i] -= group.LR * (mean/(math.Sqrt(variance)+0x1p-27) + group.WeightDecay*p[i])
				i++
			}
		}
	}
	return map[string][]float64{"params": p, "m": m, "v": v, "norm": {length, 0}}
}
