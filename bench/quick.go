package bench

import (
	"context"
	"regexp"
	"slices"
	"time"

	"qlora/bench/result"
)

// QuickOptions are what a minute is spent on.
type QuickOptions struct {
	Training Training // of the step
	Kernels  []string // patterns: the first case of each is timed
	Small    bool     // small cases
	Progress func(done, total int64)
}

// QuickKernels are the five that a step of a 7B model spends most of its time in.
var QuickKernels = []string{`^Linear/7B.*3584->37888 ranks \[8`, `^LinearBack/7B.*3584->37888`, `^Attention/7B T2048 S1`, `^AttentionBack/7B T2048 S1`, `^RMSNormBack/7B.*ranks \[8`}

// Quick measures the roofs, some kernels, and one training step, in about a minute, and keeps nothing. Where the step does not
// fit that is the error, and the rest stands.
func (b *Bench) Quick(ctx context.Context, o QuickOptions) (*result.File, error) {
	s := b.start()
	s.Rule.Time = min(s.Rule.Time, time.Second)
	b.say("roofs: copy, read, compute")
	roofs, err := s.Roofs(ctx)
	var rows []result.Row
	var notes []string
	if err == nil {
		k := KernelOptions{Small: o.Small, Cold: true, Hot: true}
		all := b.timed(k)
		cases := all[:0:0]
		for _, pattern := range o.Kernels {
			match := regexp.MustCompile(pattern)
			for _, c := range all {
				if match.MatchString(c.Name) {
					cases = append(cases, c)
					break
				}
			}
		}
		rows, _, notes, err = b.kernels(ctx, s, slices.Clip(cases), k)
	}
	if err == nil {
		err = b.fresh(s)
	}
	if err == nil {
		s.Rule.Time = 5 * time.Second
		b.say("step: %s, %d tokens", o.Training.Name, o.Training.Tokens)
		var row result.Row
		row, err = b.step(ctx, s, o.Training, StepOptions{Ops: true, Progress: o.Progress})
		rows = append(rows, row)
	}
	return b.finish(result.Quick, rows, roofs, notes...), err
}
