package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// Request is a run to be planned.
type Request struct {
	Sizes   ops.Sizes
	Card    Card
	Src     *weights.Model
	Options qwen2.Options // less Saving, which is chosen
	Batch   ops.HostBatch // one packed row of the run, as full as rows get
	Budget  int64         // bytes for the run's block; 0: no limit
	// HostBudget is what may be taken of the host's memory: 0 for nothing.
	HostBudget int64
	Measured   *Measured // nil: Results
}

// Choice is what a run keeps less of, and what that comes to.
type Choice struct {
	Saving    qwen2.Saving
	Plan      memory.Plan
	Meter     *Meter // of a step
	Fallbacks []Fallback
}

// Fallback is one way of keeping less that a run needs.
type Fallback struct {
	What    string  `json:"what"`
	Bytes   int64   `json:"frees_bytes"`       // of the block
	Seconds float64 `json:"predicted_seconds"` // that it adds to a step
	Share   float64 `json:"predicted_share"`   // of the step before it
}

func (f Fallback) String() string {
	return fmt.Sprintf("%s: frees %s, %+.1f %% of the step's time (predicted)", f.What, GiB(f.Bytes), 100*f.Share)
}

// GiB writes bytes.
func GiB(bytes int64) string { return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30)) }

// NoFit is a run that no way of keeping less brings within its budget.
type NoFit struct {
	Need, Budget int64 // the least that it takes, and what there is
}

func (e *NoFit) Error() string {
	return fmt.Sprintf("the run takes at least %s, and %s is there for it", GiB(e.Need), GiB(e.Budget))
}

// with is the options with a way of keeping less.
func (r *Request) with(s qwen2.Saving) qwen2.Options {
	o := r.Options
	o.Saving = s
	return o
}

// least is the memory that a run with s cannot do without, on the card and on the host.
func (r *Request) least(s qwen2.Saving) (card, host int64, err error) {
	buffers, err := qwen2.Buffers(r.Sizes, r.Src, r.with(s))
	if err != nil {
		return 0, 0, err
	}
	for _, b := range buffers {
		if b.Host {
			host += b.Bytes
		}
	}
	return memory.Least(buffers, ops.Align), host, nil
}

func (r *Request) fits(s qwen2.Saving) (bool, error) {
	card, host, err := r.least(s)
	return r.Budget <= 0 || card <= r.Budget && host <= r.HostBudget, err
}

// step runs a step on a meter.
func (r *Request) step(s qwen2.Saving) (*Meter, *qwen2.Model, error) {
	measured := r.Measured
	if measured == nil {
		measured = Results()
	}
	meter := NewMeter(r.Sizes, r.Card, measured)
	meter.HostEmbedding = s.HostEmbedding
	m, err := qwen2.Sketch(meter, r.Src, r.with(s))
	if err != nil {
		return nil, nil, err
	}
	if err := m.Load(r.Batch); err != nil {
		return nil, nil, err
	}
	m.Forward()
	if !r.Options.Training {
		m.Loss()
		return meter, m, nil
	}
	m.Backward()
	if !m.Grads.Nil() {
		meter.GradNorm(m.Norm, m.Grads)
		meter.AdamW(m.Params, m.Moment1, m.Moment2, m.Grads, m.Norm, ops.AdamWArgs{})
		m.ParamsChanged()
	}
	return meter, m, nil
}

// tiles are the tokens of a feed-forward that are tried: fewer starve the products.
var tiles = []int{16384, 8192, 4096, 2048}

// frugal is the way that keeps least.
func (r *Request) frugal() qwen2.Saving {
	L, s := r.Src.Config.NumHiddenLayers, qwen2.Saving{}
	if least := tiles[len(tiles)-1]; r.Options.MaxT > least {
		s.Tile = least
	}
	if r.HostBudget > 0 {
		s.HostEmbedding = !r.Src.Config.TieWordEmbeddings
	}
	if r.Options.Training {
		s.GateUp, s.Whole = L, L
		if r.HostBudget > 0 {
			s.Offload = L
		}
	}
	return s
}

// candidate is a way that is tried: a base, and what makes it keep less of the first n layers, n raised until the run fits;
// nil: only the base.
type candidate struct {
	base  qwen2.Saving
	raise func(s *qwen2.Saving, n int)
}

func (r *Request) candidates() []candidate {
	var all []candidate
	L, training := r.Src.Config.NumHiddenLayers, r.Options.Training
	embeddings := []bool{false}
	if r.HostBudget > 0 && !r.Src.Config.TieWordEmbeddings {
		embeddings = append(embeddings, true)
	}
	add := func(s qwen2.Saving, raise func(s *qwen2.Saving, n int)) { all = append(all, candidate{s, raise}) }
	gateUp := func(s *qwen2.Saving, n int) { s.GateUp = n }
	whole := func(s *qwen2.Saving, n int) { s.Whole = n }
	offload := func(s *qwen2.Saving, n int) { s.Offload = n }
	for _, host := range embeddings {
		add(qwen2.Saving{HostEmbedding: host}, nil)
		for _, tile := range append([]int{0}, tiles...) {
			if tile >= r.Options.MaxT {
				continue
			}
			base := qwen2.Saving{HostEmbedding: host, Tile: tile}
			if !training {
				add(base, nil)
				continue
			}
			if tile == 0 {
				add(base, gateUp)
				if r.HostBudget > 0 {
					add(base, offload)
				}
			}
			base.GateUp = L
			add(base, whole)
			if r.HostBudget > 0 {
				add(base, offload)
				base.Whole = L
				add(base, offload)
			}
		}
	}
	return all
}

// alike is how near two times must be for the host memory of the two ways to decide: pinning it takes time too, and others
// may want it.
const alike = 1.01

// Choose finds the way of keeping less that costs the least time of those that fit; of ways that cost about the same, that
// which takes the least of the host's memory. Where nothing fits the error is a *NoFit.
func Choose(r Request) (*Choice, error) {
	if err := r.possible(); err != nil {
		return nil, err
	}
	var all []*Choice
	fastest := math.Inf(1)
	for _, way := range r.candidates() {
		c, err := r.smallest(way)
		if err != nil {
			return nil, err
		}
		if c != nil {
			all, fastest = append(all, c), min(fastest, c.Meter.Seconds)
		}
	}
	all = slices.DeleteFunc(all, func(c *Choice) bool { return c.Meter.Seconds > alike*fastest })
	if len(all) == 0 { // room is lost between buffers
		c, err := r.exact(r.frugal())
		if err != nil {
			return nil, err
		}
		return nil, &NoFit{Need: c.Plan.Bytes, Budget: r.Budget}
	}
	best := slices.MinFunc(all, func(a, b *Choice) int {
		return cmp.Or(cmp.Compare(a.Plan.HostBytes, b.Plan.HostBytes), cmp.Compare(a.Meter.Seconds, b.Meter.Seconds))
	})
	return best, r.explain(best)
}

// possible is a *NoFit where not even the most frugal way fits on the card. What it takes of the host is no matter: less may
// be offloaded.
func (r *Request) possible() error {
	card, _, err := r.least(r.frugal())
	if err == nil && r.Budget > 0 && card > r.Budget {
		return &NoFit{Need: card, Budget: r.Budget}
	}
	return err
}

// smallest raises a base as little as it takes; nil where it does not fit.
func (r *Request) smallest(way candidate) (*Choice, error) {
	at := func(n int) qwen2.Saving {
		s := way.base
		if n > 0 {
			way.raise(&s, n)
		}
		return s
	}
	most := 0
	if way.raise != nil {
		most = r.Src.Config.NumHiddenLayers
	}
	lo, hi := 0, most // fits at hi, if anywhere
	if ok, err := r.fits(at(hi)); err != nil || !ok {
		return nil, err
	}
	for lo < hi {
		mid := (lo + hi) / 2
		ok, err := r.fits(at(mid))
		if err != nil {
			return nil, err
		}
		if ok {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	for n := hi; n <= most; n++ { // a layout may lose a little between buffers
		c, err := r.exact(at(n))
		if err != nil {
			return nil, err
		}
		if r.Budget <= 0 || c.Plan.Bytes <= r.Budget && c.Plan.HostBytes <= r.HostBudget {
			return c, nil
		}
	}
	return nil, nil
}

// exact is a way with its layout and its time.
func (r *Request) exact(s qwen2.Saving) (*Choice, error) {
	meter, m, err := r.step(s)
	if err != nil {
		return nil, err
	}
	return &Choice{Saving: s, Plan: m.Plan, Meter: meter}, nil
}

// explain lists what a choice keeps less of, one after the other, with what each frees and costs.
func (r *Request) explain(c *Choice) error {
	L := r.Src.Config.NumHiddenLayers
	now, s := qwen2.Saving{}, c.Saving
	var steps []func() string
	if s.HostEmbedding {
		steps = append(steps, func() string { now.HostEmbedding = true; return "embedding table in host memory" })
	}
	if s.GateUp > 0 {
		steps = append(steps, func() string {
			now.GateUp = s.GateUp
			return fmt.Sprintf("gate and up of %d of %d layers made again", s.GateUp, L)
		})
	}
	if s.Tile > 0 {
		steps = append(steps, func() string {
			now.Tile = s.Tile
			return fmt.Sprintf("feed-forward by tiles of %d tokens", s.Tile)
		})
	}
	if s.Whole > 0 {
		steps = append(steps, func() string { now.Whole = s.Whole; return fmt.Sprintf("%d of %d layers made again whole", s.Whole, L) })
	}
	if s.Offload > 0 {
		steps = append(steps, func() string {
			now.Offload = s.Offload
			return fmt.Sprintf("activations of %d of %d layers in host memory", s.Offload, L)
		})
	}
	before, err := r.exact(now)
	if err != nil {
		return err
	}
	for _, apply := range steps {
		what := apply()
		after, err := r.exact(now)
		if err != nil {
			return err
		}
		by := after.Meter.Seconds - before.Meter.Seconds
		c.Fallbacks = append(c.Fallbacks, Fallback{what, before.Plan.Bytes - after.Plan.Bytes, by, by / before.Meter.Seconds})
		before = after
	}
	return nil
}

// Longest is the most tokens of a packed row that fit the budget: with nothing made again, and with whatever it takes. batch
// makes a row of so many tokens.
func Longest(r Request, batch func(T int) ops.HostBatch) (plain, frugal int, err error) {
	room := func(T int) {
		h := batch(T)
		r.Batch, r.Options.MaxT, r.Options.MaxS, r.Options.MaxN = h, T, len(h.SegStart)-1, max(len(h.Rows), 1)
	}
	most := func(how func() qwen2.Saving) (int, error) {
		const step = ops.GradBlock
		lo, hi := 0, 1<<20/step // in steps; fits at lo
		for lo < hi {
			mid := (lo + hi + 1) / 2
			room(mid * step)
			ok, err := r.fits(how())
			if err != nil {
				return 0, err
			}
			if ok {
				lo = mid
			} else {
				hi = mid - 1
			}
		}
		return lo * step, nil
	}
	if plain, err = most(func() qwen2.Saving { return qwen2.Saving{} }); err != nil {
		return 0, 0, err
	}
	frugal, err = most(r.frugal)
	return plain, frugal, err
}
