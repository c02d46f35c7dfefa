package qwen2

import "qlora/model/ops"

// Backward adds the gradients of the batch's loss to Grads, after Forward, and writes NLL and
// Hit. Frozen weights have no gradient, and below the first layer's adapters nothing is computed.
func (m *Model) Backward() {
	t := &m.temp
	last := len(m.layers) - 1
	m.fetch(last)
	m.loss(m.rows(t.dxn), t.xn)
	m.b.RMSNormBack(m.rows(t.dx), m.at(last).du[ops.SlotDown], ops.Tensor{}, m.rows(t.dxn), ops.Tensor{}, ops.Tensor{}, m.rows(t.out),
		m.rows(t.rho), m.norm, nil, m.lora(last, ops.SlotDown), m.Batch)
	for l := last; l >= 0; l-- {
		s := m.at(l)
		m.arrived(l)
		m.fetch(l - 1)
		m.again(l, s)
		m.backwardMLP(l, s)
		m.backwardAttention(l, s)
	}
}

// backwardMLP turns dx, the gradient of the layer's output, into that of its middle.
func (m *Model) backwardMLP(l int, s saved) {
	b, w, k := m.b, &m.layers[l], s.backward
	o, gateup, down := m.lora(l, ops.SlotO), m.lora(l, ops.SlotGateUp), m.lora(l, ops.SlotDown)
	dx, dxn := m.rows(m.temp.dx), m.rows(m.temp.dxn)
	uDown, duDown, uGU, duGU := s.u[ops.SlotDown], s.du[ops.SlotDown], s.u[ops.SlotGateUp], s.du[ops.SlotGateUp]

	again := m.opt.Saving.gateUpAgain(l)
	xn := m.rows(m.temp.xn)
	if again {
		b.RMSNorm(xn, ops.Tensor{}, ops.Tensor{}, k.mid, w.postNorm, m.eps(), nil, m.Batch)
	}
	m.eachTile(func(lo, hi int, batch *ops.Batch) {
		gu, dact := k.gateup.Rows(0, hi-lo), m.temp.dact.Rows(0, hi-lo)
		if again {
			b.Linear(gu, cut(xn, lo, hi), w.gateup, cut(uGU, lo, hi), gateup, ops.Epilogue{}, batch)
		}
		b.LinearBack(dact, cut(dx, lo, hi), w.down)
		b.SwiGLUBack(gu, cut(duGU, lo, hi), dact, cut(duDown, lo, hi), cut(uGU, lo, hi), down, gateup, batch)
		b.LinearBack(cut(dxn, lo, hi), gu, w.gateup)
	})
	m.gradients(
		ops.GradJob{LoRA: down, Side: ops.SideB, Wide: dx, Low: uDown},
		ops.GradJob{LoRA: gateup, Side: ops.SideA, Wide: k.mid, Low: duGU, Norm: ops.Norm{Rho: s.rhoPost, W: w.postNorm}})
	b.RMSNormBack(dx, s.du[ops.SlotO], dx, dxn, duGU, uGU, k.mid, s.rhoPost, w.postNorm, gateup, o, m.Batch)
}

// backwardAttention turns dx, the gradient of the layer's middle, into that of its input.
func (m *Model) backwardAttention(l int, s saved) {
	b, w, k, batch := m.b, &m.layers[l], s.backward, m.Batch
	qkv, o, below := m.lora(l, ops.SlotQKV), m.lora(l, ops.SlotO), m.lora(l-1, ops.SlotDown)
	dx, dxn, do, dqkv := m.rows(m.temp.dx), m.rows(m.temp.dxn), m.rows(m.temp.do), m.rows(m.temp.dqkv)
	uO, duO, uQKV, duQKV := s.u[ops.SlotO], s.du[ops.SlotO], s.u[ops.SlotQKV], s.du[ops.SlotQKV]

	b.LinearBack(do, dx, w.o)
	b.AttentionBack(dqkv, duQKV, do, duO, k.o, k.lse, k.qkv, m.heads, &m.rope, o, qkv, batch)
	if l > 0 {
		b.LinearBack(dxn, dqkv, w.qkv)
	}
	m.gradients(
		ops.GradJob{LoRA: o, Side: ops.SideB, Wide: dx, Low: uO},
		ops.GradJob{LoRA: o, Side: ops.SideA, Wide: k.o, Low: duO},
		ops.GradJob{LoRA: qkv, Side: ops.SideB, Wide: dqkv, Low: uQKV},
		ops.GradJob{LoRA: qkv, Side: ops.SideA, Wide: k.x, Low: duQKV, Norm: ops.Norm{Rho: s.rhoIn, W: w.inNorm}})
	if l > 0 {
		b.RMSNormBack(dx, m.at(l - 1).du[ops.SlotDown], dx, dxn, duQKV, uQKV, k.x, s.rhoIn, w.inNorm, qkv, below, batch)
	}
}

// gradients asks for the jobs of those weights that have an adapter.
func (m *Model) gradients(jobs ...ops.GradJob) {
	some := jobs[:0]
	for _, j := range jobs {
		if j.LoRA != nil {
			some = append(some, j)
		}
	}
	if len(some) > 0 {
		m.b.LoRAGrad(some, m.Batch)
	}
}
