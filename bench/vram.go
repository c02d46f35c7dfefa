package bench

import (
	"cmp"
	"context"
	"fmt"
	"maps"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/ops"
	"qlora/model/plan"
	"qlora/model/qwen2"
)

// VRAMOptions are a grid of trainings.
type VRAMOptions struct {
	Trainings []Training
	Budgets   []int64 // bytes a process may hold: small cards emulated on larger ones
	Measure   bool    // also run two steps of each that fits, ask what the process holds, and how far each category is written
}

// VRAM lays every training of the grid out, and says how long a row each budget holds at most.
func (b *Bench) VRAM(ctx context.Context, o VRAMOptions) (*result.File, error) {
	s := b.start()
	var rows []result.Row
	beside := int64(0) // the block, in the process
	room, err := b.room()
	var possible []Training
	for i, t := range o.Trainings {
		if err != nil || ctx.Err() != nil {
			break
		}
		b.progress(i, len(o.Trainings), fmt.Sprintf("%s, %s, %d tokens", t.Name, t.method(), t.Tokens))
		row := result.Row{Name: "vram", Params: t.params()}
		choice, none := t.choose(b.Backend, Room{Free: 1 << 62, Card: room.Card})
		if none != nil { // a model that the grid asks too much of: its other points stand
			row.Error = none.Error()
			rows = append(rows, row)
			continue
		}
		possible = append(possible, t)
		row.Memory = planned(choice.Plan)
		if o.Measure {
			var held int64
			held, err = b.held(ctx, s, t, row.Memory)
			switch {
			case doesNotFit(err):
				row.Error, err = err.Error(), nil
			case err == nil && held > 0:
				row.Memory = append(row.Memory, result.Memory{Category: result.MemoryProcess, Measured: held})
				beside = max(beside, held-choice.Plan.Bytes)
			}
		}
		rows = append(rows, row)
	}
	b.progress(len(o.Trainings), len(o.Trainings), "")
	if err = cmp.Or(err, ctx.Err()); err == nil {
		rows, err = b.fits(rows, possible, o.Budgets, room)
	}
	var notes []string
	if room.Context > 0 {
		notes = append(notes, fmt.Sprintf("budgets are of the process, which may take %.2f GiB beside its block", gib(room.Context)))
	}
	if beside > 0 {
		notes = append(notes, fmt.Sprintf("beside its block a process held %.2f GiB at most", gib(beside)))
	}
	return b.finish(result.VRAM, rows, nil, notes...), err
}

// held runs two steps with nothing made again, and says what the process holds then; 0 where it cannot be told. It fills in
// how far the memory was written.
func (b *Bench) held(ctx context.Context, s *measure.Sampler, t Training, into []result.Memory) (int64, error) {
	if err := b.fresh(s); err != nil {
		return 0, err
	}
	tr, err := t.build(b.Backend, qwen2.Options{}, nil)
	if err != nil {
		return 0, err
	}
	for range 2 {
		if err := tr.next(ctx); err != nil {
			return 0, err
		}
	}
	held, _ := b.Probe.Memory()
	return held, b.watched(ctx, s, t, qwen2.Saving{}, into)
}

// fits adds two rows a model, method and budget: the longest row of one sample that fits, with nothing made again and with
// whatever it takes. Their Tokens say how long.
func (b *Bench) fits(rows []result.Row, trainings []Training, budgets []int64, room Room) ([]result.Row, error) {
	seen := map[string]bool{}
	for _, t := range trainings {
		for _, budget := range budgets {
			t.Budget, t.Segments, t.Rows, t.Labels = budget, 1, 1, 1
			p := t.params()
			delete(p, "tokens")
			key := fmt.Sprint(p)
			if seen[key] {
				continue
			}
			seen[key] = true
			within := room
			within.Free = budget - room.Context // of whatever card: one larger than this too
			request, err := t.request(b.Backend, within)
			if err != nil {
				return rows, err
			}
			plain, frugal, err := plan.Longest(request, func(T int) ops.HostBatch { return plan.Row(T, 1, 1) })
			if err != nil {
				return rows, err
			}
			rows = append(rows, t.longest(maps.Clone(p), "no", plain), t.longest(p, "yes", frugal))
		}
	}
	return rows, nil
}

// longest is the row of a longest row. No sample is longer than the model was made for.
func (t Training) longest(p map[string]string, again string, tokens int) result.Row {
	p["made again"] = again
	row := result.Row{Name: "longest row", Params: p, Budget: t.Budget, Tokens: tokens}
	if most := t.Source.Config.MaxPositionEmbeddings; most > 0 {
		row.Tokens = min(tokens, most)
	}
	if tokens == 0 {
		row.Error = fmt.Sprintf("no row fits in %.4g GiB", gib(t.Budget))
	}
	return row
}
