package opstest

import (
	"fmt"

	"qlora/model/ops"
)

// decoder is a small Qwen2.5 made of ops alone: the composition in which every op's backward meets
// its neighbours. It keeps all activations apart and computes the gradient down to its input.
type decoder struct {
	r      *rig
	m      modelShape
	embeds bool // x0 comes of the ids; else it is a variable

	x          []ops.Tensor // residual stream into each layer, and out of the last
	layers     []decoderLayer
	xn, rho, w ops.Tensor // of the last norm
	table      ops.Weight
	head       ops.Weight
	rope       *ops.Rope
	nll, hit   ops.Tensor
	// backward
	dx, dxn, do, dqkv, dact, act ops.Tensor
}

type decoderLayer struct {
	qkv, o, gateup, down               ops.Weight
	lqkv, lo, lgu, ldown               *ops.LoRA
	norm1, norm2                       ops.Tensor
	mid, rho1, rho2, qkvs, lse, os, gu ops.Tensor
	uqkv, uo, ugu, udown               ops.Tensor
	duqkv, duo, dugu, dudown           ops.Tensor
}

// decoderLoRA are the adapters of a layer; the zero value is the frozen model.
type decoderLoRA struct{ qkv, o, gateup, down adapters }

const eps = 1e-6

// newDecoder places a decoder of L layers in r. All its activations are scratch: who needs them
// reads them by name.
func newDecoder(r *rig, m modelShape, L int, a decoderLoRA, T, N int, embeds bool) *decoder {
	d := &decoder{r: r, m: m, embeds: embeds}
	act := func(name string, cols int) ops.Tensor { return r.place(name, scratch, r.act, T, cols).Tensor }
	h, wide, narrow := m.h, (m.h.H+2*m.h.Hk)*m.h.D, m.h.H*m.h.D
	if embeds {
		d.table = r.newWeight(r.table("table", m.V, m.C), normal("table", 1))
		d.x = []ops.Tensor{act("x0", m.C)}
	} else {
		d.x = []ops.Tensor{r.in("x0", nil, T, m.C)}
	}
	d.rope = r.rope(T, h.D)
	for i := range L {
		n := func(s string) string { return fmt.Sprintf("%s.%d", s, i) }
		norm := func(s string) ops.Tensor { return r.in(n(s), normal(n(s), 1), m.C) }
		qkv, o := r.qkv(n("qkv"), h, m.C), r.plain(n("o"), m.C, narrow)
		gateup, down := r.gateUp(n("gateup"), m.F, m.C), r.plain(n("down"), m.C, m.F)
		qkv.Bias = true
		y := decoderLayer{norm1: norm("norm1"), norm2: norm("norm2"),
			qkv: r.newWeight(qkv, nil), o: r.newWeight(o, nil), gateup: r.newWeight(gateup, nil), down: r.newWeight(down, nil),
			lqkv: r.lora(n("lqkv"), qkv, a.qkv, gradA|gradB), lo: r.lora(n("lo"), o, a.o, gradA|gradB),
			lgu: r.lora(n("lgu"), gateup, a.gateup, gradA|gradB), ldown: r.lora(n("ldown"), down, a.down, gradA|gradB),
			mid: act(n("mid"), m.C), qkvs: act(n("qkvs"), wide), os: act(n("os"), narrow), gu: act(n("gu"), 2*m.F),
			rho1: r.place(n("rho1"), scratch, r.state, T).Tensor, rho2: r.place(n("rho2"), scratch, r.state, T).Tensor,
			lse: r.place(n("lse"), scratch, r.state, h.H, T).Tensor}
		for _, low := range []struct {
			u, du *ops.Tensor
			name  string
			l     *ops.LoRA
		}{{&y.uqkv, &y.duqkv, "uqkv", y.lqkv}, {&y.uo, &y.duo, "uo", y.lo}, {&y.ugu, &y.dugu, "ugu", y.lgu}, {&y.udown, &y.dudown, "udown", y.ldown}} {
			if low.l != nil {
				*low.u, *low.du = act(n(low.name), low.l.Width), act(n("d"+low.name), low.l.Width)
			}
		}
		d.layers = append(d.layers, y)
		d.x = append(d.x, act(fmt.Sprintf("x%d", i+1), m.C))
	}
	d.w, d.rho = r.in("norm", normal("norm", 1), m.C), r.place("rho", scratch, r.state, T).Tensor
	d.head = r.newWeight(r.table("head", m.V, m.C), nil)
	d.nll, d.hit = r.place("nll", scratch, r.state, N).Tensor, r.place("hit", scratch, r.state, N).Tensor
	d.xn, d.dx, d.dxn = act("xn", m.C), act("dx", m.C), act("dxn", m.C)
	d.do, d.dqkv, d.dact, d.act = act("do", narrow), act("dqkv", wide), act("dact", m.F), act("act", m.F)
	return d
}

// forward leaves nll of the label rows and, to begin the backward with, dxn.
func (d *decoder) forward() {
	b, batch := d.r.b, d.r.batch
	if d.embeds {
		b.Embed(d.x[0], d.table, batch)
	}
	for i := range d.layers {
		y := &d.layers[i]
		b.RMSNorm(d.xn, y.rho1, y.uqkv, d.x[i], y.norm1, eps, y.lqkv, batch)
		b.Linear(y.qkvs, d.xn, y.qkv, y.uqkv, y.lqkv, ops.Epilogue{Rope: d.rope}, batch)
		b.Attention(y.os, y.lse, y.uo, y.qkvs, d.m.h, y.lo, batch)
		b.Linear(y.mid, y.os, y.o, y.uo, y.lo, ops.Epilogue{Residual: d.x[i]}, batch)
		b.RMSNorm(d.xn, y.rho2, y.ugu, y.mid, y.norm2, eps, y.lgu, batch)
		b.Linear(y.gu, d.xn, y.gateup, y.ugu, y.lgu, ops.Epilogue{}, batch)
		b.SwiGLU(d.act, y.udown, y.gu, y.ldown, batch)
		b.Linear(d.x[i+1], d.act, y.down, y.udown, y.ldown, ops.Epilogue{Residual: y.mid}, batch)
	}
	b.RMSNorm(d.xn, d.rho, none, d.x[len(d.layers)], d.w, eps, nil, batch)
	b.HeadLoss(d.dxn, d.nll, d.hit, d.xn, d.head, batch)
}

// loss is the batch's part of the step's loss.
func (d *decoder) loss() float64 {
	sum := 0.0
	for _, v := range d.r.get("nll") {
		sum += v
	}
	return float64(d.r.batch.Host.LossScale) * sum
}

// backward follows a forward: the gradient of x0 comes to lie in dx, those of the adapters are added.
func (d *decoder) backward() {
	b, batch, last := d.r.b, d.r.batch, len(d.layers)-1
	b.RMSNormBack(d.dx, d.layers[last].dudown, none, d.dxn, none, none, d.x[last+1], d.rho, d.w, nil, d.layers[last].ldown, batch)
	for i := last; i >= 0; i-- {
		y := &d.layers[i]
		var jobs []ops.GradJob
		job := func(l *ops.LoRA, s ops.Side, wide, low ops.Tensor, n ops.Norm) {
			if l != nil {
				jobs = append(jobs, ops.GradJob{LoRA: l, Side: s, Wide: wide, Low: low, Norm: n})
			}
		}
		b.LinearBack(d.dact, d.dx, y.down)
		b.SwiGLUBack(y.gu, y.dugu, d.dact, y.dudown, y.ugu, y.ldown, y.lgu, batch)
		b.LinearBack(d.dxn, y.gu, y.gateup)
		job(y.ldown, ops.SideB, d.dx, y.udown, ops.Norm{})
		job(y.lgu, ops.SideA, y.mid, y.dugu, ops.Norm{Rho: y.rho2, W: y.norm2})
		b.LoRAGrad(jobs, batch)
		b.RMSNormBack(d.dx, y.duo, d.dx, d.dxn, y.dugu, y.ugu, y.mid, y.rho2, y.norm2, y.lgu, y.lo, batch)

		jobs = nil
		b.LinearBack(d.do, d.dx, y.o)
		b.AttentionBack(d.dqkv, y.duqkv, d.do, y.duo, y.os, y.lse, y.qkvs, d.m.h, d.rope, y.lo, y.lqkv, batch)
		b.LinearBack(d.dxn, d.dqkv, y.qkv)
		job(y.lo, ops.SideB, d.dx, y.uo, ops.Norm{})
		job(y.lo, ops.SideA, y.os, y.duo, ops.Norm{})
		job(y.lqkv, ops.SideB, d.dqkv, y.uqkv, ops.Norm{})
		job(y.lqkv, ops.SideA, d.x[i], y.duqkv, ops.Norm{Rho: y.rho1, W: y.norm1})
		b.LoRAGrad(jobs, batch)
		var below *ops.LoRA
		duBelow := none
		if i > 0 {
			below, duBelow = d.layers[i-1].ldown, d.layers[i-1].dudown
		}
		b.RMSNormBack(d.dx, duBelow, d.dx, d.dxn, y.duqkv, y.uqkv, d.x[i], y.rho1, y.norm1, y.lqkv, below, batch)
	}
}

// modules are the names of all LoRA pairs of the decoder.
func (d *decoder) modules() []string {
	var names []string
	for i := range d.layers {
		y := &d.layers[i]
		for _, l := range []*ops.LoRA{y.lqkv, y.lo, y.lgu, y.ldown} {
			if l == nil {
				continue
			}
			for _, m := range l.Modules {
				names = append(names, m.A.Name[:len(m.A.Name)-len(".A")])
			}
		}
	}
	return names
}

// small is a decoder's shape with every dimension different.
var small = modelShape{name: "mini", C: 16, F: 24, V: 29, h: ops.Heads{H: 4, Hk: 2, D: 6}}

func decoderPlan(m modelShape, h ops.HostBatch) plan {
	var c Case
	c.dims(m, h, 12)
	return c.plan
}
