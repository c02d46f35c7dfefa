package bench

import (
	"errors"

	"qlora/bench/result"
	"qlora/model/lora"
	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/plan"
	"qlora/model/qwen2"
)

// Room is the memory there is for runs on a device.
type Room struct {
	Free    int64     // for a run's one block
	Host    int64     // that may be pinned in the host's memory; 0: none
	Context int64     // what the process takes of the device beside the block, at most
	Card    plan.Card // whose times decide between ways of keeping less
}

// room asks for the backend's.
func (b *Bench) room() (Room, error) {
	if b.Room == nil {
		return Room{Free: 1 << 62, Card: plan.Processor}, nil
	}
	return b.Room(b.Backend)
}

// within is the room of a process that may hold so much; 0: all there is.
func (r Room) within(budget int64) Room {
	if budget > 0 {
		r.Free = min(r.Free, budget-r.Context)
	}
	return r
}

// request is the run as it is planned.
func (t Training) request(sizes ops.Sizes, r Room) (plan.Request, error) {
	set, err := lora.New(t.Source.Config, t.Adapter)
	if err != nil {
		return plan.Request{}, err
	}
	return plan.Request{Sizes: sizes, Card: r.Card, Src: t.Source, Options: t.options(set), Batch: plan.Row(t.Tokens/t.Segments, t.Segments, t.Labels),
		Budget: max(r.Free, 1), HostBudget: r.Host}, nil
}

// options are those of the model in memory.
func (t Training) options(set *lora.Set) qwen2.Options {
	return qwen2.Options{DType: t.DType, Training: true, MaxT: t.Tokens, MaxS: t.Segments + 1, MaxN: t.Tokens, Adapter: set}
}

// choose plans the run: what it keeps less of to fit, as sft does.
func (t Training) choose(sizes ops.Sizes, r Room) (*plan.Choice, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	request, err := t.request(sizes, r)
	if err != nil {
		return nil, err
	}
	return plan.Choose(request)
}

// fallbacks are what a choice keeps less of.
func fallbacks(c *plan.Choice) (all []string) {
	for _, f := range c.Fallbacks {
		all = append(all, f.What)
	}
	return all
}

// planned are a plan's categories, each at its fullest moment, and the block that holds them all.
func planned(p memory.Plan) []result.Memory {
	var all []result.Memory
	for _, c := range memory.Categories() {
		if bytes := memory.Peak(p.Buffers, c, ops.Align); bytes > 0 {
			all = append(all, result.Memory{Category: c.String(), Planned: bytes})
		}
	}
	if p.HostBytes > 0 {
		all = append(all, result.Memory{Category: result.MemoryHost, Planned: p.HostBytes})
	}
	return append(all, result.Memory{Category: result.MemoryArena, Planned: p.Bytes})
}

// written fills in how far the categories were written.
func written(all []result.Memory, marks []qwen2.Mark) {
	for _, c := range memory.Categories() {
		_, bytes := qwen2.Peaks(marks, c)
		for i := range all {
			if all[i].Category == c.String() {
				all[i].Measured = bytes
			}
		}
	}
}

// doesNotFit says that a run was refused because there is no room for it.
func doesNotFit(err error) bool {
	var none *plan.NoFit
	var full interface{ NoFit() }
	return errors.As(err, &none) || errors.As(err, &full)
}
