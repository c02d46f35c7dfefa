// Package bench is the harness: it accounts for the time and the memory of every op, of a training step, of decoding and
// of a whole job, on any backend.
//
// What is timed is what runs: kernels are the conformance cases of opstest, checked before they are timed; a step is
// train's, with all its ops; a job is a run from files to an adapter. Package measure says how samples are taken, result
// what is kept of them, compare what differs, report how it looks.
package bench

import (
	"context"
	"time"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// Bench is a device opened to be measured.
type Bench struct {
	Backend ops.Backend
	Probe   measure.Probe
	Env     result.Environment
	Rule    measure.Rule
	Suite   Suite
	Room    func(ops.Backend) (Room, error) // nil: all runs fit
	Variant string                          // of the card's kernels; "" and "auto" are its own

	Say  func(format string, args ...any) // a line for whoever waits; nil: nobody does
	Step func(done, total int, what string)
	// Open makes a fresh backend and its probe in place of those before, whose memory is held until they are closed.
	Open func() (ops.Backend, measure.Probe, error)

	used  bool // the backend has an arena
	watch *measure.Watch
	begun time.Time
}

// Suite is what kernels are checked with.
type Suite struct {
	Open    func() (ops.Backend, error) // a backend like the one that is measured
	Oracle  opstest.New
	Options opstest.Options // what of the cases the backend takes
	Weights ops.DType
	Narrow  int // check cases of no more columns, or an op's narrowest: where the oracle's time counts; 0: all
}

// checker opens two backends beside the oracle, with room for cases.
func (s Suite) checker(storage opstest.Storage, cases []opstest.Case) (*opstest.Checker, error) {
	var open []ops.Backend
	for range 2 {
		b, err := s.Open()
		if err != nil {
			return nil, err
		}
		open = append(open, b)
	}
	next := func() ops.Backend {
		b := open[0]
		open = open[1:]
		return b
	}
	return opstest.NewChecker(next, s.Oracle, storage, cases)
}

func (b *Bench) say(format string, args ...any) {
	if b.Say != nil {
		b.Say(format, args...)
	}
}

func (b *Bench) progress(done, total int, what string) {
	if b.Step != nil {
		b.Step(done, total, what)
	}
}

// start begins a run: the sensors are watched from here on.
func (b *Bench) start() *measure.Sampler {
	b.begun = time.Now()
	b.watch = measure.StartWatch(b.Probe)
	return &measure.Sampler{Backend: b.Backend, Probe: b.Probe, Watch: b.watch, Rule: b.Rule}
}

// finish ends a run and makes its file.
func (b *Bench) finish(kind result.Kind, rows []result.Row, roofs []result.Roof, notes ...string) *result.File {
	f := &result.File{Schema: result.Schema, Kind: kind, Time: b.begun.UTC().Truncate(time.Second), Environment: b.Env, Watch: b.watch.Stop(), Roofs: roofs, Rows: rows, Notes: notes}
	card, missing := b.Probe.Card()
	if f.Environment.Card = card; card != nil && f.Watch.MemClock.Max > 0 {
		card.MemClock = int(f.Watch.MemClock.Max)
	}
	f.Environment.Missing = append(f.Environment.Missing, missing...)
	for _, o := range f.Watch.Others {
		if kind != result.Peers { // which has others by design
			f.Notes = append(f.Notes, "another process was on the card: "+o)
		}
	}
	for _, r := range rows {
		if b.Variant != "" && b.Variant != "auto" && r.Params != nil {
			r.Params["variant"] = b.Variant
		}
	}
	return f
}

// Roofs measures what the device does at most, and nothing else.
func (b *Bench) Roofs(ctx context.Context) ([]result.Roof, error) {
	s := b.start()
	defer b.watch.Stop()
	return s.Roofs(ctx)
}
