package opstest

import (
	"bytes"
	"errors"
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

// Takes says whether a backend of these options runs c, and if not, why.
func (o Options) Takes(c Case) (bool, string) {
	switch {
	case c.Size == Huge, c.Size == Bench && !o.Bench:
		return false, c.Size.String()
	case o.Multiple > c.Multiple():
		return false, fmt.Sprintf("width not a multiple of %d", o.Multiple)
	case c.HeadSize() > 0 && usesHeads[c.Op] && o.HeadSizes != nil && !slices.Contains(o.HeadSizes, c.HeadSize()):
		return false, "head size"
	}
	return true, ""
}

// Stores says whether the frozen weights of c may be of type w, and if not, why.
func (c Case) Stores(w ops.DType) (bool, string) {
	switch {
	case w != ops.NF4:
	case !quantizes[c.Op]:
		return false, "not an op of NF4 weights"
	case c.Cols%nf4.Block != 0:
		return false, "rows of a weight that are not whole blocks of NF4"
	}
	return true, ""
}

// takes says whether a test runs c with storage i of the list, and if not, why.
func (o Options) takes(c Case, i int) (bool, string) {
	if ok, why := o.Takes(c); !ok {
		return ok, why
	}
	if ok, why := c.Stores(o.Storage[i].Weights); !ok {
		return ok, why
	}
	switch {
	case testing.Short() && c.plan.dims.C > 64:
		return false, "-short"
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
	left, run := map[string]int{}, 0
	var cases []Case
	for _, c := range Cases() {
		if ok, why := o.takes(c, i); !ok {
			left[why]++
			continue
		}
		cases = append(cases, c)
	}
	s, err := NewChecker(under, oracle, storage, cases)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range cases {
		run++
		t.Run(c.Name, func(t *testing.T) {
			if err := s.Check(c); err != nil {
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

// Checker is the backend under test, twice, and the oracle, with one storage of weights.
type Checker struct {
	weight, store        ops.DType
	first, other, oracle *machine
}

// NewChecker makes backends, with room for the largest of the cases to come.
func NewChecker(under, oracle New, s Storage, cases []Case) (*Checker, error) {
	c := newChecker(under, oracle, s)
	if d := c.oracle.b.Activation(s.Weights); d != ops.F64 {
		return nil, errors.Join(fmt.Errorf("opstest: the oracle stores activations in %s, not float64", d), c.Close())
	}
	for _, m := range c.machines() {
		if err := m.reserve(cases, s.Weights, s.Activations); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func newChecker(under, oracle New, s Storage) *Checker {
	return &Checker{weight: s.Weights, store: s.Activations, first: &machine{b: under()}, other: &machine{b: under()}, oracle: &machine{b: oracle()}}
}

func (s *Checker) machines() []*machine { return []*machine{s.first, s.other, s.oracle} }

// Close closes the backends.
func (s *Checker) Close() error {
	var errs []error
	for _, m := range s.machines() {
		errs = append(errs, m.b.Close())
	}
	return errors.Join(errs...)
}

// reserve makes the machine's arena once, for the largest case.
func (m *machine) reserve(cases []Case, weight, store ops.DType) error {
	most := int64(0)
	for i := range cases {
		n, err := m.size(&cases[i].plan, weight, store, shaped{})
		if err != nil {
			return fmt.Errorf("%s: %w", cases[i].Name, err)
		}
		most = max(most, n)
	}
	var err error
	m.arena, err = m.b.NewArena(most)
	return err
}

// Check holds one case to the oracle.
func (s *Checker) Check(c Case) error {
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
func execute(m *machine, c *Case, s *Checker, garbage byte) (map[string]result, error) {
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

// Run holds one case on a backend to the oracle, as RunAll does.
func (c Case) Run(under, oracle New, s Storage) error {
	return newChecker(under, oracle, s).Check(c)
}
