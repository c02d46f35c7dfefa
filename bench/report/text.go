package report

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"qlora/bench/compare"
	"qlora/bench/result"
	"qlora/bench/stat"
)

// Print writes a file's tables.
func Print(w io.Writer, f *result.File, markdown bool) error {
	fmt.Fprintf(w, "%s\n\n", heading(f))
	for _, g := range Grids(f) {
		write := g.Text
		if markdown {
			write = g.Markdown
		}
		if err := write(w); err != nil {
			return err
		}
	}
	for _, n := range f.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	_, err := fmt.Fprint(w, conditions(f))
	return err
}

// heading is one line of where and when.
func heading(f *result.File) string {
	e := f.Environment
	parts := []string{e.Device()}
	if c := e.Card; c != nil && c.Driver != "" {
		parts = append(parts, "driver "+c.Driver, fmt.Sprintf("%.0f W", c.PowerLimit))
	}
	if e.Kernels != "" {
		parts = append(parts, e.Kernels)
	}
	commit := cmp.Or(e.Program.Commit, "unknown")
	if e.Program.Dirty {
		commit += " with changes"
	}
	return strings.Join(append(parts, "commit "+commit, f.Time.Format("2006-01-02")), ", ")
}

// conditions are the sensors of the run, in a line.
func conditions(f *result.File) string {
	w := f.Watch
	if w.Readings == 0 {
		return ""
	}
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if w.SMClock.Max > 0 {
		add("%.0f MHz (%.0f to %.0f)", w.SMClock.Median, w.SMClock.Min, w.SMClock.Max)
	}
	if w.Power.Max > 0 {
		add("%.0f W (up to %.0f)", w.Power.Median, w.Power.Max)
	}
	if w.TempC.Max > 0 {
		add("%.0f C at most", w.TempC.Max)
	}
	for _, reason := range sortedKeys(w.Throttled) {
		add("%s in %s of the readings", reason, share(w.Throttled[reason]))
	}
	if len(parts) == 0 {
		return ""
	}
	return "sensors: " + strings.Join(parts, ", ") + "\n"
}

// Grids are the tables of a file.
func Grids(f *result.File) []Grid {
	var all []Grid
	if g := roofGrid(f); len(g.Rows) > 0 {
		all = append(all, g)
	}
	if g := kernelGrid(f); len(g.Rows) > 0 {
		all = append(all, g)
	}
	if g := stepGrid(f); len(g.Rows) > 0 {
		all = append(all, g)
	}
	for _, s := range Steps(f) {
		if len(s.Row.Ops) > 0 {
			all = append(all, phaseGrid(s.Row), opGrid(s.Row, f))
		}
		if len(s.Row.Memory) > 0 && len(f.Rows) <= 8 {
			all = append(all, memoryGrid(s.Row))
		}
	}
	all = append(all, vramGrids(f)...)
	all = append(all, decodeGrids(f)...)
	if f.Kind == result.Job {
		all = append(all, jobGrid(f))
	}
	return append(all, errorGrid(f)...)
}

func roofGrid(f *result.File) Grid {
	g := Grid{Title: "What this device does at most, by our own probes", Head: []string{"roof", "median", "noise", "W"}, Left: 1}
	for _, r := range f.Roofs {
		g.add(r.Name, rate(r.Rate())+r.Unit, share(r.Row.Summary().Noise()), amount(r.Power))
	}
	return g
}

func kernelGrid(f *result.File) Grid {
	g := Grid{Title: "Kernels", Head: []string{"case", "caches", "median", "p10", "p90", "95 % interval", "FLOP/s", "B/s", "of roof", "x library", "n"}, Left: 2}
	library := ""
	capped := 0
	for _, k := range Kernels(f) {
		n := fmt.Sprint(k.N)
		if k.Row.Cap != "" {
			n += "*"
			capped++
		}
		library = cmp.Or(library, k.Library)
		g.add(k.Name, k.Cache, seconds(k.Median), seconds(k.P10), seconds(k.P90), interval(k.Summary), rate(k.FLOPs), rate(k.Bytes), share(k.Roof), amount(k.Ratio), n)
	}
	var notes []string
	if capped > 0 {
		notes = append(notes, fmt.Sprintf("* %d rows ended by a cap before the noise was low enough: their intervals say how well they are known.", capped))
	}
	if library != "" {
		notes = append(notes, "x library: how many times as fast as "+library+", in turns with it.")
	}
	g.Note = strings.Join(notes, "\n")
	return g
}

func interval(s stat.Summary) string { return seconds(s.Lo) + " .. " + seconds(s.Hi) }

func stepGrid(f *result.File) Grid {
	g := Grid{Title: "Training steps", Head: []string{"model", "method", "tokens a step", "median", "95 % interval", "tokens/s", "label tokens/s", "FLOP/s", "MFU", "of datasheet", "J/token", "arena", "process", "n"}, Left: 3}
	var notes []string
	for _, s := range Steps(f) {
		g.add(model(s.Model), method(s.Row), shapeText(s.Row), seconds(s.Median), interval(s.Summary), count(s.Tokens), count(s.Labels), rate(s.FLOPs), share(s.MFU), share(s.Sheet),
			amount(s.Joules), gib(s.Arena), gib(s.Process), fmt.Sprint(s.N))
		if less := s.Row.KeepsLess; len(less) > 0 {
			notes = append(notes, fmt.Sprintf("%s, %s, %s tokens, keeps less to fit: %s.", model(s.Model), method(s.Row), shapeText(s.Row), strings.Join(less, "; ")))
		}
	}
	g.Note = strings.Join(notes, "\n")
	return g
}

// method is how a row trains, in words.
func method(r result.Row) string {
	p := r.Params
	words := []string{cmp.Or(p["trainer"], p["method"], p["run"])}
	if rank := p["rank"]; rank != "" {
		words = append(words, "r "+rank)
	}
	if t := p["targets"]; t != "" && t != "all-linear" {
		words = append(words, t)
	}
	if d := p["dropout"]; d != "" && d != "0" {
		words = append(words, "dropout "+d)
	}
	if b := p["budget"]; b != "" && r.Name != "longest row" {
		words = append(words, "within "+b)
	}
	if v := p["variant"]; v != "" && v != "auto" {
		words = append(words, "kernels of "+v)
	}
	return strings.Join(words, ", ")
}

// shapeText is the shape of a step: "2048", "2 x 2048", "1024 in 16 samples, 30 % labels".
func shapeText(r result.Row) string {
	p := r.Params
	s := cmp.Or(p["tokens"], fmt.Sprint(r.Tokens))
	if n := p["rows"]; n != "" && n != "1" {
		s = n + " x " + s
	}
	if n := p["samples"]; n != "" && n != "1" {
		s += " in " + n + " samples"
	}
	if l := p["labels"]; l != "" && l != "1" {
		s += ", " + l + " of them labels"
	}
	return s
}

func phaseGrid(r result.Row) Grid {
	g := Grid{Title: "Where a step goes, by phase: " + model(r.Params["model"]) + ", " + shapeText(r) + " tokens", Head: []string{"phase", "ops", "time", "share", "FLOP/s"}, Left: 1}
	total := 0.0
	for _, o := range r.Ops {
		total += o.Seconds
	}
	for _, o := range byPhase(r.Ops) {
		g.add(o.Name, count(o.Calls), seconds(o.Seconds), share(o.Seconds/total), rate(o.FLOPs/o.Seconds))
	}
	median := r.Summary().Median
	g.Note = fmt.Sprintf("A metered step takes %s, one that is not %s (%s).", seconds(total), seconds(median), difference(total/median))
	return g
}

func opGrid(r result.Row, f *result.File) Grid {
	compute, memory := roofs(f)
	g := Grid{Title: "Where a step goes, op by op", Head: []string{"op", "shape", "phase", "calls", "time", "share", "a call", "FLOP/s", "B/s", "of roof"}, Left: 3}
	total := 0.0
	for _, o := range r.Ops {
		total += o.Seconds
	}
	for _, o := range r.Ops {
		part, _ := nearest(o.FLOPs/o.Seconds, o.Bytes/o.Seconds, compute, memory)
		each := dash
		if o.Calls > 0 {
			each = seconds(o.Seconds / o.Calls)
		}
		g.add(o.Name, cmp.Or(o.Shape, ""), cmp.Or(o.Phase, dash), amount(o.Calls), seconds(o.Seconds), share(o.Seconds/total), each, rate(o.FLOPs/o.Seconds), rate(o.Bytes/o.Seconds), share(part))
	}
	return g
}

func memoryGrid(r result.Row) Grid {
	g := Grid{Title: "Memory: " + model(r.Params["model"]) + ", " + shapeText(r) + " tokens", Head: []string{"", "planned", "measured"}, Left: 1,
		Note: "Categories may share places in the arena, so that they can add up to more than it."}
	for _, m := range r.Memory {
		g.add(m.Category, gib(m.Planned), gib(m.Measured))
	}
	return g
}

func vramGrids(f *result.File) []Grid {
	grid := Grid{Title: "Memory of a training run", Head: []string{"model", "method", "tokens a step", "arena", "process"}, Left: 3}
	longest := Grid{Title: "The longest row that fits", Head: []string{"model", "method", "budget", "made again", "tokens"}, Left: 4,
		Note: "With nothing made again, and with whatever it takes: gate and up, whole layers, tiles, activations in the host's memory."}
	for _, r := range f.Rows {
		arena, process := memoryOf(r)
		switch r.Name {
		case "vram":
			grid.add(model(r.Params["model"]), method(r), shapeText(r), gib(arena), gib(process))
		case "longest row":
			longest.add(model(r.Params["model"]), method(r), r.Params["budget"], r.Params["made again"], count(float64(r.Tokens)))
		}
	}
	var all []Grid
	for _, g := range []Grid{grid, longest} {
		if len(g.Rows) > 0 {
			all = append(all, g)
		}
	}
	return all
}

func decodeGrids(f *result.File) []Grid {
	_, memory := roofs(f)
	g := Grid{Title: "Generation", Head: []string{"model", "method", "sequences", "", "median", "95 % interval", "tokens/s", "a sequence", "B/s", "of read", "J/token"}, Left: 4}
	var all []Grid
	for _, r := range f.Rows {
		if r.Name != "prefill" && r.Name != "decode" || len(r.Seconds) == 0 {
			continue
		}
		s := r.Summary()
		perSequence, joules := dash, dash
		if r.Name == "decode" {
			perSequence = amount(1 / s.Median)
			joules = amount(r.Joules / float64(max(r.Tokens, 1)))
		}
		read := r.Bytes / s.Median
		part := 0.0
		if memory > 0 {
			part = read / memory
		}
		g.add(model(r.Params["model"]), method(r), r.Params["sequences"], r.Name, seconds(s.Median), interval(s), count(float64(r.Tokens)/s.Median), perSequence, rate(read), share(part), joules)
		if len(r.Ops) > 0 {
			all = append(all, opGrid(r, f))
		}
	}
	if len(g.Rows) == 0 {
		return nil
	}
	return append([]Grid{g}, all...)
}

// errorGrid are the rows without a time.
func errorGrid(f *result.File) []Grid {
	g := Grid{Title: "Not measured", Head: []string{"", "why"}, Left: 2}
	for _, r := range f.Rows {
		if r.Error != "" {
			g.add(r.Key(), firstLine(r.Error))
		}
	}
	if len(g.Rows) == 0 {
		return nil
	}
	return []Grid{g}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// PrintComparison writes a comparison: what differs first, then counts and notices.
func PrintComparison(w io.Writer, r *compare.Report, all, markdown bool) error {
	g := Grid{Head: []string{"row", "old", "new", "ratio", "95 % interval", "p (Holm)", "n", "verdict", ""}, Left: 1}
	for _, v := range []stat.Verdict{stat.Slower, stat.Faster, stat.Unsure, stat.Same} {
		for _, l := range r.Lines {
			if l.Verdict != v || v == stat.Same && !all {
				continue
			}
			t := l.Test
			g.add(l.Key, seconds(t.Old.Median), seconds(t.New.Median), difference(t.Ratio), difference(t.Lo)+" .. "+difference(t.Hi), probability(t.Adjusted),
				fmt.Sprintf("%d, %d", t.Old.N, t.New.N), string(v), l.Why)
		}
	}
	write := g.Text
	if markdown {
		write = g.Markdown
	}
	if err := write(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "%d SLOWER, %d FASTER, %d UNSURE, %d SAME of %d rows; geometric mean %s\n", r.Count(stat.Slower), r.Count(stat.Faster), r.Count(stat.Unsure), r.Count(stat.Same),
		len(r.Lines), difference(r.Geomean()))
	for _, side := range []struct {
		name string
		keys []string
	}{{"old", r.OnlyOld}, {"new", r.OnlyNew}} {
		if len(side.keys) > 0 {
			fmt.Fprintf(w, "only in %s: %d rows, such as %s\n", side.name, len(side.keys), side.keys[0])
		}
	}
	for _, n := range r.Notices {
		fmt.Fprintf(w, "notice: %s\n", n)
	}
	return nil
}

func probability(p float64) string {
	if p < 1e-4 {
		return "<0.0001"
	}
	return digits(p, 2)
}
