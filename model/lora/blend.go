package lora

import (
	"fmt"
	"math"
	"strings"

	"qlora/model/ops"
)

// Adapter is one that was loaded: its layout, parameters, and the base that its files name.
type Adapter struct {
	Name   string
	Set    *Set
	Params []float32
	Base   Base
}

// Blend is the adapters of one base that lie ready, of which a weighted sum is in use:
//
//	ΔW = Σ w·s·B·A
//
// The sum is exact, as PEFT's combination_type "cat" is: the factors in use stand side by side in one pair of factors,
// whose rank is the sum of theirs. What is not in use, or has the weight 0, is not there at all: without it the base
// computes the bits that it computes alone.
//
// A Blend is a qwen2.Adapter. Its room is fixed when it is made, so that Use changes what is in use without a new model.
type Blend struct {
	Adapters []*Adapter

	layers [][ops.Slots]*blended
	room   int // parameters of whatever may be in use
}

// blended is the adapters on one weight of a layer.
type blended struct {
	lora   ops.LoRA
	places []place // of lora.Modules
	parts  [][]share
}

// place is where a module's A (rank,in) and B (out,rank) lie in the flat parameters.
type place struct{ in, out, a, b int }

// share is what one adapter has for a part of a weight.
type share struct {
	adapter int
	module  module
	scale   float32
}

// NewBlend makes room for weighted sums of adapters, all of which fit one base. Nothing is in use yet.
func NewBlend(adapters []*Adapter) *Blend {
	b := &Blend{Adapters: adapters}
	for i, a := range adapters {
		for len(b.layers) < len(a.Set.weights) {
			b.layers = append(b.layers, [ops.Slots]*blended{})
		}
		for _, m := range a.Set.modules {
			w := &b.layers[m.layer][m.slot]
			if *w == nil {
				*w = &blended{parts: make([][]share, 3)}
			}
			of := a.Set.weights[m.layer][m.slot].Modules[m.index]
			(*w).parts[of.Part] = append((*w).parts[of.Part], share{i, m, of.Scale})
		}
	}
	for _, layer := range b.layers {
		for _, w := range layer {
			if w != nil {
				b.room = w.settle(b.room, func(share) bool { return true })
			}
		}
	}
	return b
}

// settle lays out the shares that are in use behind n other parameters, and returns how many there are then. A module
// gets no more than the highest rank, which Use never passes.
func (w *blended) settle(n int, used func(share) bool) int {
	w.lora.Modules, w.lora.Width, w.places = w.lora.Modules[:0], 0, w.places[:0]
	for part, shares := range w.parts {
		rank := 0
		var m module
		for _, s := range shares {
			if used(s) {
				rank, m = rank+s.module.rank, s.module
			}
		}
		if rank = min(rank, MaxRank); rank == 0 {
			continue
		}
		o := ops.Module{Part: part, Rank: rank}
		w.lora.Modules = append(w.lora.Modules, o)
		w.lora.Width += o.Width()
		w.places = append(w.places, place{m.in, m.out, n, n + rank*m.in})
		n += rank * (m.in + m.out)
	}
	return n
}

// Len is the room for parameters.
func (b *Blend) Len() int { return b.room }

// At is the adapters on one weight of a layer, nil where none is in use.
func (b *Blend) At(layer int, slot ops.Slot) *ops.LoRA {
	if w := b.layers[layer][slot]; w != nil && len(w.lora.Modules) > 0 {
		return &w.lora
	}
	return nil
}

// Bind points the modules in use into the flat parameters. A blend is not trained: there are no gradients.
func (b *Blend) Bind(params, _ ops.Tensor) {
	for _, layer := range b.layers {
		for _, w := range layer {
			if w == nil {
				continue
			}
			for i, p := range w.places {
				m := &w.lora.Modules[i]
				m.A, m.B = params.Slice("A", p.a, m.Rank, p.in), params.Slice("B", p.b, p.out, m.Rank)
			}
		}
	}
}

// Use makes the sum of the adapters, each times its weight, the one in use, and returns its parameters, at most Len.
// The caller writes them to their place and binds them. On an error what was in use stays.
func (b *Blend) Use(weights []float64) ([]float32, error) {
	if err := checkWeights(b.Adapters, weights); err != nil {
		return nil, err
	}
	if err := b.checkRanks(weights); err != nil {
		return nil, err
	}
	used := func(s share) bool { return weights[s.adapter] != 0 }
	n := 0
	for _, layer := range b.layers {
		for _, w := range layer {
			if w != nil {
				n = w.settle(n, used)
			}
		}
	}
	params := make([]float32, n)
	for _, layer := range b.layers {
		for _, w := range layer {
			if w != nil {
				b.fill(w, weights, params)
			}
		}
	}
	return params, nil
}

// checkWeights refuses weights that are not one number an adapter.
func checkWeights(adapters []*Adapter, weights []float64) error {
	if len(weights) != len(adapters) {
		return fmt.Errorf("lora: %d weights for %d adapters", len(weights), len(adapters))
	}
	for i, w := range weights {
		if math.IsNaN(w) || math.IsInf(w, 0) || math.Abs(w) > math.MaxFloat32 {
			return fmt.Errorf("lora: the weight of %s is %v, which is not a finite number", adapters[i].Name, w)
		}
	}
	return nil
}

// checkRanks refuses sums whose rank the kernels do not hold.
func (b *Blend) checkRanks(weights []float64) error {
	for _, layer := range b.layers {
		for _, w := range layer {
			if w == nil {
				continue
			}
			for _, shares := range w.parts {
				rank := 0
				var list []string
				for _, s := range shares {
					if weights[s.adapter] != 0 {
						rank += s.module.rank
						list = append(list, fmt.Sprintf("%s %d", b.Adapters[s.adapter].Name, s.module.rank))
					}
				}
				if rank > MaxRank {
					return fmt.Errorf("the ranks on %s add up to %d (%s), and %d is the most that run unmerged: leave one out, "+
						"or put the same sum into the weights with `qlora export --merge_lora true` and give that model", shares[0].module.name, rank, strings.Join(list, ", "), MaxRank)
				}
			}
		}
	}
	return nil
}

// fill writes the factors in use of one weight side by side. A module has one scale, which is the largest w·s of its
// shares; the columns of B of the others are multiplied by what they have of it. An adapter alone is not touched.
func (b *Blend) fill(w *blended, weights []float64, params []float32) {
	for i, place := range w.places {
		m := &w.lora.Modules[i]
		shares := w.parts[m.Part]
		var most float64
		for _, s := range shares {
			if scale := weights[s.adapter] * float64(s.scale); math.Abs(scale) > math.Abs(most) {
				most = scale
			}
		}
		m.Scale = float32(most)
		column := 0
		for _, s := range shares {
			if weights[s.adapter] == 0 {
				continue
			}
			from, of := b.Adapters[s.adapter].Params, s.module
			copy(params[place.a+column*of.in:], from[of.a:of.a+of.rank*of.in])
			part := float32(1)
			if scale := weights[s.adapter] * float64(s.scale); scale != most {
				part = float32(scale / most)
			}
			for o := range of.out {
				to, row := params[place.b+o*m.Rank+column:], from[of.b+o*of.rank:][:of.rank]
				for r, v := range row {
					to[r] = part * v
				}
			}
			column += of.rank
		}
	}
}
