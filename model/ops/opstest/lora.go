package opstest

import (
	"fmt"
	"math"

	"qlora/model/ops"
)

// adapters says which parts of a weight have a module: its rank, 0 for none. The zero adapters are no
// LoRA at all.
type adapters struct {
	ranks []int
	drop  float32
}

// sides says which gradients a rig makes for a LoRA.
type sides uint8

const (
	gradA sides = 1 << iota
	gradB
)

func (a adapters) rank() int {
	n := 0
	for _, r := range a.ranks {
		n += (&ops.Module{Rank: r}).Width()
	}
	return n
}

func (a adapters) String() string {
	if a.rank() == 0 {
		return "no LoRA"
	}
	return fmt.Sprintf("ranks %v drop %g", a.ranks, a.drop)
}

// lora places A and B of the modules of a, the gradients asked for, and the backend's pack, and packs.
func (r *rig) lora(name string, spec ops.WeightSpec, a adapters, s sides) *ops.LoRA {
	if a.rank() == 0 {
		return nil
	}
	like := ops.F32
	if r.store == ops.BF16 {
		like = ops.BF16 // what a card multiplies with
	}
	l := &ops.LoRA{Weight: spec, Width: a.rank()}
	factor := func(name string, scale float64, rows, cols int) ops.Tensor {
		return r.tensor(name, input, r.state, like, normal(name, scale), rows, cols).Tensor
	}
	for part, rank := range a.ranks {
		if rank == 0 {
			continue
		}
		own := fmt.Sprintf("%s%d", name, part)
		r.streams++
		m := ops.Module{Part: part, Rank: rank, Scale: float32(part+1) / 2, Drop: a.drop, Stream: r.streams,
			A: factor(own+".A", 1/math.Sqrt(float64(spec.Cols)), rank, spec.Cols), B: factor(own+".B", 0.5, spec.Parts[part], rank)}
		if s&gradA != 0 {
			m.DA = r.updateState(own+".dA", byProduct, normal(own+".dA", 1), rank, spec.Cols)
		}
		if s&gradB != 0 {
			m.DB = r.updateState(own+".dB", byProduct, normal(own+".dB", 1), spec.Parts[part], rank)
		}
		l.Modules = append(l.Modules, m)
	}
	bytes := r.b.LoRAPackBytes(l)
	pack := r.place(name+".pack", scratch, ops.U8, int(bytes))
	l.Pack = pack.Tensor
	if !r.sizing {
		pack.role = input
		r.loras = append(r.loras, l)
		r.b.PackLoRA([]*ops.LoRA{l})
	}
	return l
}

// lowIn, lowOut and lowFree place u or du of l, Nil without it.
func (r *rig) lowIn(name string, T int, l *ops.LoRA) ops.Tensor {
	if l == nil {
		return ops.Tensor{}
	}
	return r.in(name, nil, T, l.Width)
}

func (r *rig) lowOut(name string, T int, l *ops.LoRA) ops.Tensor {
	if l == nil {
		return ops.Tensor{}
	}
	return r.out(name, byProduct, T, l.Width)
}

// plain, qkv and gateUp are the specs of the three kinds of weights.
func (r *rig) plain(name string, out, in int) ops.WeightSpec {
	return ops.WeightSpec{Name: name, Kind: ops.Plain, DType: r.weight, Parts: []int{out}, Cols: in, Back: true}
}

// table is the spec of an embedding or a head, which NF4 leaves in bfloat16.
func (r *rig) table(name string, rows, cols int) ops.WeightSpec {
	s := r.plain(name, rows, cols)
	if s.DType == ops.NF4 {
		s.DType = ops.BF16
	}
	return s
}

func (r *rig) qkv(name string, h ops.Heads, in int) ops.WeightSpec {
	return ops.WeightSpec{Name: name, Kind: ops.QKV, DType: r.weight, Parts: []int{h.H * h.D, h.Hk * h.D, h.Hk * h.D}, Cols: in, HeadDim: h.D, Back: true}
}

func (r *rig) gateUp(name string, F, in int) ops.WeightSpec {
	return ops.WeightSpec{Name: name, Kind: ops.GateUp, DType: r.weight, Parts: []int{F, F}, Cols: in, Back: true}
}

// rope places the angles of RoFormer for positions and head size D, as Qwen2.5 has them.
func (r *rig) rope(positions, D int) *ops.Rope {
	angle := func(i int) float64 {
		return float64(i/(D/2)) * math.Pow(1e6, -2*float64(i%(D/2))/float64(D))
	}
	return &ops.Rope{
		Cos: r.inState("cos", func(i int) float64 { return math.Cos(angle(i)) }, positions, D/2),
		Sin: r.inState("sin", func(i int) float64 { return math.Sin(angle(i)) }, positions, D/2),
	}
}
