package opstest

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"

	"qlora/model/ops"
)

// samples is how many rows of a huge result are looked at, beside those around the 2³¹st element and the last ones.
const samples = 4096

// IsHuge says of a case that it has a tensor of more than 2³¹ elements.
func IsHuge(c Case) bool { return c.Size == Huge }

// RunPeriodic runs the cases that `which` takes, and the backend can, with rows that repeat, one backend each: the first period
// against the oracle as a case of its own, and then all of it, sampled, against the first period to the bit.
func RunPeriodic(t *testing.T, under, oracle New, o Options, which func(Case) bool) {
	s := o.Storage[0]
	for _, c := range Cases() {
		if !which(c) || o.Multiple > c.Multiple() || c.HeadSize() > 0 && usesHeads[c.Op] && o.HeadSizes != nil && !slices.Contains(o.HeadSizes, c.HeadSize()) {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Periodic(under, oracle, s); err != nil {
				t.Error(err)
			}
		})
	}
}

// Periodic runs one case as RunPeriodic does.
func (c Case) Periodic(under, oracle New, s Storage) error {
	first, truth := &machine{b: under()}, &machine{b: oracle()}
	check := c.huge
	if c.Op == "DecodeAttention" {
		check = c.hugeDecode
	}
	return cmp.Or(check(first, truth, s), first.b.Close(), truth.b.Close())
}

// lengths are those of the first period alone, and of all.
func (c *Case) lengths() (one, all shaped) {
	p := &c.plan
	if p.plain {
		period := min(1<<20, p.flat/3/64*64)
		return shaped{flat: period}, shaped{flat: p.flat, period: period}
	}
	T, S, N := len(p.host.IDs), len(p.host.SegStart)-1, len(p.host.Rows)
	period := 64
	if c.Op == "Attention" || c.Op == "AttentionBack" {
		period = (T + S - 1) / S
	}
	all = shaped{host: periodic(p.host, (T+period-1)/period*period, period, N, p.dims.V), period: period, reordered: c.Op == "AttentionBack"}
	return shaped{host: firstPeriod(all.host, period)}, all
}

func (c *Case) huge(m, oracle *machine, s Storage) error {
	one, all := c.lengths()
	small, err := m.buildAs(&c.plan, s.Weights, s.Activations, one)
	if err != nil {
		return fmt.Errorf("laying out the first period: %w", err)
	}
	got, err := small.execute(0xFF)
	if err != nil {
		return err
	}
	reference, err := oracle.buildAs(&c.plan, s.Weights, s.Activations, one)
	if err != nil {
		return fmt.Errorf("oracle: laying out: %w", err)
	}
	want, err := reference.execute(0xFF)
	if err != nil {
		return fmt.Errorf("oracle: %w", err)
	}
	for name, g := range got {
		if err := g.tol.compare(g.values, want[name].values, g.DType, s.Activations); err != nil {
			return fmt.Errorf("the first period: %s: %w", g.Tensor, err)
		}
	}

	large, err := m.buildAs(&c.plan, s.Weights, s.Activations, all)
	if err != nil {
		return fmt.Errorf("laying out: %w", err)
	}
	if err := large.poison(0xFF); err != nil {
		return err
	}
	large.run()
	if err := m.b.Sync(); err != nil {
		return err
	}
	if err := large.guarded(); err != nil {
		return err
	}
	for name, g := range got {
		if err := large.repeated(large.byName[name], g); err != nil {
			return fmt.Errorf("%s: %w", large.byName[name].Tensor, err)
		}
	}
	return large.err
}

// repeated holds a result to that of the first period.
func (r *rig) repeated(s *slot, one result) error {
	switch axis := r.repeats(s.Tensor); {
	case s.tol.rule == free:
		return nil
	case r.plan.plain && axis == 0:
		return r.near(s, one)
	case axis == 0:
		return r.rowsRepeat(s, one, len(r.as.host.IDs), r.as.period, r.tokens(s))
	case axis == 1:
		return r.columnsRepeat(s, one)
	case !r.plan.plain && len(r.as.host.Rows) > 0 && s.Shape[0] == len(r.as.host.Rows):
		return r.rowsRepeat(s, one, len(r.as.host.Rows), len(r.host.Rows), spread(len(r.as.host.Rows), s))
	}
	return r.summed(s, one)
}

// spread is the rows of a tensor that are looked at.
func spread(rows int, s *slot) []int {
	var at []int
	for i := range samples {
		at = append(at, i*rows/samples)
	}
	middle := (1 << 31) / max(s.Len()/rows, 1)
	for i := range 64 {
		at = append(at, min(max(middle-32+i, 0), rows-1), max(rows-1-i, 0))
	}
	return at
}

// tokens is the same for a tensor with a row a token.
func (r *rig) tokens(s *slot) []int { return spread(len(r.as.host.IDs), s) }

func (r *rig) rowsRepeat(s *slot, one result, rows, period int, look []int) error {
	n := int(s.Bytes()) / rows
	labelled := map[int]bool{}
	for _, row := range r.as.host.Rows {
		labelled[int(row)/r.as.period] = true
	}
	all := ops.Tensor{Name: s.Name, DType: ops.U8, Shape: []int{int(s.Bytes())}, Buf: s.Buf, Off: s.Off}
	row, zeros := make([]byte, n), make([]byte, n)
	for _, at := range look {
		if err := r.b.Read(row, all.Slice(s.Name, at*n, n)); err != nil {
			return err
		}
		want := one.raw[at%period*n : (at%period+1)*n]
		if len(labelled) > 0 && rows == len(r.as.host.IDs) && !labelled[at/r.as.period] {
			want = zeros // a gradient of rows without a label
		}
		if bytes.Equal(row, want) || r.as.reordered && nmse(decode(row, s.DType, nil), decode(want, s.DType, nil)) <= 1e-4 {
			continue
		}
		return fmt.Errorf("row %d of %d differs from row %d of the first period at byte %d", at, rows, at%period, firstDifference(row, want))
	}
	return nil
}

// columnsRepeat is for (H,T).
func (r *rig) columnsRepeat(s *slot, one result) error {
	raw := make([]byte, s.Bytes())
	if err := r.b.Read(raw, s.Tensor); err != nil {
		return err
	}
	size, T, period := int(s.DType.Size()), s.Shape[1], r.as.period
	for h := range s.Shape[0] {
		for t := range T {
			at, from := (h*T+t)*size, (h*period+t%period)*size
			if !bytes.Equal(raw[at:at+size], one.raw[from:from+size]) {
				return fmt.Errorf("element (%d,%d) differs from (%d,%d) of the first period", h, t, h, t%period)
			}
		}
	}
	return nil
}

// near holds windows of a flat result to the first period's values: what is derived from all of it, such as the offset of a
// double quantisation, may round otherwise.
func (r *rig) near(s *slot, one result) error {
	const window = 1 << 12
	n, period := s.Len(), r.as.period
	for i := range 64 {
		at := i * (n - min(window, n)) / 63
		from := at % period
		size := min(window, period-from, n-at)
		part := s.Slice(s.Name, at, size)
		raw := make([]byte, part.Bytes())
		if err := r.b.Read(raw, part); err != nil {
			return err
		}
		got, want := decode(raw, s.DType, nil), one.values[from:from+size]
		if err := below("NMSE", nmse(got, want), 1e-4, got, want); err != nil {
			return fmt.Errorf("elements from %d on: %w", at, err)
		}
	}
	return nil
}

// summed holds what is summed over all tokens, or all elements, to as many times the first period's part.
func (r *rig) summed(s *slot, one result) error {
	got := r.get(s.Name)
	want := make([]float64, len(got))
	for i, v := range one.values {
		switch {
		case r.plan.plain: // GradNorm: the norm, and a count
			want[i] = v
			if i == 0 {
				want[i] = r.norm()
			}
		default:
			want[i] = s.values[i] + (v-s.values[i])*float64(len(r.as.host.IDs))/float64(r.as.period)
		}
	}
	return below("NMSE", nmse(got, want), 1e-7, got, want)
}

// norm is the L2 norm of the one input of a flat plan.
func (r *rig) norm() float64 {
	squares := 0.0
	values := r.byName["grads"].values
	n := r.as.flat
	for i, v := range values {
		times := n / len(values)
		if i < n%len(values) {
			times++
		}
		squares += v * v * float64(times)
	}
	return math.Sqrt(squares)
}

// hugeDecode is decoding over a cache of millions of keys that repeat: a softmax over one period, each key counted as often as
// it comes, is what the oracle of ordinary size cannot give.
func (c *Case) hugeDecode(m, _ *machine, s Storage) error {
	const period = 64
	r, err := m.buildAs(&c.plan, s.Weights, s.Activations, shaped{period: period})
	if err != nil {
		return fmt.Errorf("laying out: %w", err)
	}
	if err := r.poison(0xFF); err != nil {
		return err
	}
	r.run()
	if err := m.b.Sync(); err != nil {
		return err
	}
	if err := r.guarded(); err != nil {
		return err
	}
	h := ops.Heads{H: c.plan.dims.H, Hk: c.plan.dims.Hk, D: c.plan.dims.D}
	past, now := r.byName["past"].values, r.byName["now"].values
	var want []float64
	for i := range len(c.plan.host.SegStart) - 1 {
		lo, hi := int(c.plan.host.SegStart[i]), int(c.plan.host.SegStart[i+1])
		want = append(want, decodeRepeated(past, now, h, lo, hi, i)...)
	}
	got := r.get("o")
	return below("calc_diff", calcDiff(got, want), maxCalcDiff, got, want)
}

// decodeRepeated is attention of row `row` of now over tokens lo to hi of past, whose rows repeat, and itself.
func decodeRepeated(past, now []float64, h ops.Heads, lo, hi, row int) []float64 {
	wide := (h.H + 2*h.Hk) * h.D
	period := len(past) / wide
	o := make([]float64, h.H*h.D)
	own := now[row*wide : (row+1)*wide]
	for head := range h.H {
		kv := head / (h.H / h.Hk)
		q := own[head*h.D : (head+1)*h.D]
		sum := 0.0
		add := func(token []float64, times int) {
			k, v := token[(h.H+kv)*h.D:(h.H+kv+1)*h.D], token[(h.H+h.Hk+kv)*h.D:(h.H+h.Hk+kv+1)*h.D]
			weight := float64(times) * math.Exp(dot(q, k)/math.Sqrt(float64(h.D)))
			sum += weight
			for d := range h.D {
				o[head*h.D+d] += weight * v[d]
			}
		}
		for j := range period {
			times := 0
			if first := lo + ((j-lo)%period+period)%period; first < hi {
				times = (hi-first-1)/period + 1
			}
			add(past[j*wide:(j+1)*wide], times)
		}
		add(own, 1)
		for d := range h.D {
			o[head*h.D+d] /= sum
		}
	}
	return o
}
