package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/infer"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// DecodeOptions say how generation is measured.
type DecodeOptions struct {
	Name      string
	Source    *weights.Model
	DType     ops.DType
	Adapter   *lora.Config // nil: the base alone
	Sequences []int        // answered together: a row each
	Prompt    int          // tokens of a prompt
	New       int          // tokens that follow
	Roofs     bool
	Progress  func(done, total int64)
}

// Decodings measures generation through infer, sampling and copies to the host included: two rows a number of sequences,
// the prompts ("prefill"), and a token for every sequence ("decode"), whose Bytes are what it must read.
func (b *Bench) Decodings(ctx context.Context, o DecodeOptions) (*result.File, error) {
	s := b.start()
	var roofs []result.Roof
	var rows []result.Row
	var err error
	if o.Prompt < 1 || o.New < 2 {
		err = errors.New("a prompt has at least 1 token, and at least 2 follow")
	} else if o.Roofs {
		b.say("roofs: copy, read, compute")
		roofs, err = s.Roofs(ctx)
	}
	for _, n := range o.Sequences {
		if err != nil {
			break
		}
		if err = b.fresh(s); err != nil {
			break
		}
		b.say("decode: %s, %d sequences, %d tokens and %d more", o.Name, n, o.Prompt, o.New)
		var some []result.Row
		some, err = b.decode(ctx, s, o, n)
		rows = append(rows, some...)
	}
	return b.finish(result.Decode, rows, roofs), err
}

// decode measures one number of sequences.
func (b *Bench) decode(ctx context.Context, s *measure.Sampler, o DecodeOptions, sequences int) ([]result.Row, error) {
	positions := o.Prompt + o.New
	room := max(min(infer.PromptTokens, sequences*o.Prompt), sequences)
	q := qwen2.Options{DType: o.DType, MaxT: room, MaxS: room, MaxN: room, Sequences: sequences, Context: positions, Progress: o.Progress}
	params := map[string]string{"model": o.Name, "method": Training{DType: o.DType}.method(), "sequences": strconv.Itoa(sequences), "prompt": strconv.Itoa(o.Prompt), "new": strconv.Itoa(o.New)}
	var set *lora.Set
	if o.Adapter != nil {
		var err error
		if set, err = lora.New(o.Source.Config, *o.Adapter); err != nil {
			return nil, err
		}
		set.SetDropout(false)
		q.Adapter = set
		params["rank"] = strconv.Itoa(o.Adapter.R)
	}
	m, err := qwen2.Build(b.Backend, o.Source, q)
	if doesNotFit(err) {
		return []result.Row{{Name: "decode", Params: params, Error: err.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	if set != nil {
		if err := ops.WriteF32(b.Backend, m.Params, set.Init(seed)); err != nil {
			return nil, err
		}
		m.ParamsChanged()
	}
	prompts := randomPrompts(sequences, o.Prompt, o.Source.Config.VocabSize)
	g := infer.New(b.Backend, m, sequences, positions)
	prefill, decode, err := b.generate(ctx, s, g, prompts, o.New)
	if err != nil {
		return nil, err
	}
	rows := []result.Row{
		{Name: "prefill", Params: params, Seconds: prefill.Seconds, MHz: prefill.MHz, Cap: prefill.Cap, Void: prefill.Void, Tokens: sequences * o.Prompt},
		{Name: "decode", Params: params, Seconds: decode.Seconds, MHz: decode.MHz, Cap: decode.Cap, Void: decode.Void, Tokens: sequences, Joules: decode.joules, Memory: planned(m.Plan)},
	}
	if held, ok := b.Probe.Memory(); ok {
		rows[1].Memory = append(rows[1].Memory, result.Memory{Category: result.MemoryProcess, Measured: held})
	}
	rows[1].Ops, err = b.meterDecode(ctx, m, g, prompts, o.New)
	for _, op := range rows[1].Ops {
		rows[1].FLOPs += op.FLOPs
		rows[1].Bytes += op.Bytes
	}
	return rows, err
}

// randomPrompts are as many of one length.
func randomPrompts(n, length, vocab int) [][]int32 {
	r := rand.New(rand.NewPCG(seed, seed))
	all := make([][]int32, n)
	for i := range all {
		for range length {
			all[i] = append(all[i], r.Int32N(int32(vocab)))
		}
	}
	return all
}

// generated is a series of tokens, and the energy of one.
type generated struct {
	measure.Series
	joules float64
}

// generate answers the prompts again and again. A sample of decode is the mean step of one answer but its first: single
// steps are too short for the host's clock.
func (b *Bench) generate(ctx context.Context, s *measure.Sampler, g *infer.Generator, prompts [][]int32, n int) (prefill, decode generated, err error) {
	var steps, firsts result.Samples
	answer := func() (float64, error) {
		g.Reset()
		first, seconds, err := timedAnswer(ctx, g, prompts, n)
		firsts, steps = append(firsts, first), append(steps, seconds)
		return seconds, err
	}
	if _, err = answer(); err != nil { // the first pays for what is done once
		return
	}
	firsts, steps = nil, nil
	before, metered := b.watch.Last()
	series, err := s.Sample(ctx, answer)
	if err != nil {
		return
	}
	after, _ := b.watch.Last()
	decode.Series = series[0]
	prefill.Series = measure.Series{Seconds: firsts, Cap: series[0].Cap}
	if joules := after.Energy - before.Energy; metered && joules > 0 {
		share := sum(steps) * float64(n-1) / (sum(steps)*float64(n-1) + sum(firsts))
		decode.joules = joules * share / float64(len(steps)*(n-1))
	}
	return
}

func sum(v []float64) float64 {
	s := 0.0
	for _, x := range v {
		s += x
	}
	return s
}

// timedAnswer is the seconds to the first token of all sequences, and of a step after it.
func timedAnswer(ctx context.Context, g *infer.Generator, prompts [][]int32, n int) (first, step float64, err error) {
	begun, last := time.Now(), len(prompts)-1
	var at []time.Time
	answers, err := g.Generate(ctx, prompts, infer.Options{MaxNewTokens: n}, infer.Hooks{Token: func(prompt int, _ int32) bool {
		if prompt == last {
			at = append(at, time.Now())
		}
		return false
	}})
	if err != nil {
		return 0, 0, err
	}
	if len(at) != n || len(answers[last].IDs) != n {
		return 0, 0, fmt.Errorf("bench: %d tokens came of %d", len(at), n)
	}
	return at[0].Sub(begun).Seconds(), at[n-1].Sub(at[0]).Seconds() / float64(n-1), nil
}

// meterDecode says where the time of a step goes, in the mean of one more answer but its prompts.
func (b *Bench) meterDecode(ctx context.Context, m *qwen2.Model, g *infer.Generator, prompts [][]int32, n int) ([]result.Op, error) {
	meter := NewMeter(b.Backend, b.Probe)
	wrapped := infer.New(meter, m, len(prompts), len(prompts[0])+n)
	var failed error
	note := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	emitted := 0
	m.Through(meter, func() {
		_, err := wrapped.Generate(ctx, prompts, infer.Options{MaxNewTokens: n}, infer.Hooks{Token: func(prompt int, _ int32) bool {
			if prompt != len(prompts)-1 {
				return false
			}
			if emitted++; emitted > 1 {
				note(meter.End())
			}
			if emitted < n {
				note(meter.Begin())
			}
			return false
		}})
		note(err)
	})
	return meter.Ops(), failed
}
