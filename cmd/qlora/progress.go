package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"qlora/model/train"
)

// progress shows a run on standard error: a line that is written over on a terminal, lines of the
// log elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	open     bool // the line on the terminal is not finished
	last     train.Progress
}

func newProgress(e *env) *progress { return &progress{w: e.err, terminal: isTerminal(e.err)} }

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (p *progress) step(s train.Progress) {
	p.last = s
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[Kstep %d/%d  loss %.4f  %.0f tokens/s  left %s", s.Step, s.MaxSteps, s.Loss, s.TokensPerSec, clock(s.Left))
		p.open = true
	}
}

// loading shows how much of the weights is in memory.
func (p *progress) loading(done, total int64) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[Kloading the weights: %d %%", 100*done/max(total, 1))
		p.open = true
	}
}

// record prints a line of the log in words.
func (p *progress) record(r train.Record) {
	p.end()
	switch {
	case r.EvalLoss != nil:
		fmt.Fprintf(p.w, "step %d  eval_loss %.4f  eval_token_acc %.4f\n", r.Step, *r.EvalLoss, *r.EvalTokenAcc)
	case r.Loss != nil:
		fmt.Fprintf(p.w, "step %d/%d  epoch %.2f  loss %.4f  grad_norm %.4f  lr %.3g  %.0f tokens/s  left %s\n",
			r.Step, p.last.MaxSteps, r.Epoch, *r.Loss, *r.GradNorm, *r.LearningRate, p.last.TokensPerSec, clock(p.last.Left))
	}
}

// end finishes the line on the terminal.
func (p *progress) end() {
	if p.open {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.open = false
	}
}

func clock(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}
