package opstest

import (
	"fmt"

	"qlora/internal/nf4"
	"qlora/model/ops"
)

// columns is the backend's order of the output columns of spec; perm is filled in by probe.
func (m *machine) columns(spec ops.WeightSpec) *columns {
	key := fmt.Sprint(spec.Kind, spec.Parts, spec.HeadDim)
	if m.layouts == nil {
		m.layouts = map[string]*columns{}
	}
	if m.layouts[key] == nil {
		m.layouts[key] = &columns{spec: spec}
	}
	return m.layouts[key]
}

// probe finds the orders that are still unknown.
func (m *machine) probe(weight ops.DType) error {
	for _, c := range m.layouts {
		if c.perm != nil {
			continue
		}
		var err error
		if c.perm, err = m.order(c.spec, weight); err != nil {
			return fmt.Errorf("the column order of a weight of parts %v: %w", c.spec.Parts, err)
		}
	}
	return nil
}

// order multiplies with a weight of zeros whose bias counts its rows: what comes out at a column is
// the row that belongs there. Two digits of 8 bits are exact in any storage.
func (m *machine) order(spec ops.WeightSpec, weight ops.DType) ([]int, error) {
	spec.Name, spec.Cols, spec.DType, spec.Bias, spec.Back = "counting", nf4.Block, weight, true, false
	perm := make([]int, spec.Rows())
	for digit := range 2 {
		p := &plan{host: batch(1, 1, 0, 1), dims: ops.Dims{T: 1, S: 1, N: 1, C: spec.Cols, F: spec.Rows(), V: 1, H: 1, Hk: 1, D: 2, Width: 1}}
		p.wire = func(r *rig) func() {
			x, y := r.in("x", constant(0), 1, spec.Cols), r.place("y", output, r.act, 1, spec.Rows()).Tensor
			mem := r.place("counting", scratch, ops.U8, int(r.b.WeightBytes(spec)))
			if r.sizing {
				return nil
			}
			bias := make([]float32, spec.Rows())
			for i := range bias {
				bias[i] = float32(i >> (8 * digit) & 255)
			}
			w, err := r.b.NewWeight(mem.Tensor, spec, sources(spec, make([]float64, spec.Rows()*spec.Cols)), bias)
			r.fail(err)
			return func() { r.b.Linear(y, x, w, ops.Tensor{}, nil, ops.Epilogue{}, r.batch) }
		}
		own := &machine{b: m.b} // an arena apart
		r, err := own.build(p, weight, ops.BF16)
		if err != nil {
			return nil, err
		}
		r.run()
		for i, v := range r.get("y") {
			perm[i] += int(v) << (8 * digit)
		}
		if err := r.b.Sync(); err != nil {
			return nil, err
		}
	}
	seen := make([]bool, len(perm))
	for j, i := range perm {
		if i < 0 || i >= len(seen) || seen[i] {
			return nil, fmt.Errorf("column %d says it is row %d, which is not an order", j, i)
		}
		seen[i] = true
	}
	return perm, nil
}
