// Package infer generates text: prompts into the KV cache, then a token a step for all sequences at once,
// by the sampling stages of transformers.
package infer

import (
	"cmp"
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
	First             uint32  // number of the first prompt: draws depend on Seed, a prompt's number and the place in its answer
	StopIDs           []int32 // end of turn; not part of the answer
	VocabLimit        int     // ids at or above it are padding rows of the vocabulary
}

// Reason says why a sequence ended.
type Reason string

const (
	Stop   Reason = "stop"    // a stop token, or Hooks.Token
	Length Reason = "length"  // MaxNewTokens
	Full   Reason = "context" // the context is full
)

// Answer is what was generated for one prompt.
type Answer struct {
	IDs    []int32
	Reason Reason
}

// Hooks are told what happens while prompts are answered. Either may be nil.
type Hooks struct {
	// Token sees each token as it comes, stop tokens excepted, and may end the answer, which keeps the token.
	Token func(prompt int, id int32) (stop bool)
	// Done sees each answer when it is whole, in the order in which they become so. Its error ends all.
	Done func(prompt int, a Answer) error
}

// Generator holds the sequences in a model's KV cache. A prompt that begins like what a sequence has in the cache, as
// the next turn of a chat does, only pays for its new tokens.
type Generator struct {
	b       ops.Backend
	m       *qwen2.Model
	context int
	cached  [][]int32 // ids whose keys and values each sequence has
}

// New returns a generator on a model built with a KV cache.
func New(b ops.Backend, m *qwen2.Model, sequences, context int) *Generator {
	return &Generator{b: b, m: m, context: context, cached: make([][]int32, sequences)}
}

// Context is how many tokens a prompt and its answer have room for.
func (g *Generator) Context() int { return g.context }

// Reset forgets what is cached, as after the adapter was changed.
func (g *Generator) Reset() {
	for i := range g.cached {
		g.cached[i] = nil
	}
}

// sequence is one prompt being answered.
type sequence struct {
	slot   int // of the cache
	number int // of the prompt
	ids    []int32
	prompt int // ids that are the prompt's
	done   Reason
}

func (s *sequence) answer() Answer { return Answer{IDs: s.ids[s.prompt:], Reason: s.done} }

// Generate answers prompts, as many together as there are sequences; when one has its answer, the next takes its place.
// Which are together changes no answer, to the bit, where the backend's sums of a token do not depend on the tokens beside
// it: of a card's those do not while at most 8 sequences are decoded, or else more than 8. When ctx ends, the answers so
// far are returned with its error.
func (g *Generator) Generate(ctx context.Context, prompts [][]int32, o Options, h Hooks) ([]Answer, error) {
	for i, p := range prompts {
		if err := g.Fits(p); err != nil {
			return nil, fmt.Errorf("prompt %d: %w", i+1, err)
		}
	}
	answers := make([]Answer, len(prompts))
	var live []*sequence
	for next := 0; next < len(prompts) || len(live) > 0; {
		for ; next < len(prompts) && len(live) < len(g.cached); next++ {
			s := &sequence{slot: g.free(live, prompts[next]), number: next, ids: slices.Clone(prompts[next]), prompt: len(prompts[next])}
			g.keep(s.slot, s.ids, len(prompts) == 1)
			live = append(live, s)
		}
		err := ctx.Err()
		if err == nil {
			err = g.step(g.together(live), o, h)
		}
		for _, s := range live {
			answers[s.number] = s.answer()
		}
		if err != nil {
			return answers, err
		}
		live = slices.DeleteFunc(live, func(s *sequence) bool { return s.done != "" })
	}
	return answers, nil
}

// Fits says why a prompt cannot be answered, if so.
func (g *Generator) Fits(prompt []int32) error {
	switch {
	case len(prompt) == 0:
		return errors.New("infer: a prompt has no tokens")
	case len(prompt) >= g.context:
		return &TooLong{len(prompt), g.context}
	}
	return nil
}

// TooLong is the error of a prompt that leaves no room for an answer.
type TooLong struct{ Tokens, Context int }

func (e *TooLong) Error() string {
	return fmt.Sprintf("the prompt has %d tokens, which leaves no room in a context of %d: shorten it, /reset the conversation, or raise --max_length", e.Tokens, e.Context)
}

// free is the slot that no live sequence has and whose cache begins most like a prompt.
func (g *Generator) free(live []*sequence, prompt []int32) int {
	best, most := -1, -1
	for slot, ids := range g.cached {
		if slices.ContainsFunc(live, func(s *sequence) bool { return s.slot == slot }) {
			continue
		}
		if n := commonPrefix(ids, prompt); n > most {
			best, most = slot, n
		}
	}
	return best
}

// keep leaves of what a slot has in the cache the beginning of a prompt that answers a conversation: all but the last
// token at most, whose logits are wanted. Where there are other prompts it leaves nothing, so that what was answered
// before in the slot cannot matter.
func (g *Generator) keep(slot int, prompt []int32, conversation bool) {
	common := 0
	if conversation {
		common = min(commonPrefix(g.cached[slot], prompt), len(prompt)-1)
	}
	g.cached[slot] = g.cached[slot][:common]
}

// PromptTokens is the room for tokens of prompts that are run together. A longer prompt goes on by the attention of
// decoding, which is slower.
const PromptTokens = 2048

// few is how many tokens backends may have products of their own for, which add in another order.
const few = 8

// together is what runs next: the first prompt that was not run yet, with those behind it that fit into one batch beside
// it; a long or a very short one alone. When all were, every sequence goes on by a token.
func (g *Generator) together(live []*sequence) []*sequence {
	var group []*sequence
	for _, s := range live {
		if len(s.ids) > s.prompt {
			continue
		}
		alone := s.prompt <= few || s.prompt > g.m.Batch.MaxT
		if len(group) > 0 && (alone || g.lacking(group)+s.prompt > g.m.Batch.MaxT) {
			break
		}
		group = append(group, s)
		if alone {
			break
		}
	}
	if group == nil {
		return live
	}
	return group
}

// step gives every sequence of a group its next token.
func (g *Generator) step(group []*sequence, o Options, h Hooks) error {
	for g.lacking(group) > g.m.Batch.MaxT { // too much for one batch: the last tokens wait
		if err := g.batch(group, 1); err != nil {
			return err
		}
	}
	if err := g.batch(group, 0); err != nil {
		return err
	}
	next, err := g.draw(group, o)
	if err != nil {
		return err
	}
	for i, s := range group {
		g.take(s, next[i], o, h)
		if s.done != "" && h.Done != nil {
			if err := h.Done(s.number, s.answer()); err != nil {
				return err
			}
		}
	}
	return nil
}

// take appends a drawn token to its sequence, or ends it.
func (g *Generator) take(s *sequence, id int32, o Options, h Hooks) {
	if slices.Contains(o.StopIDs, id) {
		s.done = Stop
		return
	}
	s.ids = append(s.ids, id)
	switch stopped := h.Token != nil && h.Token(s.number, id); {
	case stopped:
		s.done = Stop
	case len(s.ids) >= g.context:
		s.done = Full
	case o.MaxNewTokens > 0 && len(s.ids)-s.prompt >= o.MaxNewTokens:
		s.done = Length
	}
}

// lacking is how many tokens of sequences are not in the cache.
func (g *Generator) lacking(some []*sequence) (n int) {
	for _, s := range some {
		n += len(s.ids) - len(g.cached[s.slot])
	}
	return n
}

// batch runs, as far as there is room, what the sequences lack in the cache, less the last hold tokens of each. With
// hold 0 everything fits, and Logits are those of the last tokens.
func (g *Generator) batch(group []*sequence, hold int) error {
	h := ops.HostBatch{SegStart: []int32{0}}
	fresh := true
	for _, s := range group {
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
	return nil
}

// draw picks the next token of every sequence of a group from Logits. Greedy search takes all rows at once; of draws,
// those that are equally far in their answers.
func (g *Generator) draw(group []*sequence, o Options) ([]int32, error) {
	place := func(s *sequence) uint32 { return uint32(len(s.ids) - s.prompt) }
	next := g.m.Next.Rows(0, len(group))
	for from, to := 0, 0; from < len(group); from = to {
		for to = from + 1; to < len(group) && (o.Temperature == 0 || place(group[to]) == place(group[from])); to++ {
		}
		n := to - from
		args := ops.SampleArgs{Temperature: o.Temperature, TopK: o.TopK, TopP: o.TopP, RepetitionPenalty: o.RepetitionPenalty,
			Limit: o.VocabLimit, Seed: o.Seed, Step: place(group[from]), Context: make([][]int32, n), Sequence: make([]uint32, n)}
		for i, s := range group[from:to] {
			args.Context[i], args.Sequence[i] = s.ids, o.First+uint32(s.number)
		}
		g.b.Sample(next.Rows(from, to), g.m.Logits.Rows(from, to), args)
	}
	drawn, err := ops.ReadI32(g.b, next)
	if err := cmp.Or(g.b.Sync(), err); err != nil {
		return nil, err
	}
	if i := slices.Index(drawn, -1); i >= 0 {
		return nil, fmt.Errorf("infer: the logits of prompt %d have no finite largest value: the model's output is broken", group[i].number+1)
	}
	return drawn, nil
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
