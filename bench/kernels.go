package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/internal/nf4"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// KernelOptions choose what Kernels times.
type KernelOptions struct {
	Filter  *regexp.Regexp // of case names; nil: all
	Names   []string       // exact names; nil: all
	Small   bool           // the small cases in place of a 7B model's shapes
	Cold    bool           // operands in no cache
	Hot     bool           // calls back to back
	NF4     bool           // weights in NF4: products alone, each with the time to dequantise
	Full    bool           // hold the shapes that are timed to the oracle too: minutes to hours
	Variant string         // name of the kernels in use, for the rows
	Roofs   bool           // measure roofs first
}

// Kernels checks and times the cases of opstest, one row a case and state of the caches. Cases whose op does not hold to
// the oracle are not timed: their rows carry the error, and Failed finds them.
func (b *Bench) Kernels(ctx context.Context, o KernelOptions) (*result.File, error) {
	cases := b.timed(o)
	if len(cases) == 0 {
		return nil, fmt.Errorf("no case has that name: `qlora bench kernels --list` names them")
	}
	s := b.start()
	rows, roofs, notes, err := b.kernels(ctx, s, cases, o)
	f := b.finish(result.Kernels, rows, roofs, notes...)
	return f, err
}

// Cases are those that Kernels would time.
func (b *Bench) Cases(o KernelOptions) []opstest.Case { return b.timed(o) }

// weights is how the frozen weights are stored.
func (b *Bench) weights(o KernelOptions) ops.DType {
	if o.NF4 {
		return ops.NF4
	}
	return b.Suite.Weights
}

// unavoidable is the bytes that a call of c must move with weights of type w; a case counts them in 16 bits.
func unavoidable(c opstest.Case, w ops.DType) float64 {
	bytes := c.Bytes
	if w == ops.NF4 {
		for _, p := range c.Products {
			bytes += float64(p.N) * float64(p.K) * (nf4Bytes - 2)
		}
	}
	return bytes
}

// nf4Bytes are a number's share of codes, scales, and the scales' scales.
const nf4Bytes = 0.5 + 1.0/nf4.Block + 4.0/nf4.Block/nf4.NestedBlock

func (b *Bench) timed(o KernelOptions) []opstest.Case {
	opt := b.Suite.Options
	opt.Bench = true
	return slices.DeleteFunc(opstest.Cases(), func(c opstest.Case) bool {
		ok, _ := opt.Takes(c)
		stores, _ := c.Stores(b.weights(o))
		return !ok || !stores || (c.Size == opstest.Small) != o.Small || o.Filter != nil && !o.Filter.MatchString(c.Name) ||
			o.Names != nil && !slices.Contains(o.Names, c.Name)
	})
}

func (b *Bench) kernels(ctx context.Context, s *measure.Sampler, cases []opstest.Case, o KernelOptions) (rows []result.Row, roofs []result.Roof, notes []string, err error) {
	proofs, err := b.prove(ctx, cases, o)
	if err != nil {
		return nil, nil, nil, err
	}
	if o.Roofs {
		b.say("roofs: copy, read, compute")
		if roofs, err = s.Roofs(ctx); err != nil {
			return nil, nil, nil, err
		}
	}
	if err := b.fresh(s); err != nil {
		return nil, roofs, nil, err
	}
	bench, err := opstest.NewTiming(b.Backend, b.weights(o), cases)
	if err != nil {
		return nil, roofs, nil, fmt.Errorf("the largest case does not fit: leave it out by --filter: %w", err)
	}
	missing := map[string]bool{}
	for i, c := range cases {
		b.progress(i, len(cases), c.Name)
		some, err := b.kernel(ctx, s, bench, c, proofs[c.Name], o, missing)
		rows = append(rows, some...)
		if err != nil {
			return rows, roofs, notes, err
		}
	}
	b.progress(len(cases), len(cases), "")
	for why := range missing {
		notes = append(notes, "no yardstick: "+why)
	}
	slices.Sort(notes)
	return rows, roofs, notes, nil
}

// kernel times one case, cold and hot. An error is the device's; what is wrong with the case stands in its row.
func (b *Bench) kernel(ctx context.Context, s *measure.Sampler, bench *opstest.Timing, c opstest.Case, proof proof, o KernelOptions, missing map[string]bool) ([]result.Row, error) {
	params := func(state string) map[string]string {
		p := map[string]string{"cache": state}
		if o.Variant != "" {
			p["variant"] = o.Variant
		}
		if o.NF4 {
			p["method"] = methods[ops.NF4]
		}
		return p
	}
	bytes := unavoidable(c, b.weights(o))
	failed := func(err error) []result.Row {
		b.say("%s: %v", c.Name, err)
		return []result.Row{{Name: c.Name, Params: params("none"), FLOPs: c.FLOPs, Bytes: bytes, Error: err.Error()}}
	}
	if proof.err != nil {
		return failed(proof.err), nil
	}
	p, err := bench.Prepare(c)
	if err != nil {
		return nil, err
	}
	digest, err := p.Verify()
	if err != nil {
		return failed(err), b.Backend.Sync()
	}
	proof.Digest = digest
	if proof.Shape == "" {
		proof.Shape = "two calls to the bit, finite, nothing written outside"
	}
	library, yardstick, why := b.Probe.Yardstick(c)
	if yardstick == nil && why != nil && (len(c.Products) > 0 || c.Attention != nil) {
		missing[why.Error()] = true
	}
	var rows []result.Row
	for _, cache := range caches {
		if cache == cold && !o.Cold || cache == hot && !o.Hot {
			continue
		}
		row, err := b.timedRow(ctx, s, cache, c, p, yardstick)
		if err != nil {
			return rows, err
		}
		row.Params, row.FLOPs, row.Bytes = params(cache), c.FLOPs, bytes
		if len(row.Seconds) > 0 {
			row.Proof = &proof.Proof
		}
		if row.Yardstick != nil {
			row.Yardstick.Library = library
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// States of the caches before a call: with none of its operands, or as the call before left them.
const (
	cold = "cold"
	hot  = "hot"
)

var caches = []string{cold, hot}

// timedRow samples a case, in turns with a library's call where there is one. A row all of whose samples are void has no time.
func (b *Bench) timedRow(ctx context.Context, s *measure.Sampler, cache string, c opstest.Case, p *opstest.Prepared, yardstick func()) (result.Row, error) {
	take := s.Hot
	if cache == cold {
		take = func(run func(), before func() error) (measure.Take, error) { return s.Cold(run, before), nil }
	}
	var before func() error
	if p.Consumes() {
		before = p.Refresh
	}
	ours, err := take(p.Run, before)
	if err != nil {
		return result.Row{}, err
	}
	takes := []measure.Take{ours}
	if yardstick != nil {
		theirs, err := take(yardstick, nil)
		if err != nil {
			return result.Row{}, fmt.Errorf("%s: the library: %w", c.Name, err)
		}
		takes = append(takes, theirs)
	}
	series, err := s.Sample(ctx, takes...)
	var void *measure.AllVoid
	if errors.As(err, &void) {
		return result.Row{Name: c.Name, Void: void.Reasons, Error: err.Error()}, nil
	}
	if err != nil {
		return result.Row{}, err
	}
	row := series[0].Row(c.Name, nil)
	if yardstick != nil {
		row.Yardstick = &result.Yardstick{Seconds: series[1].Seconds}
	}
	return row, nil
}

// proof is what is known of a case before it is timed.
type proof struct {
	result.Proof
	err error
}

// prove holds the small cases of every op in the list to the oracle, and with Full the cases themselves.
func (b *Bench) prove(ctx context.Context, cases []opstest.Case, o KernelOptions) (map[string]proof, error) {
	w := b.weights(o)
	check := b.checks(cases, w)
	if o.Full {
		check = append(check, slices.DeleteFunc(slices.Clone(cases), func(c opstest.Case) bool {
			return slices.ContainsFunc(check, func(o opstest.Case) bool { return o.Name == c.Name })
		})...)
	}
	checker, err := b.Suite.checker(opstest.Storage{Weights: w, Activations: b.Backend.Activation(w)}, check)
	if err != nil {
		return nil, err
	}
	held, broken, itself := map[string]int{}, map[string]error{}, map[string]error{}
	for i, c := range check {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, checker.Close())
		}
		b.progress(i, len(check), "checking "+c.Name)
		err := checker.Check(c)
		held[c.Op]++
		itself[c.Name] = err
		if err != nil && broken[c.Op] == nil {
			broken[c.Op] = fmt.Errorf("not timed, for it is not right: %s: %w", c.Name, err)
		}
	}
	b.progress(len(check), len(check), "")
	proofs := map[string]proof{}
	for _, c := range cases {
		p := proof{Proof: result.Proof{Cases: held[c.Op]}, err: broken[c.Op]}
		if err, checked := itself[c.Name]; checked && err == nil {
			p.Shape = "held to the oracle"
		}
		if p.Cases == 0 {
			p.err = fmt.Errorf("not timed: no case of %s can be held to the oracle", c.Op)
		}
		proofs[c.Name] = p
	}
	return proofs, checker.Close()
}

// checks are the small cases of the ops of a list.
func (b *Bench) checks(cases []opstest.Case, w ops.DType) []opstest.Case {
	all := slices.DeleteFunc(opstest.Cases(), func(c opstest.Case) bool {
		ok, _ := b.Suite.Options.Takes(c)
		stores, _ := c.Stores(w)
		return !ok || !stores || c.Size != opstest.Small || !slices.ContainsFunc(cases, func(t opstest.Case) bool { return t.Op == c.Op })
	})
	if b.Suite.Narrow == 0 {
		return all
	}
	most := map[string]int{}
	for _, c := range all {
		if n, ok := most[c.Op]; !ok || c.Columns() < n {
			most[c.Op] = c.Columns()
		}
	}
	return slices.DeleteFunc(all, func(c opstest.Case) bool { return c.Columns() > max(most[c.Op], b.Suite.Narrow) })
}

// Failed lists the rows of a file that carry an error.
func Failed(f *result.File) []string {
	var all []string
	if f == nil {
		return nil
	}
	for _, r := range f.Rows {
		if r.Error != "" {
			all = append(all, r.Name+": "+strings.TrimSpace(r.Error))
		}
	}
	return all
}
