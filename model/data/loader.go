package data

import (
	"fmt"
	"iter"
)

// Loader reads the optimizer steps of a run, in order, ahead of the training loop.
type Loader struct {
	next func() (read, bool)
	stop func()
}

// Step is what an optimizer step trains on.
type Step struct {
	Samples []Sample
	Passed  []Issue // rows that could not be used, in whose place others stand
	After   Cursor  // where the next step goes on
}

type read struct {
	step Step
	err  error
}

// NewLoader starts at a cursor of an order; a step is of batch units, fewer at the end of an
// epoch. Workers are goroutines that read a step each; with none a step is read when it is
// asked for. Their number changes no step. Close stops them.
func NewLoader(source Source, order Order, at Cursor, batch, workers int) (*Loader, error) {
	if order.N != source.Len() {
		return nil, fmt.Errorf("an order of %d units for %d", order.N, source.Len())
	}
	sampler, err := NewSampler(order, at)
	if err != nil {
		return nil, err
	}
	type planned struct {
		units []int
		after Cursor
	}
	plan := func(yield func(planned) bool) {
		for {
			units := sampler.Next(batch)
			if !yield(planned{units, sampler.Cursor()}) {
				return
			}
		}
	}
	steps := ahead(plan, workers, func(p planned) read {
		step := Step{After: p.after}
		for _, i := range p.units {
			unit, err := source.Unit(i)
			if err != nil {
				return read{err: err}
			}
			step.Samples = append(step.Samples, unit.Samples...)
			step.Passed = append(step.Passed, unit.Passed...)
		}
		return read{step: step}
	})
	l := &Loader{}
	l.next, l.stop = iter.Pull(steps)
	return l, nil
}

// Next returns the next step.
func (l *Loader) Next() (Step, error) {
	r, _ := l.next() // an order has no end
	return r.step, r.err
}

// Close ends the reading.
func (l *Loader) Close() { l.stop() }
