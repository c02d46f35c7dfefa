package lora

import (
	"fmt"

	"qlora/model/ops"
)

// Update is a weighted sum of adapters as what it adds to the weights of a base: Σ w·s·B·A, of any rank.
type Update struct {
	factors map[string][]factor // by the name of the weight, less ".weight"
	layers  int                 // of the base
}

// factor is one adapter's part of a module.
type factor struct {
	a, b          []float32 // (rank,in), (out,rank)
	rank, in, out int
	scale         float32 // w·s
}

// NewUpdate returns the sum of adapters, each times its weight. Those of weight 0 are left out.
func NewUpdate(adapters []*Adapter, weights []float64) (*Update, error) {
	if err := checkWeights(adapters, weights); err != nil {
		return nil, err
	}
	u := &Update{factors: map[string][]factor{}}
	for i, a := range adapters {
		u.layers = len(a.Set.weights)
		for _, m := range a.Set.modules {
			if weights[i] == 0 {
				continue
			}
			scale := a.Set.weights[m.layer][m.slot].Modules[m.index].Scale
			u.factors[m.name] = append(u.factors[m.name], factor{a: a.Params[m.a : m.a+m.rank*m.in], b: a.Params[m.b : m.b+m.out*m.rank],
				rank: m.rank, in: m.in, out: m.out, scale: float32(weights[i] * float64(scale))})
		}
	}
	return u, nil
}

// Names lists the modules that change, sorted.
func (u *Update) Names() []string { return SortedKeys(u.factors) }

// Add adds rows [row, row+n) of what a module gains to w (n,in), row by row, rank by rank, in float32. It may be called
// from many goroutines.
func (u *Update) Add(module string, w []float32, row, n int) {
	for _, f := range u.factors[module] {
		sum := make([]float32, f.in)
		for o := range n {
			f.addRow(w[o*f.in:][:f.in], sum, row+o)
		}
	}
}

// addRow adds scale·b[o]·A: the sum over the ranks first, one after the other, as B·A is, then its scaling.
func (f *factor) addRow(w, sum []float32, o int) {
	clear(sum)
	b, r := f.b[o*f.rank:][:f.rank], 0
	for ; r+4 <= f.rank; r += 4 { // four at a time, for fewer walks over sum
		b0, b1, b2, b3 := b[r], b[r+1], b[r+2], b[r+3]
		a0, a1, a2, a3 := f.row(r), f.row(r+1), f.row(r+2), f.row(r+3)
		for i, s := range sum {
			s += float32(b0 * a0[i])
			s += float32(b1 * a1[i])
			s += float32(b2 * a2[i])
			s += float32(b3 * a3[i])
			sum[i] = s
		}
	}
	for ; r < f.rank; r++ {
		for i, v := range f.row(r) {
			sum[i] += float32(b[r] * v)
		}
	}
	for i, v := range sum {
		w[i] += float32(f.scale * v)
	}
}

// row is row r of A.
func (f *factor) row(r int) []float32 { return f.a[r*f.in:][:f.in] }

// Factors returns the update as one adapter of scale 1: of every module its rank, A (rank,in) and B (out,rank), the
// adapters' factors side by side with w·s in B, padded with zeros to rank least.
func (u *Update) Factors(module string, least int) (rank int, a, b []float32) {
	all := u.factors[module]
	for _, f := range all {
		rank += f.rank
	}
	rank = max(rank, least)
	in, out := all[0].in, all[0].out
	a, b = make([]float32, 0, rank*in), make([]float32, out*rank)
	column := 0
	for _, f := range all {
		a = append(a, f.a...)
		for o := range out {
			for r, v := range f.b[o*f.rank:][:f.rank] {
				b[o*rank+column+r] = f.scale * v
			}
		}
		column += f.rank
	}
	return rank, append(a, make([]float32, rank*in-len(a))...), b
}

// Rank is that of a module, 0 where it does not change.
func (u *Update) Rank(module string) (rank int) {
	for _, f := range u.factors[module] {
		rank += f.rank
	}
	return rank
}

// Shape is the input and output width of a module that changes.
func (u *Update) Shape(module string) (in, out int) {
	f := u.factors[module][0]
	return f.in, f.out
}

// Adapter is the update as one PEFT adapter that every server reads alike: one rank for all modules, those of a lower
// rank padded with zeros; a scale of 1; no patterns, no rsLoRA.
func (u *Update) Adapter(name string, base Base) (*Adapter, error) {
	if len(u.factors) == 0 {
		return nil, fmt.Errorf("lora: nothing is left of the adapters: all weights are 0")
	}
	rank, everywhere := 0, true
	for _, module := range u.Names() {
		rank = max(rank, u.Rank(module))
	}
	a := &Adapter{Name: name, Base: base, Set: &Set{weights: make([][ops.Slots]*ops.LoRA, u.layers)}}
	var short, long []string // target_modules: by their last names, or in full where some layers are left out
	for _, l := range linears {
		n := 0
		for layer := range u.layers {
			if module := l.module(layer); u.factors[module] != nil {
				long = append(long, module)
				n++
			}
		}
		if n > 0 {
			short, everywhere = append(short, l.name), everywhere && n == u.layers
		}
	}
	a.Set.Config = Config{R: rank, Alpha: float64(rank), Targets: short}
	if !everywhere {
		a.Set.Config.Targets = long
	}
	for layer := range u.layers {
		for _, l := range linears {
			name := l.module(layer)
			if u.factors[name] == nil {
				continue
			}
			in, out := u.Shape(name)
			a.Set.add(module{name: name, in: in, out: out, rank: rank, layer: layer, slot: l.slot}, ops.Module{Part: l.part, Rank: rank, Scale: 1})
			_, fa, fb := u.Factors(name, rank)
			a.Params = append(append(a.Params, fa...), fb...)
		}
	}
	return a, nil
}
