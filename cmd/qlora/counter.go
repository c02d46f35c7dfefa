package main

import (
	"fmt"
	"io"
	"time"
)

// counter shows how much of a long piece of work is done and when it will be: a line that is written over on a
// terminal, elsewhere a line now and then.
type counter struct {
	w        io.Writer
	terminal bool
	what     string
	total    int64
	unit     func(int64) string

	done, before int64 // before: what was done already when the work began
	begun, shown time.Time
	open         bool
}

// How long a counter waits between two lines: on a terminal, and elsewhere.
const oftenTerminal, oftenLog = 100 * time.Millisecond, 10 * time.Second

// newCounter begins to count to total, of which before is done.
func newCounter(e *env, what string, before, total int64, unit func(int64) string) *counter {
	now := time.Now()
	c := &counter{w: e.err, terminal: isTerminal(e.err), what: what, total: total, unit: unit, done: before, before: before, begun: now, shown: now}
	if c.terminal {
		c.shown = time.Time{}
	}
	return c
}

// at says how much is done in all.
func (c *counter) at(done int64) {
	c.done = done
	often := oftenLog
	if c.terminal {
		often = oftenTerminal
	}
	if now := time.Now(); now.Sub(c.shown) >= often {
		c.shown = now
		c.print()
	}
}

func (c *counter) print() {
	line := fmt.Sprintf("%s: %s of %s", c.what, c.unit(c.done), c.unit(c.total))
	if c.total > 0 {
		line += fmt.Sprintf(" (%d %%)", 100*c.done/c.total)
	}
	if spent := time.Since(c.begun).Seconds(); c.done > c.before && spent > 0 {
		rate := float64(c.done-c.before) / spent
		line += fmt.Sprintf("  %s/s  left %s", c.unit(int64(rate)), clock(float64(c.total-c.done)/rate))
	}
	if c.terminal {
		fmt.Fprintf(c.w, "\r\x1b[K%s", line)
		c.open = true
		return
	}
	fmt.Fprintln(c.w, line)
}

// end clears the line on a terminal.
func (c *counter) end() {
	if c.open {
		fmt.Fprint(c.w, "\r\x1b[K")
		c.open = false
	}
}

// rows is a unit that needs no name.
func rows(n int64) string { return fmt.Sprint(n) }

// megabytes is the unit of files.
func megabytes(n int64) string {
	if n >= 1e9 {
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
