// Package qwen2 is the Qwen2.5 decoder: its weights, forward, backward and decoding, as lists of
// ops. It also runs llama-shaped models (no q, k, v bias).
//
// The architecture is that of the Qwen2.5 technical report (2024): pre-norm decoder layers of
// grouped-query attention with rotary positions and a SwiGLU feed-forward,
//
//	x1 = x0 + o(attention(rope(qkv(norm(x0)))))
//	x2 = x1 + down(silu(gate(norm(x1)))·up(norm(x1)))
//
// then a last norm and the head, which small models share with the embedding.
package qwen2

import (
	"fmt"

	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/weights"
)

// Options say what a model is built for. They fix all of its memory.
type Options struct {
	DType            ops.DType // storage of the frozen weights: F32 or BF16
	Training         bool      // keep what the backward needs
	MaxT, MaxS, MaxN int       // room of one packed row: tokens, segments, label rows
	Adapter          Adapter   // nil: the base alone
	Sequences        int       // KV cache: sequences decoded together, 0 for none
	Context          int       // KV cache: positions a sequence
	Compare          bool      // room for ForwardBase and KL
	Progress         func(done, total int64)
}

// Adapter is a LoRA set as the model sees it: which weights it adapts, and where its flat
// parameters lie.
type Adapter interface {
	// Len is the number of parameters.
	Len() int
	// At is the adapters on one weight of a layer, nil where there are none.
	At(layer int, s ops.Slot) *ops.LoRA
	// Bind points every A, B and, when training, dA, dB into the flat tensors. grads may be Nil.
	Bind(params, grads ops.Tensor)
}

// Model is a frozen base in a backend's memory, with the activations of one packed row.
type Model struct {
	Config weights.Config
	Plan   memory.Plan

	// Flat float32 tensors of the adapter, Nil without one; the last three only in training.
	Params, Grads, Moment1, Moment2 ops.Tensor
	// Norm is the gradient norm and the count of its non-finite terms (2).
	Norm ops.Tensor
	// NLL and Hit are the label rows' negative log-likelihoods and top-1 hits (MaxN); Divergence is what KL writes.
	NLL, Hit, Divergence ops.Tensor
	// Logits (Sequences, V) and Next (Sequences) of the sequences being decoded.
	Logits, Next ops.Tensor
	// Batch is the room for one packed row.
	Batch *ops.Batch

	b       ops.Backend
	opt     Options
	heads   ops.Heads
	rope    ops.Rope
	embed   ops.Weight
	head    ops.Weight // the embedding itself where tied
	norm    ops.Tensor // last norm (C)
	layers  []layer
	saved   []saved // a layer's, kept for its backward; in inference they share their places
	temp    temporaries
	adapter Adapter
}

// layer is the frozen part of a decoder layer.
type layer struct {
	inNorm, postNorm     ops.Tensor // (C)
	qkv, o, gateup, down ops.Weight
}

// Build plans the whole run, makes its arena, and streams the weights in.
func Build(b ops.Backend, src *weights.Model, o Options) (*Model, error) {
	m := &Model{Config: src.Config, b: b, opt: o, adapter: o.Adapter}
	c := src.Config
	m.heads = ops.Heads{H: c.NumAttentionHeads, Hk: c.NumKeyValueHeads, D: c.HeadDim}
	l := m.layout()
	var err error
	if m.Plan, err = memory.Layout(l.buffers, ops.Align); err != nil {
		return nil, err
	}
	arena, err := b.NewArena(m.Plan.Bytes)
	if err != nil {
		return nil, fmt.Errorf("qwen2: %d bytes for the run: %w", m.Plan.Bytes, err)
	}
	for i, dst := range l.tensors {
		dst.Buf, dst.Off = arena, m.Plan.Offsets[i]
	}
	if m.Batch, err = ops.NewBatch(l.block, o.MaxT, o.MaxS, o.MaxN); err != nil {
		return nil, err
	}
	b.SetWorkspace(l.workspace, l.dims)
	if o.Adapter != nil {
		o.Adapter.Bind(m.Params, m.Grads)
	}
	if err := m.load(src, l); err != nil {
		return nil, err
	}
	return m, b.Sync()
}

// SetParams gives the adapter its parameters. It may have put its modules elsewhere, or left some out, since the model
// was built, within the room that it had then.
func (m *Model) SetParams(params []float32) error {
	m.opt.Adapter.Bind(m.Params, m.Grads)
	if len(params) > 0 {
		if err := ops.WriteF32(m.b, m.Params.Slice("lora", 0, len(params)), params); err != nil {
			return err
		}
	}
	m.ParamsChanged()
	return nil
}

// adapters lists the LoRA of every weight that has one.
func (m *Model) adapters() []*ops.LoRA {
	var all []*ops.LoRA
	if m.opt.Adapter == nil {
		return nil
	}
	for i := range m.Config.NumHiddenLayers {
		for s := range ops.Slots {
			if l := m.opt.Adapter.At(i, s); l != nil {
				all = append(all, l)
			}
		}
	}
	return all
}

// lora is the adapter on a weight, nil where there is none or adapters are off.
func (m *Model) lora(layer int, s ops.Slot) *ops.LoRA {
	if m.adapter == nil || layer < 0 {
		return nil
	}
	return m.adapter.At(layer, s)
}

// Through runs f with the ops of the model called on another backend, which passes them on to the model's own.
func (m *Model) Through(b ops.Backend, f func()) {
	own := m.b
	m.b = b
	defer func() { m.b = own }()
	f()
}

// UseAdapter switches the adapter the model was built with on or off.
func (m *Model) UseAdapter(on bool) {
	m.adapter = nil
	if on {
		m.adapter = m.opt.Adapter
	}
}

// ParamsChanged tells the backend that the adapter's parameters were written.
func (m *Model) ParamsChanged() {
	if all := m.adapters(); len(all) > 0 {
		m.b.PackLoRA(all)
	}
}
