package qwen2

import (
	"qlora/model/memory"
	"qlora/model/ops"
)

// saved is what a layer's forward keeps for its backward.
type saved struct {
	x, mid         ops.Tensor // (T,C) residual stream into the attention, and into the feed-forward
	rhoIn, rhoPost ops.Tensor // (T) of the two norms
	qkv            ops.Tensor // (T,(H+2Hk)·D) after rope
	o              ops.Tensor // (T,H·D)
	lse            ops.Tensor // (H,T)
	gateup         ops.Tensor // (T,2F); the backward turns it into its gradient
	u, du          [ops.Slots]ops.Tensor
	kv             ops.KVCache
}

// temporaries serve every layer in turn.
type temporaries struct {
	xn, act        ops.Tensor // forward: (T,C), (T,F)
	out, rho       ops.Tensor // the last layer's output, and rho of the last norm
	base           ops.Tensor // xn of ForwardBase
	dx, dxn        ops.Tensor // (T,C)
	dqkv, do, dact ops.Tensor
}

// layout collects the buffers of a run and the tensors that will view them.
type layout struct {
	buffers   []memory.Buffer
	tensors   []*ops.Tensor // of each buffer
	block     ops.Tensor    // of the batch
	workspace ops.Tensor
	dims      ops.Dims
	weights   []*weightPlace
	norms     []normPlace
}

// Moments of a run: layer l's attention is at 2l and its feed-forward at 2l+1, the head at 2L, then
// comes the backward in reverse.
func (m *Model) attnAt(l int) int     { return 2 * l }
func (m *Model) mlpAt(l int) int      { return 2*l + 1 }
func (m *Model) headAt() int          { return 2 * m.Config.NumHiddenLayers }
func (m *Model) backMLPAt(l int) int  { return 4*m.Config.NumHiddenLayers - 1 - 2*l }
func (m *Model) backAttnAt(l int) int { return m.backMLPAt(l) + 1 }
func (m *Model) end() int             { return 4 * m.Config.NumHiddenLayers }

// add asks for one tensor that matters from moment first to moment last.
func (l *layout) add(dst *ops.Tensor, name string, c memory.Category, d ops.DType, first, last int, shape ...int) {
	*dst = ops.Tensor{Name: name, DType: d, Shape: shape}
	l.buffers = append(l.buffers, memory.Buffer{Name: name, Category: c, Bytes: dst.Bytes(), First: first, Last: last})
	l.tensors = append(l.tensors, dst)
}

// layout lists every buffer of the run.
func (m *Model) layout() *layout {
	l := &layout{}
	m.weightBuffers(l)
	m.adapterBuffers(l)
	m.layerBuffers(l)
	m.headBuffers(l)

	c, o, last := m.Config, m.opt, m.end()
	l.add(&l.block, "batch", memory.IO, ops.I32, 0, last, ops.BatchWords(o.MaxT, o.MaxS, o.MaxN))
	rank, moduleRank := 0, 0
	for _, a := range m.adapters() {
		rank = max(rank, a.Rank)
		for i := range a.Modules {
			moduleRank = max(moduleRank, a.Modules[i].Rank)
		}
	}
	l.dims = ops.Dims{T: o.MaxT, S: o.MaxS, N: o.MaxN, C: c.HiddenSize, F: c.IntermediateSize, V: c.VocabSize,
		H: m.heads.H, Hk: m.heads.Hk, D: m.heads.D, Rank: rank, ModuleRank: moduleRank, Context: o.Context, Training: o.Training}
	l.add(&l.workspace, "workspace", memory.Workspace, ops.U8, 0, last, int(m.b.WorkspaceBytes(l.dims)))
	return l
}

func (m *Model) adapterBuffers(l *layout) {
	if m.adapter == nil {
		return
	}
	n, last := m.adapter.Len(), m.end()
	l.add(&m.Params, "lora", memory.LoRA, ops.F32, 0, last, n)
	for _, a := range m.adapters() {
		l.add(&a.Pack, "lora pack", memory.LoRA, ops.U8, 0, last, int(m.b.LoRAPackBytes(a)))
	}
	if m.opt.Training {
		l.add(&m.Grads, "lora gradients", memory.Gradients, ops.F32, 0, last, n)
		l.add(&m.Moment1, "adam m", memory.Optimizer, ops.F32, 0, last, n)
		l.add(&m.Moment2, "adam v", memory.Optimizer, ops.F32, 0, last, n)
		l.add(&m.Norm, "gradient norm", memory.Optimizer, ops.F32, 0, last, 2)
	}
}

// layerBuffers lists activations. What a backward reads lives until then; in inference a
// tensor dies in its own layer and the next layer's takes its place.
func (m *Model) layerBuffers(l *layout) {
	c, t, act := m.Config, m.opt.MaxT, m.b.Activation(m.opt.DType)
	h, training := m.heads, m.opt.Training
	wide := (h.H + 2*h.Hk) * h.D
	m.saved = make([]saved, c.NumHiddenLayers)
	for i := range m.saved {
		s := &m.saved[i]
		attn, mlp := m.attnAt(i), m.mlpAt(i)
		attnEnd, mlpEnd := attn, mlp
		if training {
			attnEnd, mlpEnd = m.backAttnAt(i), m.backMLPAt(i)
		}
		keep := func(dst *ops.Tensor, name string, d ops.DType, first, last int, shape ...int) {
			l.add(dst, name, memory.Activations, d, first, last, shape...)
		}
		keep(&s.x, "x", act, max(attn-1, 0), attnEnd, t, c.HiddenSize)
		keep(&s.qkv, "qkv", act, attn, attnEnd, t, wide)
		keep(&s.o, "o", act, attn, attnEnd, t, h.H*h.D)
		keep(&s.mid, "x mid", act, attn, max(mlp, mlpEnd), t, c.HiddenSize)
		keep(&s.gateup, "gate, up", act, mlp, mlpEnd, t, 2*c.IntermediateSize)
		keep(&s.rhoIn, "rho", ops.F32, attn, attnEnd, t)
		keep(&s.rhoPost, "rho", ops.F32, mlp, mlpEnd, t)
		keep(&s.lse, "lse", ops.F32, attn, attnEnd, h.H*t)
		m.adapterActivations(l, i, attn, attnEnd, mlp, mlpEnd)
		if m.opt.Sequences > 0 {
			for _, kv := range []*ops.Tensor{&s.kv.K, &s.kv.V} {
				l.add(kv, "kv cache", memory.KVCache, act, 0, m.end(), m.opt.Sequences, m.opt.Context, h.Hk*h.D)
			}
		}
	}

	head := m.headAt()
	temp := func(dst *ops.Tensor, name string, first, last, cols int) {
		l.add(dst, name, memory.Activations, act, first, last, t, cols)
	}
	last := head
	if training {
		last = m.end()
		temp(&m.temp.dx, "dx", head, last, c.HiddenSize)
		temp(&m.temp.dxn, "dxn", head, last, c.HiddenSize)
		temp(&m.temp.do, "do", head+1, last, h.H*h.D)
		temp(&m.temp.dqkv, "dqkv", head+1, last, wide)
		temp(&m.temp.dact, "dact", head+1, last, c.IntermediateSize)
	}
	temp(&m.temp.xn, "xn", 0, head, c.HiddenSize)
	temp(&m.temp.act, "act", 0, head-1, c.IntermediateSize)
	temp(&m.temp.out, "x out", head-1, head, c.HiddenSize)
	l.add(&m.temp.rho, "rho", memory.Activations, ops.F32, head, head, t)
	if m.opt.Compare {
		temp(&m.temp.base, "xn base", 0, last, c.HiddenSize)
		l.add(&m.Divergence, "kl", memory.IO, ops.F32, 0, m.end(), m.opt.MaxN)
	}
}

// adapterActivations lists u and du of the modules of layer i.
func (m *Model) adapterActivations(l *layout, i, attn, attnEnd, mlp, mlpEnd int) {
	t, act := m.opt.MaxT, m.b.Activation(m.opt.DType)
	for slot := range ops.Slots {
		a := m.lora(i, slot)
		if a == nil {
			continue
		}
		first, last := attn, attnEnd
		duFirst := mlpEnd // du of o is written by the feed-forward's norm
		switch slot {
		case ops.SlotQKV:
			duFirst = attnEnd
		case ops.SlotGateUp:
			first, last = mlp, mlpEnd
		case ops.SlotDown: // du of down is written one layer up, or by the head
			first, last, duFirst = mlp, mlpEnd, mlpEnd-1
		}
		l.add(&m.saved[i].u[slot], "u", memory.Activations, act, first, last, t, a.Rank)
		if m.opt.Training {
			l.add(&m.saved[i].du[slot], "du", memory.Activations, act, duFirst, last, t, a.Rank)
		}
	}
}

func (m *Model) headBuffers(l *layout) {
	o, last := m.opt, m.end()
	if o.MaxN > 0 {
		l.add(&m.NLL, "nll", memory.IO, ops.F32, 0, last, o.MaxN)
		l.add(&m.Hit, "hit", memory.IO, ops.F32, 0, last, o.MaxN)
	}
	if o.Sequences > 0 {
		l.add(&m.Logits, "logits", memory.IO, ops.F32, 0, last, o.Sequences, m.Config.VocabSize)
		l.add(&m.Next, "next", memory.IO, ops.I32, 0, last, o.Sequences)
	}
}
