package cpu

import (
	"fmt"

	"qlora/internal/nf4"
	"qlora/model/cpu/gemm"
	"qlora/model/ops"
)

// weight is a frozen matrix (Rows, Cols), its parts stacked in order. float32 keeps it packed for gemm, or in NF4 as it
// is stored; the oracle keeps plain rows.
type weight[T Float] struct {
	spec  ops.WeightSpec
	held  products
	plain []float64
	nf4   []*nf4.Tensor // of each part
	bias  []T
}

// products are those of a matrix that gemm holds.
type products interface {
	MulT(y []float32, ldy int, x []float32, ldx, m int, add bool)
	Mul(dx []float32, lddx int, dy []float32, lddy, m int, add bool)
}

// Spec is what the weight was made from.
func (w *weight[T]) Spec() ops.WeightSpec { return w.spec }

// Bytes is the memory of the matrix and its bias.
func (w *weight[T]) Bytes() int64 { return weightBytes[T](w.spec) }

func weightBytes[T Float](s ops.WeightSpec) int64 {
	var bytes int64
	switch {
	case isFloat64[T]():
		bytes = 8 * int64(s.Rows()) * int64(s.Cols)
	case s.DType == ops.NF4:
		for _, rows := range s.Parts {
			bytes += nf4.Bytes(rows*s.Cols, !s.Single)
		}
	default:
		bytes = gemm.PackedBytes(s.Rows(), s.Cols, s.DType == ops.BF16)
	}
	if s.Bias {
		bytes += int64(s.Rows()) * ops.F32.Size()
		if isFloat64[T]() {
			bytes += int64(s.Rows()) * ops.F32.Size()
		}
	}
	return bytes
}

// WeightBytes is what NewWeight allocates, outside the arena.
func (b *Backend[T]) WeightBytes(s ops.WeightSpec) int64 { return weightBytes[T](s) }

// NewWeight reads the parts into memory of the backend's own; mem is not used and may be Nil.
func (b *Backend[T]) NewWeight(_ ops.Tensor, spec ops.WeightSpec, parts []ops.Source, bias []float32) (ops.Weight, error) {
	if err := ops.CheckNewWeight(ops.Tensor{}, 0, spec, parts, bias); err != nil {
		return nil, err
	}
	w := &weight[T]{spec: spec}
	if spec.Bias {
		w.bias = make([]T, len(bias))
		for i, x := range bias {
			w.bias[i] = T(x)
		}
	}
	read := func(row, count int, dst []float32) error { return readParts(parts, row, count, dst) }
	var err error
	if spec.DType == ops.NF4 {
		w.nf4, err = loadNF4(spec, parts)
		read = func(row, count int, dst []float32) error {
			w.makeNF4(dst, spec.Cols, row, count, 0, spec.Cols)
			return nil
		}
	}
	switch {
	case err != nil:
	case isFloat64[T]():
		w.plain, err = loadPlain(spec, read)
	case spec.DType == ops.NF4:
		w.held = &gemm.Values{N: spec.Rows(), K: spec.Cols, Make: w.makeNF4}
	default:
		w.held, err = gemm.Pack(spec.Rows(), spec.Cols, spec.DType == ops.BF16, read)
	}
	if err != nil {
		return nil, fmt.Errorf("cpu: weight %s: %w", spec.Name, err)
	}
	return w, nil
}

// readParts fills dst with count rows of the stacked parts.
func readParts(parts []ops.Source, row, count int, dst []float32) error {
	for _, p := range parts {
		if row >= p.Rows {
			row -= p.Rows
			continue
		}
		n := min(count, p.Rows-row)
		if err := p.ReadF32(dst[:n*p.Cols], row, n); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		dst, count, row = dst[n*p.Cols:], count-n, 0
		if count == 0 {
			return nil
		}
	}
	return nil
}

// loadNF4 reads the parts as they are stored, or quantises them from bfloat16.
func loadNF4(spec ops.WeightSpec, parts []ops.Source) ([]*nf4.Tensor, error) {
	all := make([]*nf4.Tensor, len(parts))
	for i, p := range parts {
		n := p.Rows * p.Cols
		var err error
		if p.NF4 != nil {
			all[i] = &nf4.Tensor{Scales: p.NF4.Scales, Codes: make([]byte, nf4.CodeBytes(n))}
			err = p.NF4.ReadCodes(all[i].Codes, 0)
		} else {
			all[i], err = nf4.Quantize(p.Rows, p.Cols, !spec.Single, func(dst []float32, row, count int) error {
				err := p.ReadF32(dst, row, count)
				round(dst, ops.BF16)
				return err
			})
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return all, nil
}

// makeNF4 writes columns k0..k0+kc of rows row..row+count, rounded to bfloat16, to rows of dst that are ld apart.
func (w *weight[T]) makeNF4(dst []float32, ld, row, count, k0, kc int) {
	for p, rows := range w.spec.Parts {
		if row >= rows {
			row -= rows
			continue
		}
		n := min(count, rows-row)
		for i := range n {
			w.nf4[p].ReadBF16(dst[i*ld:i*ld+kc], (row+i)*w.spec.Cols+k0)
		}
		if count -= n; count == 0 {
			return
		}
		dst, row = dst[n*ld:], 0
	}
}

func loadPlain(spec ops.WeightSpec, read func(row, count int, dst []float32) error) ([]float64, error) {
	const block = 64
	values := make([]float64, spec.Rows()*spec.Cols)
	buf := make([]float32, block*spec.Cols)
	for row := 0; row < spec.Rows(); row += block {
		count := min(block, spec.Rows()-row)
		if err := read(row, count, buf[:count*spec.Cols]); err != nil {
			return nil, err
		}
		to := values[row*spec.Cols:][:count*spec.Cols]
		for i := range to {
			to[i] = float64(buf[i])
		}
		round(to, spec.DType)
	}
	return values, nil
}

// weight is w as this backend made it.
func (b *Backend[T]) weight(w ops.Weight) (*weight[T], error) {
	own, ok := w.(*weight[T])
	if !ok {
		return nil, fmt.Errorf("cpu: weight %s was made by another backend (%T)", w.Spec().Name, w)
	}
	return own, nil
}

// mulT is y (m,Rows) = x (m,Cols) · Wᵀ.
func (w *weight[T]) mulT(b *Backend[T], y, x []T, m int, add bool) {
	n, k := w.spec.Rows(), w.spec.Cols
	switch y := any(y).(type) {
	case []float32:
		w.held.MulT(y, n, any(x).([]float32), k, m, add)
	case []float64:
		x := any(x).([]float64)
		b.rows(m, func(i int) { plain(y[i*n:], n, x[i*k:], k, 1, w.plain, 1, k, 1, n, k, add) })
	}
}

// mul is dx (m,Cols) = dy (m,Rows) · W.
func (w *weight[T]) mul(b *Backend[T], dx, dy []T, m int) {
	n, k := w.spec.Rows(), w.spec.Cols
	switch dx := any(dx).(type) {
	case []float32:
		w.held.Mul(dx, k, any(dy).([]float32), n, m, false)
	case []float64:
		dy := any(dy).([]float64)
		b.rows(m, func(i int) { plain(dx[i*k:], k, dy[i*n:], n, 1, w.plain, k, 1, 1, k, n, false) })
	}
}

// row copies row i of W.
func (w *weight[T]) row(dst []T, i int) {
	switch dst := any(dst).(type) {
	case []float32:
		w.held.(*gemm.Matrix).Row(dst, i) // a check of the op has refused NF4
	case []float64:
		copy(dst, w.plain[i*w.spec.Cols:])
	}
}
