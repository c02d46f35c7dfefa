package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/qwen2"
)

// StepOptions say how a step is measured.
type StepOptions struct {
	Trainings []Training
	Ops       bool          // also where the time goes, op by op
	Memory    bool          // also how far each category of the memory is written, by a step on memory filled with a pattern
	Sustained time.Duration // go on for so long, and keep track of clock, power and heat; 0: until the noise is low
	Roofs     bool
	Progress  func(done, total int64) // of loading
}

// warmupSteps of a run do not count: memory is touched and kernels are loaded for the first time.
const warmupSteps = 3

// metered is how many steps are metered op by op.
const metered = 5

// Steps measures training steps, one row a training. One that does not fit is a row with the reason; where none fits, the
// reason is the error.
func (b *Bench) Steps(ctx context.Context, o StepOptions) (*result.File, error) {
	s := b.start()
	var roofs []result.Roof
	var rows []result.Row
	var err, refused error
	measured := false
	if o.Roofs {
		b.say("roofs: copy, read, compute")
		roofs, err = s.Roofs(ctx)
	}
	for _, t := range o.Trainings {
		if err != nil {
			break
		}
		if err = b.fresh(s); err != nil {
			break
		}
		b.say("step: %s, %s, rank %d, %d rows of %d tokens in %d samples", t.Name, t.method(), t.Adapter.R, t.Rows, t.Tokens, t.Segments)
		var row result.Row
		row, err = b.step(ctx, s, t, o)
		rows = append(rows, row)
		if doesNotFit(err) {
			refused, err = cmp.Or(refused, err), nil
		}
		measured = measured || len(row.Seconds) > 0
	}
	if !measured {
		err = cmp.Or(err, refused)
	}
	return b.finish(result.Step, rows, roofs), err
}

// fresh replaces the backend if it has an arena already: it keeps that until it is closed.
func (b *Bench) fresh(s *measure.Sampler) error {
	if b.used {
		if err := b.reopen(s); err != nil {
			return err
		}
	}
	b.used = true
	return nil
}

// reopen replaces the backend by another.
func (b *Bench) reopen(s *measure.Sampler) error {
	b.watch.Change(nil)
	if err := errors.Join(b.Probe.Close(), b.Backend.Close()); err != nil {
		return err
	}
	var err error
	if b.Backend, b.Probe, err = b.Open(); err != nil {
		return err
	}
	s.Backend, s.Probe, b.used = b.Backend, b.Probe, false
	b.watch.Change(b.Probe)
	return nil
}

// step measures one training.
func (b *Bench) step(ctx context.Context, s *measure.Sampler, t Training, o StepOptions) (result.Row, error) {
	row := result.Row{Name: "step", Params: t.params(), Budget: t.Budget}
	refused := func(err error) (result.Row, error) {
		row.Error = err.Error()
		return row, err
	}
	room, err := b.room()
	if err != nil {
		return row, err
	}
	choice, err := t.choose(b.Backend, room.within(t.Budget))
	if err != nil {
		return refused(err)
	}
	row.Memory, row.KeepsLess = planned(choice.Plan), fallbacks(choice)
	tr, err := t.build(b.Backend, qwen2.Options{Saving: choice.Saving}, o.Progress)
	if err != nil {
		return refused(err)
	}
	for range warmupSteps {
		if err := tr.next(ctx); err != nil {
			return row, err
		}
	}
	row.Tokens, row.Labels = tr.tokens()
	row.FLOPs = modelFLOPs(t.Source.Config, tr.run.Set.Len(), tr.samples[:t.Rows*t.Segments])
	if err := b.sampleSteps(ctx, s, tr, &row, o.Sustained); err != nil {
		row.Error = err.Error()
		return row, err
	}
	if held, ok := b.Probe.Memory(); ok {
		row.Memory = append(row.Memory, result.Memory{Category: result.MemoryProcess, Measured: held})
	}
	if o.Ops {
		if row.Ops, err = b.meter(ctx, tr); err != nil {
			return row, err
		}
	}
	if o.Memory {
		err = b.watched(ctx, s, t, choice.Saving, row.Memory)
	}
	return row, err
}

// watched runs a step on memory filled with a pattern, on a backend of its own, and fills in how far each category was
// written. Buffers that share places in the run lie apart then: where there is no room for that nothing is filled in.
func (b *Bench) watched(ctx context.Context, s *measure.Sampler, t Training, how qwen2.Saving, into []result.Memory) error {
	if err := b.fresh(s); err != nil {
		return err
	}
	tr, err := t.build(b.Backend, qwen2.Options{Saving: how, Watch: true}, nil)
	if doesNotFit(err) {
		b.say("memory: there is no room to watch it")
		return nil
	}
	if err != nil {
		return err
	}
	if err := tr.next(ctx); err != nil {
		return err
	}
	marks, err := tr.run.Model.HighWater()
	if err == nil {
		written(into, marks)
	}
	return err
}

// sampleSteps takes the samples, and the energy of all of them together.
func (b *Bench) sampleSteps(ctx context.Context, s *measure.Sampler, tr *trainer, row *result.Row, sustained time.Duration) error {
	rule := s.Rule
	defer func() { s.Rule = rule }()
	var track tracker
	steps, begun := 0, time.Now()
	if sustained > 0 {
		s.Rule = measure.Rule{Least: 10, Noise: -1, Most: 1 << 30, Time: sustained}
		track.every = max(sustained/trackMoments, time.Second)
	}
	before, metered := b.watch.Last()
	series, err := s.Sample(ctx, func() (float64, error) {
		from := time.Now()
		err := tr.next(ctx) // waits for the device: the adapter's norm is read
		seconds := time.Since(from).Seconds()
		steps++
		if sustained > 0 && err == nil {
			track.add(b.watch, begun, seconds)
			b.progress(int(time.Since(begun).Seconds()), int(sustained.Seconds()), fmt.Sprintf("%d steps", steps))
		}
		return seconds, err
	})
	if err != nil {
		return err
	}
	after, _ := b.watch.Last()
	named := series[0].Row(row.Name, row.Params)
	row.Seconds, row.MHz, row.Void, row.Track = named.Seconds, named.MHz, named.Void, track.moments
	if sustained == 0 {
		row.Cap = named.Cap
	}
	if joules := after.Energy - before.Energy; metered && joules > 0 {
		row.Joules = joules / float64(steps)
	}
	return nil
}

// trackMoments is into how many stretches a long run is cut at most.
const trackMoments = 200

// tracker cuts a long run into stretches.
type tracker struct {
	every   time.Duration
	moments []result.Moment
	sum     float64
	n       int
}

func (t *tracker) add(w *measure.Watch, begun time.Time, seconds float64) {
	t.sum += seconds
	t.n++
	if t.sum < t.every.Seconds() {
		return
	}
	m := result.Moment{At: time.Since(begun).Seconds(), Seconds: t.sum / float64(t.n)}
	if r, ok := w.Last(); ok {
		m.SMClock, m.Power, m.TempC = r.SMClock, r.Power, r.TempC
	}
	t.moments = append(t.moments, m)
	t.sum, t.n = 0, 0
}

// meter runs some steps more on a metered backend, and says where their time went.
func (b *Bench) meter(ctx context.Context, tr *trainer) ([]result.Op, error) {
	m := NewMeter(b.Backend, b.Probe)
	if err := tr.metered(ctx, m, metered); err != nil {
		return nil, err
	}
	return m.Ops(), nil
}

// metered runs n steps through m.
func (t *trainer) metered(ctx context.Context, m *Meter, n int) (err error) {
	plain := t.run.Backend
	t.run.Backend = m
	defer func() { t.run.Backend = plain }()
	t.run.Model.Through(m, func() {
		for i := 0; i < n && err == nil; i++ {
			if err = m.Begin(); err == nil {
				err = errors.Join(t.next(ctx), m.End())
			}
		}
	})
	return err
}
