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
// with adapters are as wide as its modules, which may be less than what there is room for.
func (m *Model) at(l int) saved {
	s := m.saved[l]
	for _, k := range []*kept{&s.forward, &s.backward, &s.host} {
		*k = m.view(*k)
	}
	s.rhoIn, s.rhoPost = m.rows(s.rhoIn), m.rows(s.rhoPost)
	for slot := range ops.Slots {
		low := [...]*ops.Tensor{&s.u[slot], &s.du[slot]}
		a := m.lora(l, slot)
		for _, t := range low {
			if a == nil || t.Nil() {
				*t = ops.Tensor{}
			} else {
				*t = t.Slice(t.Name, 0, m.Batch.T, a.Width)
			}
		}
	}
	return s
}

// view is at of what a layer keeps. gate and up may have room for a tile alone.
func (m *Model) view(k kept) kept {
	for _, t := range []*ops.Tensor{&k.x, &k.mid, &k.qkv, &k.o} {
		*t = m.rows(*t)
	}
	if !k.lse.Nil() {
		k.lse = k.lse.Slice("lse", 0, m.heads.H, m.Batch.T)
	}
	if !k.gateup.Nil() {
		k.gateup = k.gateup.Rows(0, min(m.Batch.T, k.gateup.Dim(0)))
	}
	return k
}

// Forward runs the decoder over the loaded batch, segments apart, and leaves the normed output of
// the last layer for Loss. In training it keeps what Backward needs.
func (m *Model) Forward() { m.forward(m.temp.xn) }

func (m *Model) forward(xn ops.Tensor) {
	m.b.Embed(m.at(0).forward.x, m.embed, m.Batch)
	for l := range m.layers {
		m.forwardLayer(l, m.at(l), packed)
		m.send(l)
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
	m.b.Embed(m.at(0).forward.x, m.embed, m.Batch)
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
	b, w, batch := m.b, &m.layers[l], m.Batch
	k, qkv, o, xn := s.forward, m.lora(l, ops.SlotQKV), m.lora(l, ops.SlotO), m.rows(m.temp.xn)

	b.RMSNorm(xn, s.rhoIn, s.u[ops.SlotQKV], k.x, w.inNorm, m.eps(), qkv, batch)
	b.Linear(k.qkv, xn, w.qkv, s.u[ops.SlotQKV], qkv, ops.Epilogue{Rope: &m.rope}, batch)
	if how != packed {
		b.StoreKV(s.kv, k.qkv, m.heads, batch)
	}
	if how == decode {
		b.DecodeAttention(k.o, s.u[ops.SlotO], k.qkv, s.kv, m.heads, o, batch)
	} else {
		b.Attention(k.o, k.lse, s.u[ops.SlotO], k.qkv, m.heads, o, batch)
	}
	b.Linear(k.mid, k.o, w.o, s.u[ops.SlotO], o, ops.Epilogue{Residual: k.x}, batch)
	m.forwardMLP(l, s)
}

func (m *Model) forwardMLP(l int, s saved) {
	b, w, k := m.b, &m.layers[l], s.forward
	gateup, down := m.lora(l, ops.SlotGateUp), m.lora(l, ops.SlotDown)
	xn, uGU, uDown, out := m.rows(m.temp.xn), s.u[ops.SlotGateUp], s.u[ops.SlotDown], m.output(l)

	b.RMSNorm(xn, s.rhoPost, uGU, k.mid, w.postNorm, m.eps(), gateup, m.Batch)
	m.eachTile(func(lo, hi int, batch *ops.Batch) {
		gu, act := k.gateup.Rows(0, hi-lo), m.temp.act.Rows(0, hi-lo)
		b.Linear(gu, cut(xn, lo, hi), w.gateup, cut(uGU, lo, hi), gateup, ops.Epilogue{}, batch)
		b.SwiGLU(act, cut(uDown, lo, hi), gu, down, batch)
		b.Linear(cut(out, lo, hi), act, w.down, cut(uDown, lo, hi), down, ops.Epilogue{Residual: cut(k.mid, lo, hi)}, batch)
	})
}

// cut views rows lo to hi of a tensor that may be absent.
func cut(t ops.Tensor, lo, hi int) ops.Tensor {
	if t.Nil() {
		return t
	}
	return t.Rows(lo, hi)
}

func (m *Model) eps() float32 { return float32(m.Config.RMSNormEps) }

// output is where layer l writes the residual stream: the next layer's input.
func (m *Model) output(l int) ops.Tensor {
	if l+1 < len(m.layers) {
		return m.rows(m.saved[l+1].forward.x)
	}
	return m.rows(m.temp.out)
}

func (m *Model) lastNorm(xn ops.Tensor) {
	m.b.RMSNorm(m.rows(xn), m.rows(m.temp.rho), ops.Tensor{}, m.rows(m.temp.out), m.norm,
		m.eps(), nil, m.Batch)
}

// Loss writes NLL and Hit of the batch's label rows after Forward, without a gradient.
func (m *Model) Loss() { m.loss(ops.Tensor{}, m.temp.xn) }

// LossBase is Loss after ForwardBase.
func (m *Model) LossBase() { m.loss(ops.Tensor{}, m.temp.base) }

func (m *Model) loss(dxn, xn ops.Tensor) {
	n := m.Batch.N
	m.b.HeadLoss(dxn, m.NLL.Rows(0, n), m.Hit.Rows(0, n), m.rows(xn), m.head, m.Batch)
}
