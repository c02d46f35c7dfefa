package qwen2

import (
	"qlora/model/memory"
	"qlora/model/ops"
)

// kept is what a layer's forward leaves for its backward, but for what is small.
type kept struct {
	x, mid ops.Tensor // (T,C) residual stream into the attention, and into the feed-forward
	qkv    ops.Tensor // (T,(H+2Hk)·D) after rope
	o      ops.Tensor // (T,H·D)
	lse    ops.Tensor // (H,T)
	gateup ops.Tensor // (T,2F); the backward turns it into its gradient
}

// saved is the activations of a layer. forward and backward are the same tensors where these stay in memory from the one
// to the other, and places apart where they are made again or wait in host memory (host; Nil elsewhere).
type saved struct {
	forward, backward, host kept

	rhoIn, rhoPost ops.Tensor // (T) of the two norms
	u, du          [ops.Slots]ops.Tensor
	kv             ops.KVCache
}

// temporaries serve every layer in turn.
type temporaries struct {
	xn, act        ops.Tensor // forward: (T,C), (tile,F)
	out, rho       ops.Tensor // the last layer's output, and rho of the last norm
	base           ops.Tensor // xn of ForwardBase
	dx, dxn        ops.Tensor // (T,C)
	dqkv, do, dact ops.Tensor // dact (tile,F)
}

// layout collects the buffers of a run and the tensors that will view them.
type layout struct {
	buffers   []memory.Buffer
	tensors   []*ops.Tensor    // of each buffer
	copies    [][2]*ops.Tensor // tensors that are another's: from, to
	block     ops.Tensor       // of the batch
	workspace ops.Tensor
	dims      ops.Dims // that it is for
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

// addHost asks for one in host memory.
func (l *layout) addHost(dst *ops.Tensor, name string, c memory.Category, d ops.DType, first, last int, shape ...int) {
	l.add(dst, name, c, d, first, last, shape...)
	l.buffers[len(l.buffers)-1].Host = true
}

// same makes to the tensor that from is.
func (l *layout) same(from, to *ops.Tensor) { l.copies = append(l.copies, [2]*ops.Tensor{from, to}) }

// bind gives the tensors their places.
func (l *layout) bind(p memory.Plan, arena, host ops.Buffer) {
	for i, t := range l.tensors {
		t.Buf, t.Off = arena, p.Offsets[i]
		if p.Buffers[i].Host {
			t.Buf = host
		}
	}
	for _, c := range l.copies {
		*c[1] = *c[0]
	}
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
	width, rank := 0, 0
	for _, a := range m.adapters() {
		width = max(width, a.Width)
		for i := range a.Modules {
			rank = max(rank, a.Modules[i].Rank)
		}
	}
	l.dims = ops.Dims{T: o.MaxT, S: o.MaxS, N: o.MaxN, C: c.HiddenSize, F: c.IntermediateSize, V: c.VocabSize,
		H: m.heads.H, Hk: m.heads.Hk, D: m.heads.D, Width: width, Rank: rank, Context: o.Context, Training: o.Training,
		Quantized: l.quantized(), Tile: o.Saving.Tile}
	l.add(&l.workspace, "workspace", memory.Workspace, ops.U8, 0, last, int(m.sizes.WorkspaceBytes(l.dims)))
	return l
}

func (m *Model) adapterBuffers(l *layout) {
	if m.adapter == nil {
		return
	}
	n, last := m.adapter.Len(), m.end()
	l.add(&m.Params, "lora", memory.LoRA, ops.F32, 0, last, n)
	for _, a := range m.adapters() {
		l.add(&a.Pack, "lora pack", memory.LoRA, ops.U8, 0, last, int(m.sizes.LoRAPackBytes(a)))
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
	c, t, act := m.Config, m.opt.MaxT, m.sizes.Activation(m.opt.DType)
	h, training := m.heads, m.opt.Training
	m.saved = make([]saved, c.NumHiddenLayers)
	for i := range m.saved {
		s := &m.saved[i]
		attn, mlp := m.attnAt(i), m.mlpAt(i)
		attnEnd, mlpEnd := attn, mlp
		if training {
			attnEnd, mlpEnd = m.backAttnAt(i), m.backMLPAt(i)
		}
		m.keptBuffers(l, i)
		l.add(&s.rhoIn, "rho", memory.Activations, ops.F32, attn, attnEnd, t)
		l.add(&s.rhoPost, "rho", memory.Activations, ops.F32, mlp, mlpEnd, t)
		m.adapterActivations(l, i, attn, attnEnd, mlp, mlpEnd)
		if m.opt.Sequences > 0 {
			for _, kv := range []*ops.Tensor{&s.kv.K, &s.kv.V} {
				l.add(kv, "kv cache", memory.KVCache, act, 0, m.end(), m.opt.Sequences, m.opt.Context, h.Hk*h.D)
			}
		}
	}

	head, last := m.headAt(), m.headAt()
	temp := func(dst *ops.Tensor, name string, first, last, rows, cols int) {
		l.add(dst, name, memory.Activations, act, first, last, rows, cols)
	}
	tile := m.opt.Saving.tileRoom(t)
	if training {
		last = m.end()
		temp(&m.temp.dx, "dx", head, last, t, c.HiddenSize)
		temp(&m.temp.dxn, "dxn", head, last, t, c.HiddenSize)
		temp(&m.temp.do, "do", head+1, last, t, h.H*h.D)
		temp(&m.temp.dqkv, "dqkv", head+1, last, t, (h.H+2*h.Hk)*h.D)
		temp(&m.temp.dact, "dact", head+1, last, tile, c.IntermediateSize)
	}
	xnLast := head
	if m.opt.Saving.GateUp > 0 {
		xnLast = last
	}
	temp(&m.temp.xn, "xn", 0, xnLast, t, c.HiddenSize)
	temp(&m.temp.act, "act", 0, head-1, tile, c.IntermediateSize)
	temp(&m.temp.out, "x out", head-1, head, t, c.HiddenSize)
	l.add(&m.temp.rho, "rho", memory.Activations, ops.F32, head, head, t)
	if m.opt.Compare {
		temp(&m.temp.base, "xn base", 0, last, t, c.HiddenSize)
		l.add(&m.Divergence, "kl", memory.IO, ops.F32, 0, m.end(), m.opt.MaxN)
	}
}

// span is the moments between which a tensor's contents matter.
type span struct{ first, last int }

// keptBuffers lists what layer i keeps of its forward: one buffer from its making to its last reader in the backward
// or, where it is made again or waits in host memory, one in the forward and one in the backward.
func (m *Model) keptBuffers(l *layout, i int) {
	c, h, t := m.Config, m.heads, m.opt.MaxT
	how, act := m.opt.Saving, m.sizes.Activation(m.opt.DType)
	attn, mlp, backMLP, backAttn := m.attnAt(i), m.mlpAt(i), m.backMLPAt(i), m.backAttnAt(i)
	s := &m.saved[i]
	wide := how.tileRoom(t)
	for _, k := range []struct {
		name              string
		of                func(*kept) *ops.Tensor
		forward, backward span // backward: its readers, or from where it is made again
		again             bool
		d                 ops.DType
		shape             []int
	}{
		{"x", func(k *kept) *ops.Tensor { return &k.x }, span{max(attn-1, 0), attn}, span{backMLP, backAttn}, false, act, []int{t, c.HiddenSize}},
		{"qkv", func(k *kept) *ops.Tensor { return &k.qkv }, span{attn, attn}, span{backMLP, backAttn}, how.wholeAgain(i), act, []int{t, (h.H + 2*h.Hk) * h.D}},
		{"o", func(k *kept) *ops.Tensor { return &k.o }, span{attn, attn}, span{backMLP, backAttn}, how.wholeAgain(i), act, []int{t, h.H * h.D}},
		{"lse", func(k *kept) *ops.Tensor { return &k.lse }, span{attn, attn}, span{backMLP, backAttn}, how.wholeAgain(i), ops.F32, []int{h.H, t}},
		{"x mid", func(k *kept) *ops.Tensor { return &k.mid }, span{attn, mlp}, span{backMLP, backMLP}, how.wholeAgain(i), act, []int{t, c.HiddenSize}},
		{"gate, up", func(k *kept) *ops.Tensor { return &k.gateup }, span{mlp, mlp}, span{backMLP, backMLP}, how.gateUpAgain(i), act, []int{wide, 2 * c.IntermediateSize}},
	} {
		forward, backward := k.of(&s.forward), k.of(&s.backward)
		add := func(dst *ops.Tensor, name string, at span) {
			l.add(dst, name, memory.Activations, k.d, at.first, at.last, k.shape...)
		}
		switch {
		case !m.opt.Training:
			add(forward, k.name, k.forward)
		case k.again:
			add(forward, k.name, k.forward)
			add(backward, k.name+" again", k.backward)
		case how.offloaded(i):
			add(forward, k.name, span{k.forward.first, m.sentAt(i)})
			add(backward, k.name+" back", span{m.fetchAt(i), k.backward.last})
			l.addHost(k.of(&s.host), k.name, memory.Activations, k.d, mlp, backMLP, k.shape...)
		default:
			add(forward, k.name, span{k.forward.first, k.backward.last})
			l.same(forward, backward)
		}
	}
}

// sentAt is the last moment at which layer i's activations are on their way to host memory: the end of the next layer.
func (m *Model) sentAt(i int) int { return min(m.mlpAt(i)+2, m.headAt()) }

// fetchAt is the moment at which they begin to come back: the layer above has its backward, or the head.
func (m *Model) fetchAt(i int) int {
	if i+1 == m.Config.NumHiddenLayers {
		return m.headAt()
	}
	return m.backMLPAt(i + 1)
}

// adapterActivations lists u and du of the modules of layer i.
func (m *Model) adapterActivations(l *layout, i, attn, attnEnd, mlp, mlpEnd int) {
	t, act := m.opt.MaxT, m.sizes.Activation(m.opt.DType)
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
		l.add(&m.saved[i].u[slot], "u", memory.Activations, act, first, last, t, a.Width)
		if m.opt.Training {
			l.add(&m.saved[i].du[slot], "du", memory.Activations, act, duFirst, last, t, a.Width)
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
