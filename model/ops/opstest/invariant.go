package opstest

import (
	"fmt"
	"slices"
	"testing"

	"qlora/model/ops"
)

// RunInvariants holds a backend to what must be so to the bit, in a decoder of two layers: a
// segment gets the same from whatever it is packed with, and B = 0 changes nothing.
func RunInvariants(t *testing.T, under New, o Options) {
	for _, s := range o.Storage {
		t.Run(s.String(), func(t *testing.T) {
			for _, c := range []struct {
				name string
				run  func(*machine, Storage, Options) error
			}{{"no leak between segments", noLeak}, {"packed as alone", packedAsAlone}, {"noise packed as alone", noiseAsAlone}, {"B is zero", zeroB}} {
				t.Run(c.name, func(t *testing.T) {
					m := &machine{b: under()}
					if err := c.run(m, s, o); err != nil {
						t.Error(err)
					}
					if err := m.b.Close(); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// even is a decoder's shape that every backend takes, wide enough for sums in more than one block.
var even = modelShape{name: "even", C: 320, F: 576, V: 96, h: ops.Heads{H: 5, Hk: 1, D: 64}}

var adapted = decoderLoRA{adapters{[]int{8, 4, 2}, 0.25}, adapters{[]int{8}, 0.25}, adapters{[]int{0, 8}, 0.25}, adapters{[]int{8}, 0.25}}

// trace is what a decoder computes for each token, in bits of their own, and for the whole row.
type trace struct {
	tokens map[string][]float64 // (T, ...): output, gradient of the input
	labels []float64            // (N): nll
	sums   map[string][]float64 // dA, dB less what they began with
}

// traceDecoder runs forward and backward over h.
func traceDecoder(m *machine, s Storage, h ops.HostBatch, a decoderLoRA, zero bool) (*trace, error) {
	T, N := len(h.IDs), len(h.Rows)
	var d *decoder
	p := decoderPlan(even, h)
	p.wire = func(r *rig) func() {
		d = newDecoder(r, even, 2, a, T, N, true)
		return func() {
			d.forward()
			d.backward()
		}
	}
	r, err := m.build(&p, s.Weights, s.Activations)
	if err != nil {
		return nil, err
	}
	if zero {
		for _, name := range d.modules() {
			b := r.byName[name+".B"]
			r.set(name+".B", make([]float64, b.Len()))
		}
		r.pack()
	}
	if err := r.poison(0xFF); err != nil {
		return nil, err
	}
	r.run()
	if err := m.b.Sync(); err != nil {
		return nil, err
	}
	tr := &trace{tokens: map[string][]float64{}, labels: r.get("nll"), sums: map[string][]float64{}}
	for _, name := range []string{"x2", "dx", "os.1", "mid.0"} {
		tr.tokens[name] = r.get(name)
	}
	for _, module := range d.modules() {
		for _, g := range []string{module + ".dA", module + ".dB"} {
			v := r.get(g)
			for i, start := range r.byName[g].values {
				v[i] -= start
			}
			tr.sums[g] = v
		}
	}
	return tr, r.err
}

// of cuts out segment s.
func (tr *trace) of(h ops.HostBatch, s int) map[string][]float64 {
	T, cut := len(h.IDs), map[string][]float64{}
	for name, v := range tr.tokens {
		w := len(v) / T
		cut[name] = v[int(h.SegStart[s])*w : int(h.SegStart[s+1])*w]
	}
	for i, row := range h.Rows {
		if row >= h.SegStart[s] && row < h.SegStart[s+1] {
			cut["nll"] = append(cut["nll"], tr.labels[i])
		}
	}
	return cut
}

func noLeak(m *machine, s Storage, _ Options) error {
	const changed = 1
	h := batch(137, 3, 40, even.V)
	before, err := traceDecoder(m, s, h, adapted, false)
	if err != nil {
		return err
	}
	other := h
	other.IDs = slices.Clone(h.IDs)
	for t := h.SegStart[changed]; t < h.SegStart[changed+1]; t++ {
		other.IDs[t] = (h.IDs[t] + 1) % int32(even.V)
	}
	after, err := traceDecoder(m, s, other, adapted, false)
	if err != nil {
		return err
	}
	for seg := range len(h.SegStart) - 1 {
		a, b := before.of(h, seg), after.of(h, seg)
		for name := range a {
			switch same := slices.Equal(a[name], b[name]); {
			case seg == changed && same:
				return fmt.Errorf("%s of segment %d did not change with its tokens", name, seg)
			case seg != changed && !same:
				return fmt.Errorf("%s of segment %d changed with the tokens of segment %d", name, seg, changed)
			}
		}
	}
	return nil
}

func packedAsAlone(m *machine, s Storage, o Options) error {
	// the first segment of the second batch is a single token
	for _, h := range []ops.HostBatch{batch(137, 3, 40, even.V), batch(30, 7, 12, even.V)} {
		if err := eachAlone(m, s, o, h); err != nil {
			return fmt.Errorf("%d tokens: %w", len(h.IDs), err)
		}
	}
	return nil
}

func eachAlone(m *machine, s Storage, o Options, h ops.HostBatch) error {
	packed, err := traceDecoder(m, s, h, adapted, false)
	if err != nil {
		return err
	}
	sums := map[string][]float64{}
	for seg := range len(h.SegStart) - 1 {
		alone, err := traceDecoder(m, s, segment(h, seg), adapted, false)
		if err != nil {
			return err
		}
		want := packed.of(h, seg)
		for name, got := range alone.of(segment(h, seg), 0) {
			switch {
			case o.Bitwise && !slices.Equal(got, want[name]):
				return fmt.Errorf("%s of segment %d has other bits alone than packed", name, seg)
			case !(calcDiff(got, want[name]) <= maxCalcDiff):
				return fmt.Errorf("%s of segment %d alone differs by %g", name, seg, calcDiff(got, want[name]))
			}
		}
		for name, v := range alone.sums {
			if sums[name] == nil {
				sums[name] = make([]float64, len(v))
			}
			for i := range v {
				sums[name][i] += v[i]
			}
		}
	}
	for name, got := range sums { // another order of the same sum, on top of a value of size 1
		want := packed.sums[name]
		if at := worst(got, want); !(abs(got[at]-want[at]) <= 1e-6*(1+norm(want))) {
			return fmt.Errorf("%s: the segments alone add up to %g at element %d, packed %g", name, got[at], at, want[at])
		}
	}
	return nil
}

// noiseAsAlone: a token's noise depends on nothing but its own segment's length and its place, and on seed and step.
func noiseAsAlone(m *machine, s Storage, _ Options) error {
	if s.Weights == ops.NF4 {
		s.Weights = ops.BF16 // a table of embeddings never is
	}
	embed := func(h ops.HostBatch) ([]float64, error) {
		p := decoderPlan(even, h)
		p.wire = func(r *rig) func() {
			w, x := r.newWeight(r.plain("table", even.V, even.C), nil), r.out("x", anything, len(h.IDs), even.C)
			return func() { r.b.Embed(x, w, r.batch) }
		}
		r, err := m.build(&p, s.Weights, s.Activations)
		if err != nil {
			return nil, err
		}
		r.run()
		if err := m.b.Sync(); err != nil {
			return nil, err
		}
		return r.get("x"), r.err
	}
	h := batch(137, 3, 40, even.V)
	h.Noise = 5
	packed, err := embed(h)
	if err != nil {
		return err
	}
	for seg := range len(h.SegStart) - 1 {
		alone, err := embed(segment(h, seg))
		if err != nil {
			return err
		}
		if !slices.Equal(alone, packed[int(h.SegStart[seg])*even.C:int(h.SegStart[seg+1])*even.C]) {
			return fmt.Errorf("segment %d has other bits alone than packed", seg)
		}
	}
	for what, change := range map[string]func(*ops.HostBatch){
		"seed": func(h *ops.HostBatch) { h.Seed++ }, "step": func(h *ops.HostBatch) { h.Step++ }, "alpha": func(h *ops.HostBatch) { h.Noise = 0 },
	} {
		other := h
		change(&other)
		x, err := embed(other)
		if err != nil {
			return err
		}
		if slices.Equal(x, packed) {
			return fmt.Errorf("another %s gives the same noise", what)
		}
	}
	return nil
}

func abs(v float64) float64 { return max(v, -v) }

func zeroB(m *machine, s Storage, _ Options) error {
	h := batch(67, 2, 20, even.V)
	zero, err := traceDecoder(m, s, h, adapted, true)
	if err != nil {
		return err
	}
	bare, err := traceDecoder(m, s, h, decoderLoRA{}, false)
	if err != nil {
		return err
	}
	tuned, err := traceDecoder(m, s, h, adapted, false)
	if err != nil {
		return err
	}
	for name, want := range bare.tokens {
		if !slices.Equal(zero.tokens[name], want) {
			return fmt.Errorf("%s has other bits with B = 0 than without a LoRA", name)
		}
	}
	if !slices.Equal(zero.labels, bare.labels) {
		return fmt.Errorf("nll has other bits with B = 0 than without a LoRA")
	}
	if slices.Equal(tuned.labels, bare.labels) {
		return fmt.Errorf("nll is the same with B as without a LoRA")
	}
	return nil
}
