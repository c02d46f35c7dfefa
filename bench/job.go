package bench

import (
	"context"
	"time"

	"qlora/bench/result"
)

// Phase is a part of a job that is timed as a whole. It may time parts of its own: the seconds by name, in order.
type Phase struct {
	Name string
	Run  func(ctx context.Context) ([]Part, error)
}

// Part is a stretch of a phase.
type Part struct {
	Name    string
	Seconds float64
	Tokens  int
}

// Article is the job this harness repeats, as the article measured it on one RTX 4090D: fine-tuning Qwen2.5-7B-Instruct by
// LoRA on 50 rows over 10 epochs.
var Article = []Part{{Name: "load", Seconds: 42}, {Name: "tokenise", Seconds: 8}, {Name: "train", Seconds: 4*60 + 36}, {Name: "save", Seconds: 19}}

// Job runs the phases of a job one after the other, each once: it is the job that is timed, not its repetition. Rows are
// phases or their parts, in order, and "job" at the end, all of it.
func (b *Bench) Job(ctx context.Context, params map[string]string, phases []Phase) (*result.File, error) {
	b.start()
	var rows []result.Row
	var err error
	begun := time.Now()
	var held int64 // by the process, at most: a phase may give back what one before it took
	row := func(name string, seconds float64, tokens int) {
		rows = append(rows, result.Row{Name: name, Params: params, Seconds: result.Samples{seconds}, Tokens: tokens})
	}
	for _, p := range phases {
		b.say("job: %s", p.Name)
		from := time.Now()
		var parts []Part
		if parts, err = p.Run(ctx); err != nil {
			break
		}
		if len(parts) == 0 {
			parts = []Part{{Name: p.Name, Seconds: time.Since(from).Seconds()}}
		}
		for _, part := range parts {
			row(part.Name, part.Seconds, part.Tokens)
		}
		if now, ok := b.Probe.Memory(); ok {
			held = max(held, now)
		}
	}
	if err == nil {
		row("job", time.Since(begun).Seconds(), 0)
		if held > 0 {
			rows[len(rows)-1].Memory = []result.Memory{{Category: result.MemoryProcess, Measured: held}}
		}
	}
	return b.finish(result.Job, rows, nil), err
}
