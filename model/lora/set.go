package lora

import (
	"fmt"
	"math"
	"math/rand/v2"

	"qlora/model/ops"
	"qlora/model/weights"
)

// Set is the adapters of one model: their places in the flat parameters, and the ops.LoRA of every
// frozen weight that has any.
type Set struct {
	Config  Config
	modules []module
	weights [][ops.Slots]*ops.LoRA // of each layer
	n       int
}

// module is one adapted linear layer. Its A and B lie one behind the other in the flat parameters.
type module struct {
	name          string // "model.layers.0.self_attn.q_proj"
	in, out, rank int
	a, b          int // offsets of A (R,in) and B (out,R)

	layer int
	slot  ops.Slot
	index int // among the modules of its weight
}

// New lays out the adapters that c asks for on a base.
func New(base weights.Config, c Config) (*Set, error) { return newSet(base, c, MaxRank) }

// newSet is New of ranks up to most.
func newSet(base weights.Config, c Config, most int) (*Set, error) {
	if err := c.check(most); err != nil {
		return nil, err
	}
	match, err := c.matcher()
	if err != nil {
		return nil, err
	}
	ranks, err := c.ranks(base)
	if err != nil {
		return nil, err
	}
	s := &Set{Config: c, weights: make([][ops.Slots]*ops.LoRA, base.NumHiddenLayers)}
	for layer := range base.NumHiddenLayers {
		for i, l := range linears {
			name := l.module(layer)
			if !match(name) {
				continue
			}
			rank, scale, err := ranks(name)
			if err != nil {
				return nil, err
			}
			in, out := l.shape(base)
			s.add(module{name: name, in: in, out: out, rank: rank, layer: layer, slot: l.slot},
				ops.Module{Part: l.part, Rank: rank, Scale: scale, Drop: float32(c.Dropout), Stream: uint32(layer*len(linears) + i)})
		}
	}
	if len(s.modules) == 0 {
		return nil, fmt.Errorf("lora: --target_regex %.100q matches no module; names look like model.layers.0.self_attn.q_proj", c.TargetRegex)
	}
	return s, nil
}

// add places a module behind those there are.
func (s *Set) add(m module, o ops.Module) {
	w := &s.weights[m.layer][m.slot]
	if *w == nil {
		*w = &ops.LoRA{}
	}
	m.index, m.a, m.b = len((*w).Modules), s.n, s.n+m.rank*m.in
	s.n += m.rank * (m.in + m.out)
	s.modules = append(s.modules, m)
	(*w).Modules = append((*w).Modules, o)
	(*w).Width += o.Width()
}

// Len is the number of parameters.
func (s *Set) Len() int { return s.n }

// Modules is the number of adapted linear layers.
func (s *Set) Modules() int { return len(s.modules) }

// At is the adapters on one weight of a layer, nil where there are none.
func (s *Set) At(layer int, slot ops.Slot) *ops.LoRA { return s.weights[layer][slot] }

// Bind points the modules into the flat tensors. grads is Nil outside training.
func (s *Set) Bind(params, grads ops.Tensor) {
	for _, m := range s.modules {
		o := &s.weights[m.layer][m.slot].Modules[m.index]
		o.A, o.B = params.Slice(m.name+".A", m.a, m.rank, m.in), params.Slice(m.name+".B", m.b, m.out, m.rank)
		if !grads.Nil() {
			o.DA, o.DB = grads.Slice(m.name+".dA", m.a, m.rank, m.in), grads.Slice(m.name+".dB", m.b, m.out, m.rank)
		}
	}
}

// Init makes the parameters training starts from: A by Config.Init, B zero. A module's numbers depend
// on the seed and its name's place in the model alone, not on which other modules are adapted.
func (s *Set) Init(seed uint64) []float32 {
	params := make([]float32, s.n)
	for _, m := range s.modules {
		rng := rand.New(rand.NewPCG(seed, uint64(s.weights[m.layer][m.slot].Modules[m.index].Stream)))
		bound := 1 / math.Sqrt(float64(m.in))
		for i := range m.rank * m.in {
			if s.Config.Init == InitGaussian {
				params[m.a+i] = float32(rng.NormFloat64() / float64(m.rank))
			} else {
				params[m.a+i] = float32((2*rng.Float64() - 1) * bound)
			}
		}
	}
	return params
}

// Groups are the learning-rate groups of the flat parameters: one for all, or, with a LoRA+ ratio
// (Hayou et al., 2024) other than 1, B's rate ratio times A's.
func (s *Set) Groups(lr, weightDecay, ratio float64) []ops.LRGroup {
	if ratio == 1 {
		return []ops.LRGroup{{Len: s.n, LR: lr, WeightDecay: weightDecay}}
	}
	groups := make([]ops.LRGroup, 0, 2*len(s.modules))
	for _, m := range s.modules {
		groups = append(groups, ops.LRGroup{Len: m.rank * m.in, LR: lr, WeightDecay: weightDecay},
			ops.LRGroup{Len: m.out * m.rank, LR: lr * ratio, WeightDecay: weightDecay})
	}
	return groups
}

// Named calls f with the name, shape and place of every factor, as PEFT names them, in the order of the
// flat parameters. It also names gradients and optimizer moments, which share the layout.
func (s *Set) Named(f func(name string, rows, cols, offset int)) {
	for _, m := range s.modules {
		f("base_model.model."+m.name+".lora_A.weight", m.rank, m.in, m.a)
		f("base_model.model."+m.name+".lora_B.weight", m.out, m.rank, m.b)
	}
}

// SetDropout switches the configured dropout on, for training, or off.
func (s *Set) SetDropout(on bool) {
	p := float32(0)
	if on {
		p = float32(s.Config.Dropout)
	}
	for _, m := range s.modules {
		s.weights[m.layer][m.slot].Modules[m.index].Drop = p
	}
}
