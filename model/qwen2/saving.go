package qwen2

import (
	"fmt"

	"qlora/model/ops"
)

// Saving says what a run keeps less of, and so computes again, or where it keeps it. The zero value keeps everything where
// it is needed. No choice changes a bit of any result: what is made again is made by the same ops from the same values,
// and token sums run over the same blocks.
type Saving struct {
	// GateUp: of so many layers, from the first on, gate and up are made again for the backward.
	GateUp int `json:"gate_up_again_layers"`
	// Whole: of so many, from the first on, all but the input is. They count in GateUp too.
	Whole int `json:"whole_again_layers"`
	// Tile is the tokens that go through a feed-forward together: a multiple of ops.GradBlock, from 2 of them on. Every layer
	// then makes gate and up again. 0: all tokens.
	Tile int `json:"feed_forward_tile_tokens"`
	// HostEmbedding: the embedding table lies in host memory, and its rows are read over the bus. Not where the head is the
	// same table.
	HostEmbedding bool `json:"embedding_in_host_memory"`
	// Offload: of so many layers, from the first on, what they keep of the forward waits for the backward in host memory.
	Offload int `json:"offloaded_layers"`
}

// check refuses what the model's shape or the run does not allow.
func (s Saving) check(layers int, tied, training bool) error {
	within := func(what string, n, most int) error {
		if n < 0 || n > most {
			return fmt.Errorf("qwen2: %s in %d layers: must be 0 to %d", what, n, most)
		}
		return nil
	}
	if err := within("gate and up made again", s.GateUp, layers); err != nil {
		return err
	}
	if err := within("all made again", s.Whole, s.GateUp); err != nil {
		return err
	}
	if err := within("activations in host memory", s.Offload, layers); err != nil {
		return err
	}
	switch {
	case s.Tile < 0 || s.Tile%ops.GradBlock != 0 || s.Tile == ops.GradBlock:
		return fmt.Errorf("qwen2: %d tokens of a feed-forward at a time: must be a multiple of %d, at least %d", s.Tile, ops.GradBlock, 2*ops.GradBlock)
	case s.Tile > 0 && training && s.GateUp < layers:
		return fmt.Errorf("qwen2: a feed-forward by tiles of %d tokens makes gate and up again in all %d layers, not in %d", s.Tile, layers, s.GateUp)
	case s.HostEmbedding && tied:
		return fmt.Errorf("qwen2: the embedding table is the head too, which every step multiplies with: it cannot lie in host memory")
	case !training && (s.GateUp > 0 || s.Offload > 0):
		return fmt.Errorf("qwen2: nothing is kept for a backward outside training")
	}
	return nil
}

// gateUpAgain, wholeAgain and offloaded say what becomes of layer l.
func (s Saving) gateUpAgain(l int) bool { return l < s.GateUp }
func (s Saving) wholeAgain(l int) bool  { return l < s.Whole }
func (s Saving) offloaded(l int) bool   { return l < s.Offload }

// tileRoom is the tokens of a feed-forward that there is room for.
func (s Saving) tileRoom(maxT int) int {
	if s.Tile == 0 {
		return maxT
	}
	return min(s.Tile, maxT)
}

// eachTile calls work with the tokens of a feed-forward that go together. Tiles begin at multiples of ops.GradBlock, and
// none is shorter than that unless the batch is: products of a few tokens may take other kernels.
func (m *Model) eachTile(work func(lo, hi int, batch *ops.Batch)) {
	T, room := m.Batch.T, m.opt.Saving.tileRoom(m.opt.MaxT)
	if T <= room {
		work(0, T, m.Batch)
		return
	}
	for lo := 0; lo < T; {
		hi := min(lo+room, T)
		if hi < T && T-hi < ops.GradBlock {
			hi -= ops.GradBlock
		}
		work(lo, hi, m.Batch.Tokens(lo, hi))
		lo = hi
	}
}

// eachKept calls do with the tensors of a layer that wait in host memory, and their places there.
func (m *Model) eachKept(here, host kept, do func(here, host ops.Tensor)) {
	for _, t := range [][2]ops.Tensor{{here.x, host.x}, {here.qkv, host.qkv}, {here.o, host.o}, {here.lse, host.lse}, {here.mid, host.mid}, {here.gateup, host.gateup}} {
		if !t[1].Nil() {
			do(t[0], t[1])
		}
	}
}

// send starts the way of layer l's activations to host memory, behind that of the layer below: the place of those may be
// written from the next layer on.
func (m *Model) send(l int) {
	how, last := m.opt.Saving, l+1 == m.Config.NumHiddenLayers
	if l > 0 && how.offloaded(l-1) {
		m.b.AwaitTransfers()
	}
	if !how.offloaded(l) {
		return
	}
	s := m.at(l)
	m.eachKept(s.forward, s.host, func(here, host ops.Tensor) { m.b.Transfer(host, here) })
	if last {
		m.b.AwaitTransfers()
	}
}

// fetch starts the way back of layer l's; arrived waits for them.
func (m *Model) fetch(l int) {
	if l < 0 || !m.opt.Saving.offloaded(l) {
		return
	}
	s := m.at(l)
	m.eachKept(s.backward, s.host, func(here, host ops.Tensor) { m.b.Transfer(here, host) })
}

func (m *Model) arrived(l int) {
	if m.opt.Saving.offloaded(l) {
		m.b.AwaitTransfers()
	}
}

// again makes what layer l has not kept, but for gate and up, from its input: the forward's ops, less what they wrote
// that is small and was kept.
func (m *Model) again(l int, s saved) {
	if !m.opt.Saving.wholeAgain(l) {
		return
	}
	b, w, k, batch, xn := m.b, &m.layers[l], s.backward, m.Batch, m.rows(m.temp.xn)
	b.RMSNorm(xn, ops.Tensor{}, ops.Tensor{}, k.x, w.inNorm, m.eps(), nil, batch)
	b.Linear(k.qkv, xn, w.qkv, s.u[ops.SlotQKV], m.lora(l, ops.SlotQKV), ops.Epilogue{Rope: &m.rope}, batch)
	b.Attention(k.o, k.lse, ops.Tensor{}, k.qkv, m.heads, nil, batch)
	b.Linear(k.mid, k.o, w.o, s.u[ops.SlotO], m.lora(l, ops.SlotO), ops.Epilogue{Residual: k.x}, batch)
}
