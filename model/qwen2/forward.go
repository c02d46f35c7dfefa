package qwen2

import "qlora/model/ops"

// Load copies one packed row into the model's batch.
func (m *Model) Load(h ops.HostBatch) error { return m.b.LoadBatch(m.Batch, h) }

// rows views the part of a (MaxT, ...) tensor that the batch fills.
func (m *Model) rows(t ops.Tensor) ops.Tensor {
	if t.Nil() {
		return t
	}
	return t.Rows(0, m.Batch.T)
}

// at views a layer's activations at the length of the batch. A weight without adapters has no u and du; those of one
// with adapters are as wide as their rank, which may be less than what there is room for.
func (m *Model) at(l int) saved {
	s := m.saved[l]
	for _, t := range []*ops.Tensor{&s.x, &s.mid, &s.rhoIn, &s.rhoPost, &s.qkv, &s.o, &s.gateup} {
		*t = m.rows(*t)
	}
	s.lse = s.lse.Slice("lse", 0, m.heads.H, m.Batch.T)
	for slot := range ops.Slots {
		low := [...]*ops.Tensor{&s.u[slot], &s.du[slot]}
		a := m.lora(l, slot)
		for _, t := range low {
			if a == nil || t.Nil() {
				*t = ops.Tensor{}
			} else {
				*t = t.Slice(t.Name, 0, m.Batch.T, a.Rank)
			}
		}
	}
	return s
}

// Forward runs the decoder over the loaded batch, segments apart, and leaves the normed output of
// the last layer for Loss. In training it keeps what Backward needs.
func (m *Model) Forward() { m.forward(m.temp.xn) }

func (m *Model) forward(xn ops.Tensor) {
	m.b.Embed(m.at(0).x, m.embed, m.Batch)
	for l := range m.layers {
		m.forwardLayer(l, m.at(l), packed)
	}
	m.lastNorm(xn)
}

// ForwardBase is Forward without the adapter, whose output is kept apart for LossBase and KL.
func (m *Model) ForwardBase() {
	adapter := m.adapter
	m.adapter = nil
	m.forward(m.temp.base)
	m.adapter = adapter
}

// KL writes Divergence, KL(base ‖ model) in nats at every label row, after ForwardBase and Forward of one batch.
func (m *Model) KL() {
	m.b.KL(m.Divergence.Rows(0, m.Batch.N), m.rows(m.temp.base), m.rows(m.temp.xn), m.head, m.Batch)
}

// Prefill is Forward for sequences that start at position 0: their keys and values go to the cache,
// and Logits of the batch's rows are written.
func (m *Model) Prefill() { m.generate(prefill) }

// Decode is Prefill for sequences that go on: every token attends to all that its sequence has in
// the cache, itself and the tokens before it in the batch included.
func (m *Model) Decode() { m.generate(decode) }

func (m *Model) generate(how attention) {
	m.b.Embed(m.at(0).x, m.embed, m.Batch)
	for l := range m.layers {
		m.forwardLayer(l, m.at(l), how)
	}
	if m.Batch.N == 0 {
		return // a part of a prompt that goes on
	}
	m.lastNorm(m.temp.xn)
	m.b.Logits(m.Logits.Rows(0, m.Batch.N), m.rows(m.temp.xn), m.head, m.Batch)
}

// attention says where a forward's keys and values are.
type attention uint8

const (
	packed  attention = iota // in the batch alone
	prefill                  // in the batch, and kept in the cache
	decode                   // in the cache
)

func (m *Model) forwardLayer(l int, s saved, how attention) {
	b, w, batch, eps := m.b, &m.layers[l], m.Batch, float32(m.Config.RMSNormEps)
	qkv, o, gateup, down := m.lora(l, ops.SlotQKV), m.lora(l, ops.SlotO), m.lora(l, ops.SlotGateUp), m.lora(l, ops.SlotDown)
	xn, act := m.rows(m.temp.xn), m.rows(m.temp.act)

	b.RMSNorm(xn, s.rhoIn, s.u[ops.SlotQKV], s.x, w.inNorm, eps, qkv, batch)
	b.Linear(s.qkv, xn, w.qkv, s.u[ops.SlotQKV], qkv, ops.Epilogue{Rope: &m.rope}, batch)
	if how != packed {
		b.StoreKV(s.kv, s.qkv, m.heads, batch)
	}
	if how == decode {
		b.DecodeAttention(s.o, s.u[ops.SlotO], s.qkv, s.kv, m.heads, o, batch)
	} else {
		b.Attention(s.o, s.lse, s.u[ops.SlotO], s.qkv, m.heads, o, batch)
	}
	b.Linear(s.mid, s.o, w.o, s.u[ops.SlotO], o, ops.Epilogue{Residual: s.x}, batch)

	b.RMSNorm(xn, s.rhoPost, s.u[ops.SlotGateUp], s.mid, w.postNorm, eps, gateup, batch)
	b.Linear(s.gateup, xn, w.gateup, s.u[ops.SlotGateUp], gateup, ops.Epilogue{}, batch)
	b.SwiGLU(act, s.u[ops.SlotDown], s.gateup, down, batch)
	b.Linear(m.output(l), act, w.down, s.u[ops.SlotDown], down, ops.Epilogue{Residual: s.mid}, batch)
}

// output is where layer l writes the residual stream: the next layer's input.
func (m *Model) output(l int) ops.Tensor {
	if l+1 < len(m.layers) {
		return m.rows(m.saved[l+1].x)
	}
	return m.rows(m.temp.out)
}

func (m *Model) lastNorm(xn ops.Tensor) {
	m.b.RMSNorm(m.rows(xn), m.rows(m.temp.rho), ops.Tensor{}, m.rows(m.temp.out), m.norm,
		float32(m.Config.RMSNormEps), nil, m.Batch)
}

// Loss writes NLL and Hit of the batch's label rows after Forward, without a gradient.
func (m *Model) Loss() { m.loss(ops.Tensor{}, m.temp.xn) }

// LossBase is Loss after ForwardBase.
func (m *Model) LossBase() { m.loss(ops.Tensor{}, m.temp.base) }

func (m *Model) loss(dxn, xn ops.Tensor) {
	n := m.Batch.N
	m.b.HeadLoss(dxn, m.NLL.Rows(0, n), m.Hit.Rows(0, n), m.rows(xn), m.head, m.Batch)
}
