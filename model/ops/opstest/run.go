package opstest

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"qlora/internal/nf4"
	"qlora/model/ops"
)

// New makes a backend.
type New func() ops.Backend

// Options say what of the list a backend runs.
type Options struct {
	Storage   []Storage // what is stored how, one run of the list each
	Bench     bool      // also the shapes of a 7B model
	Multiple  int       // widths the backend takes are multiples of it; 0: any
	HeadSizes []int     // head sizes the backend takes; nil: any
	// Bitwise: a segment packed with others gives the same bits as alone.
	Bitwise bool
}

// Storage is how a run stores its frozen weights and its activations.
type Storage struct {
	Weights, Activations ops.DType
}

func (s Storage) String() string {
	return s.Weights.String() + " weights, " + s.Activations.String() + " activations"
}

// takes says whether a backend of these options runs c with storage i of its list, and if not, why.
func (o Options) takes(c Case, i int) (bool, string) {
	switch {
	case c.Size == Huge, c.Size == Bench && !o.Bench:
		return false, c.Size.String()
	case o.Multiple > c.Multiple():
		return false, fmt.Sprintf("width not a multiple of %d", o.Multiple)
	case c.HeadSize() > 0 && usesHeads[c.Op] && o.HeadSizes != nil && !slices.Contains(o.HeadSizes, c.HeadSize()):
		return false, "head size"
	case testing.Short() && c.plan.dims.C > 64:
		return false, "-short"
	case o.Storage[i].Weights == ops.NF4 && !quantizes[c.Op]:
		return false, "not an op of NF4 weights"
	case o.Storage[i].Weights == ops.NF4 && c.Cols%nf4.Block != 0:
		return false, "rows of a weight that are not whole blocks of NF4"
	case !usesWeights[c.Op]:
		for _, before := range o.Storage[:i] {
			if before.Activations == o.Storage[i].Activations {
				return false, "same as with " + before.String()
			}
		}
	}
	return true, ""
}

var usesWeights = map[string]bool{"Embed": true, "Linear": true, "LinearBack": true, "HeadLoss": true, "HeadLoss eval": true, "Logits": true, "KL": true}

// quantizes are the ops whose weights may be NF4.
var quantizes = map[string]bool{"Linear": true, "LinearBack": true}

var usesHeads = map[string]bool{"Attention": true, "AttentionBack": true, "DecodeAttention": true, "Linear": true}

// RunAll runs every case the backend under test takes, and prints what was left and why.
func RunAll(t *testing.T, under, oracle New, o Options) {
	for i, s := range o.Storage {
		t.Run(s.String(), func(t *testing.T) {
			runStorage(t, under, oracle, o, i)
		})
	}
}

func runStorage(t *testing.T, under, oracle New, o Options, i int) {
	storage := o.Storage[i]
	s := newSuite(t, under, oracle, storage)
	left, run := map[string]int{}, 0
	var cases []Case
	for _, c := range Cases() {
		if ok, why := o.takes(c, i); !ok {
			left[why]++
			continue
		}
		cases = append(cases, c)
	}
	if err := s.reserve(cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		run++
		t.Run(c.Name, func(t *testing.T) {
			if err := s.run(c); err != nil {
				t.Error(err)
			}
		})
	}
	reasons, sum := []string{}, 0
	for _, why := range slices.Sorted(maps.Keys(left)) {
		reasons = append(reasons, fmt.Sprintf("%s %d", why, left[why]))
		sum += left[why]
	}
	t.Logf("%s: run %d, left for a card or another run: %d (%s)", storage, run, sum, strings.Join(reasons, ", "))
}

// suite is the backend under test, twice, and the oracle, with one storage of weights.
type suite struct {
	weight, store        ops.DType
	first, other, oracle *machine
}

func newSuite(t *testing.T, under, oracle New, storage Storage) *suite {
	s := &suite{weight: storage.Weights, store: storage.Activations, first: &machine{b: under()}, other: &machine{b: under()}, oracle: &machine{b: oracle()}}
	if d := s.oracle.b.Activation(s.weight); d != ops.F64 {
		t.Fatalf("opstest: the oracle stores activations in %s, not float64", d)
	}
	t.Cleanup(func() {
		for _, m := range []*machine{s.first, s.other, s.oracle} {
			if err := m.b.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// reserve makes each machine's arena once, for the largest case.
func (s *suite) reserve(cases []Case) error {
	for _, m := range []*machine{s.first, s.other, s.oracle} {
		most := int64(0)
		for i := range cases {
			n, err := m.size(&cases[i].plan, s.weight, s.store, shaped{})
			if err != nil {
				return fmt.Errorf("%s: %w", cases[i].Name, err)
			}
			most = max(most, n)
		}
		var err error
		if m.arena, err = m.b.NewArena(most); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) run(c Case) error {
	got, err := execute(s.first, &c, s, 0xFF)
	if err != nil {
		return err
	}
	procs := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(3 - min(procs, 2)) // 2 becomes 1, 1 becomes 2
	again, err := execute(s.other, &c, s, 0x7F)
	runtime.GOMAXPROCS(procs)
	if err != nil {
		return fmt.Errorf("second run: %w", err)
	}
	for name, g := range got {
		if a := again[name]; !bytes.Equal(g.raw, a.raw) {
			at := firstDifference(g.raw, a.raw)
			return fmt.Errorf("%s differs between two runs at byte %d of %d: it depends on what was in memory, or on GOMAXPROCS", name, at, len(g.raw))
		}
	}
	want, err := execute(s.oracle, &c, s, 0xFF)
	if err != nil {
		return fmt.Errorf("oracle: %w", err)
	}
	for name, g := range got {
		if err := g.tol.compare(g.values, want[name].values, g.DType, s.store); err != nil {
			return fmt.Errorf("%s: %w", g.Tensor, err)
		}
	}
	return nil
}

// execute lays a case out, makes its call on garbage, and checks that nothing else changed.
func execute(m *machine, c *Case, s *suite, garbage byte) (map[string]result, error) {
	r, err := m.build(&c.plan, s.weight, s.store)
	if err != nil {
		return nil, fmt.Errorf("laying out: %w", err)
	}
	return r.execute(garbage)
}

func (r *rig) execute(garbage byte) (map[string]result, error) {
	if err := r.poison(garbage); err != nil {
		return nil, err
	}
	before, err := r.image()
	if err != nil {
		return nil, err
	}
	r.run()
	if err := r.b.Sync(); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, r.err
	}
	after, err := r.image()
	if err != nil {
		return nil, err
	}
	return r.results(after), r.intact(before, after)
}

// Prepared is a case laid out on a backend, for a benchmark.
type Prepared struct{ r *rig }

// Prepare lays c out on b with weights of type w, in an arena of its own.
func (c Case) Prepare(b ops.Backend, w ops.DType) (*Prepared, error) {
	r, err := (&machine{b: b}).build(&c.plan, w, b.Activation(w))
	if err != nil {
		return nil, fmt.Errorf("opstest: %s: %w", c.Name, err)
	}
	return &Prepared{r}, r.poison(0)
}

// Run makes the call once, without waiting for it.
func (p *Prepared) Run() { p.r.run() }

// Run holds one case on a backend to the oracle, as RunAll does.
func (c Case) Run(under, oracle New, s Storage) error {
	return (&suite{weight: s.Weights, store: s.Activations, first: &machine{b: under()}, other: &machine{b: under()}, oracle: &machine{b: oracle()}}).run(c)
}
