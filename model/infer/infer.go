// Package infer generates text: prompts into the KV cache, then a token a step for all sequences at once,
// by the sampling stages of transformers.
package infer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"qlora/model/ops"
	"qlora/model/qwen2"
)

// Options of a generation. Zero values switch a sampling stage off.
type Options struct {
	MaxNewTokens      int // 0: until the context is full
	Temperature       float64
	TopK              int
	TopP              float64
	RepetitionPenalty float64
	Seed              uint32
	StopIDs           []int32 // end of turn; not part of the answer
	VocabLimit        int     // ids at or above it are padding rows of the vocabulary
}

// Reason says why a sequence ended.
type Reason string

const (
	Stop   Reason = "stop"   // a stop token
	Length Reason = "length" // MaxNewTokens, or the context is full
)

// Answer is what was generated for one prompt.
type Answer struct {
	IDs    []int32
	Reason Reason
}

// Generator holds the sequences in a model's KV cache. A later prompt that begins like what a sequence
// has in the cache, as the next turn of a chat does, only pays for its new tokens.
type Generator struct {
	b       ops.Backend
	m       *qwen2.Model
	context int
	cached  [][]int32 // ids whose keys and values each sequence has
	draws   uint32    // tokens drawn so far: the step of SampleUniform
}

// New returns a generator on a model built with a KV cache.
func New(b ops.Backend, m *qwen2.Model, sequences, context int) *Generator {
	return &Generator{b: b, m: m, context: context, cached: make([][]int32, sequences)}
}

// Reset forgets what is cached, as after the adapter was changed.
func (g *Generator) Reset() {
	for i := range g.cached {
		g.cached[i] = nil
	}
}

// sequence is one prompt being answered.
type sequence struct {
	slot   int
	ids    []int32 // prompt and answer
	prompt int
	done   Reason
}

// Generate answers prompts, at most as many as there are sequences. emit, which may be nil, sees each
// token as it comes, stop tokens excepted. When ctx ends, the answers so far are returned with its error.
func (g *Generator) Generate(ctx context.Context, prompts [][]int32, o Options, emit func(prompt int, id int32)) ([]Answer, error) {
	if len(prompts) == 0 || len(prompts) > len(g.cached) {
		return nil, fmt.Errorf("infer: %d prompts for %d sequences", len(prompts), len(g.cached))
	}
	seqs := make([]*sequence, len(prompts))
	for i, p := range prompts {
		switch {
		case len(p) == 0:
			return nil, errors.New("infer: a prompt has no tokens")
		case len(p) >= g.context:
			return nil, fmt.Errorf("the prompt has %d tokens, which leaves no room in a context of %d: shorten it, /clear the history, or raise --max_length", len(p), g.context)
		}
		seqs[i] = &sequence{slot: i, ids: slices.Clone(p), prompt: len(p)}
	}
	err := g.run(ctx, seqs, o, emit)
	answers := make([]Answer, len(seqs))
	for i, s := range seqs {
		answers[i] = Answer{IDs: s.ids[s.prompt:], Reason: s.done}
	}
	return answers, err
}

func (g *Generator) run(ctx context.Context, seqs []*sequence, o Options, emit func(int, int32)) error {
	for live := seqs; len(live) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := g.feed(live); err != nil {
			return err
		}
		next, err := g.draw(live, o)
		if err != nil {
			return err
		}
		var still []*sequence
		for i, s := range live {
			g.take(s, next[i], o, emit)
			if s.done == "" {
				still = append(still, s)
			}
		}
		live = still
	}
	return nil
}

// take appends a drawn token to its sequence, or ends it.
func (g *Generator) take(s *sequence, id int32, o Options, emit func(int, int32)) {
	if slices.Contains(o.StopIDs, id) {
		s.done = Stop
		return
	}
	s.ids = append(s.ids, id)
	if emit != nil {
		emit(s.slot, id)
	}
	if len(s.ids) >= g.context || o.MaxNewTokens > 0 && len(s.ids)-s.prompt >= o.MaxNewTokens {
		s.done = Length
	}
}

// feed runs the tokens of live sequences that are not in the cache yet, so that Logits has a row for
// the last token of each.
func (g *Generator) feed(live []*sequence) error {
	for _, s := range live {
		// The last token is always run: its logits are wanted.
		common := min(commonPrefix(g.cached[s.slot], s.ids), len(s.ids)-1)
		g.cached[s.slot] = g.cached[s.slot][:common]
	}
	for {
		left := 0
		for _, s := range live {
			left += len(s.ids) - len(g.cached[s.slot])
		}
		if left <= g.m.Batch.MaxT {
			return g.batch(live, 0)
		}
		if err := g.batch(live, 1); err != nil { // too much for one batch: the last tokens wait
			return err
		}
	}
}

// batch runs, as far as there is room, what the sequences lack in the cache, less the last hold tokens of
// each. With hold 0 everything fits, and Logits are those of the last tokens.
func (g *Generator) batch(live []*sequence, hold int) error {
	h := ops.HostBatch{SegStart: []int32{0}}
	fresh := true
	for _, s := range live {
		from := len(g.cached[s.slot])
		to := min(len(s.ids)-hold, from+g.m.Batch.MaxT-len(h.IDs))
		if to <= from {
			continue
		}
		fresh = fresh && from == 0
		for p := from; p < to; p++ {
			h.IDs, h.Pos, h.Sample = append(h.IDs, s.ids[p]), append(h.Pos, int32(p)), append(h.Sample, int32(s.slot))
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
		if hold == 0 {
			h.Rows, h.Targets = append(h.Rows, int32(len(h.IDs)-1)), append(h.Targets, 0)
		}
		g.cached[s.slot] = append(g.cached[s.slot], s.ids[from:to]...)
	}
	if err := g.m.Load(h); err != nil {
		return err
	}
	if fresh {
		g.m.Prefill()
	} else {
		g.m.Decode()
	}
	return g.b.Sync()
}

// draw picks the next token of every live sequence from Logits.
func (g *Generator) draw(live []*sequence, o Options) ([]int32, error) {
	n := len(live)
	args := ops.SampleArgs{Temperature: o.Temperature, TopK: o.TopK, TopP: o.TopP, RepetitionPenalty: o.RepetitionPenalty,
		Limit: o.VocabLimit, Seed: o.Seed, Step: g.draws, Context: make([][]int32, n), Sequence: make([]uint32, n)}
	for i, s := range live {
		args.Context[i], args.Sequence[i] = s.ids, uint32(s.slot)
	}
	g.draws++
	next := g.m.Next.Rows(0, n)
	g.b.Sample(next, g.m.Logits.Rows(0, n), args)
	return ops.ReadI32(g.b, next)
}

func commonPrefix(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
