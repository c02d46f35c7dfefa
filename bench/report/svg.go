package report

import (
	"cmp"
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strings"

	"qlora/bench/result"
)

// Charts of the page, as SVG inside of it. All are 400 units wide, so that on a phone a unit is about a pixel and text of
// 11 units can be read; a wide screen sets two beside each other. Colours are those of the style sheet: c0 to c7.

const chartWidth = 400

// chart builds an SVG.
type chart struct {
	strings.Builder
	height float64
}

func newChart(height float64, label string) *chart {
	c := &chart{height: height}
	fmt.Fprintf(c, `<svg viewBox="0 0 %d %.0f" role="img" aria-label="%s">`, chartWidth, height, html.EscapeString(label))
	return c
}

func (c *chart) done() template.HTML {
	c.WriteString("</svg>")
	return template.HTML(c.String()) // every text in it went through text or title, which escape
}

func (c *chart) text(x, y float64, class, s string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" class="%s">%s</text>`, x, y, class, html.EscapeString(s))
}

func (c *chart) rect(x, y, w, h float64, class, title string) {
	fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" class="%s">`, x, y, max(w, 0.5), h, class)
	c.title(title)
	c.WriteString("</rect>")
}

func (c *chart) title(s string) {
	if s != "" {
		fmt.Fprintf(c, "<title>%s</title>", html.EscapeString(s))
	}
}

func (c *chart) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`, x1, y1, x2, y2, class)
}

func (c *chart) dot(x, y, r float64, class, title string) {
	fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="%.1f" class="%s">`, x, y, r, class)
	c.title(title)
	c.WriteString("</circle>")
}

// mark is a dot, or from the colours' second round on a square.
func (c *chart) mark(x, y float64, i int, title string) {
	if i < len(palette) {
		c.dot(x, y, 4, series(i), title)
	} else {
		c.rect(x-3.5, y-3.5, 7, 7, series(i), title)
	}
}

// shorten cuts a label to what fits.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// linearTicks are about n round numbers up to most.
func linearTicks(most float64, n int) []float64 {
	if most <= 0 {
		return nil
	}
	raw := most / float64(n)
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := unit * 10
	for _, m := range []float64{1, 2, 5} {
		if unit*m >= raw {
			step = unit * m
			break
		}
	}
	var ticks []float64
	for v := 0.0; v <= most; v += step {
		ticks = append(ticks, v)
	}
	return ticks
}

// tickText writes 12500 as 12.5k.
func tickText(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 1000:
		return digitsAtMost(v/1000) + "k"
	}
	return digitsAtMost(v)
}

func digitsAtMost(v float64) string { return strings.TrimSuffix(fmt.Sprintf("%.4g", v), ".0") }

// legend writes names with their marks, wrapped, from y on.
func (c *chart) legend(y float64, names []string) {
	x := 4.0
	for i, name := range names {
		w := 14 + 7.6*float64(len([]rune(name))) + 14
		if x+w > chartWidth && x > 4 {
			x, y = 4, y+16
		}
		c.mark(x+5, y-4, i, "")
		c.text(x+14, y, "label", name)
		x += w
	}
}

func series(i int) string { return fmt.Sprintf("c%d", i%len(palette)) }

// barRow is a horizontal bar with its label above it: on a phone there is no room beside.
type barRow struct {
	label, value string
	parts        []barPart
}

type barPart struct {
	from, to float64
	class    string
	title    string
}

// barsSVG draws rows of bars on a scale to most, with marks: dashed lines at values.
func barsSVG(label, axis string, rows []barRow, most float64, legend []string, marks map[float64]string) template.HTML {
	const rowHeight, top, left, right = 35.0, 8.0, 4.0, 74.0
	legendRoom := 0.0
	if len(legend) > 0 {
		legendRoom = 16 + 16*math.Ceil(float64(len(strings.Join(legend, "")))*7.6/float64(chartWidth)+float64(len(legend))*28/chartWidth)
	}
	bottom := top + rowHeight*float64(len(rows))
	c := newChart(bottom+40+legendRoom, label)
	x := func(v float64) float64 { return left + v/most*(chartWidth-left-right) }
	for _, t := range linearTicks(most, 5) {
		c.line(x(t), top, x(t), bottom, "grid")
		c.text(x(t), bottom+13, "tick mid", tickText(t))
	}
	c.text(chartWidth-4, bottom+30, "tick end", axis)
	for i, r := range rows {
		y := top + rowHeight*float64(i)
		c.text(left, y+12, "label", shorten(r.label, 60))
		end := 0.0
		for _, p := range r.parts {
			c.rect(x(p.from), y+16, x(p.to)-x(p.from), 13, p.class, p.title)
			end = max(end, p.to)
		}
		at := x(end) + 4
		for v := range marks { // not across a mark's line
			if at < x(v) && x(v) < at+6.6*float64(len(r.value)) {
				at = x(v) + 4
			}
		}
		c.text(at, y+26.5, "value", r.value)
	}
	for at, name := range marks {
		c.line(x(at), top, x(at), bottom, "mark")
		c.text(x(at)+44, bottom+30, "marked end", name)
	}
	if len(legend) > 0 {
		c.legend(bottom+48, legend)
	}
	return c.done()
}

func waterfallSVG(r *result.Row) template.HTML {
	all := byOp(r.Ops)
	total := 0.0
	for _, o := range all {
		total += o.Seconds
	}
	var rows []barRow
	var phases []string
	at := 0.0
	for _, o := range all {
		phase := cmp.Or(o.Phase, o.Name)
		if !slices.Contains(phases, phase) {
			phases = append(phases, phase)
		}
		i := slices.Index(phases, phase)
		title := fmt.Sprintf("%s: %s, %s of the step, %s calls", waterfallName(o), seconds(o.Seconds), share(o.Seconds/total), amount(o.Calls))
		rows = append(rows, barRow{label: waterfallName(o), value: seconds(o.Seconds) + " " + share(o.Seconds/total), parts: []barPart{{1e3 * at, 1e3 * (at + o.Seconds), series(i), title}}})
		at += o.Seconds
	}
	return barsSVG("where a training step goes", "milliseconds", rows, 1.12*1e3*total, phases, nil)
}

func memorySVG(stacks []Stack) template.HTML {
	most := float64(budget24) / (1 << 30)
	var rows []barRow
	for _, s := range stacks {
		most = max(most, s.Total())
		row := barRow{label: s.Name, value: digits(s.Total(), 3) + " GiB"}
		at := 0.0
		for _, p := range s.Parts {
			row.parts = append(row.parts, barPart{at, at + p.GiB, series(p.Colour), fmt.Sprintf("%s: %.2f GiB", p.Name, p.GiB)})
			at += p.GiB
		}
		rows = append(rows, row)
	}
	return barsSVG("memory of training steps", "GiB", rows, most*1.02, memoryNames, map[float64]string{float64(budget24) / (1 << 30): "a 24 GB card: 23.0"})
}

func cardsSVG(c Cards) template.HTML {
	var rows []barRow
	for _, m := range c.Cards {
		if m.Tokens <= 0 {
			continue
		}
		class, value := "c0", count(m.Tokens)
		title := m.Device + ": " + value + " tokens/s, measured"
		if m.Predicted {
			class, value = "c0 predicted", "~ "+value
			title = m.Device + ": " + value + " tokens/s, predicted, never run"
		}
		rows = append(rows, barRow{label: m.Device + map[bool]string{true: " (prediction)"}[m.Predicted], value: value, parts: []barPart{{0, m.Tokens, class, title}}})
	}
	if len(rows) == 0 {
		return ""
	}
	return barsSVG("tokens a second by card", "tokens/s", rows, c.fastest()*1.02, nil, nil)
}

func rooflineSVG(f *result.File) template.HTML {
	compute, memory := roofs(f)
	points := rooflinePoints(f)
	if compute <= 0 || memory <= 0 || len(points) == 0 {
		return ""
	}
	const left, right, top, height = 34.0, 8.0, 8.0, 240.0
	lo, hi, floor := math.Inf(1), 0.0, math.Inf(1)
	for _, k := range points {
		lo, hi, floor = min(lo, k.Intensity), max(hi, k.Intensity), min(floor, k.FLOPs/1e12)
	}
	lo, hi, floor = lo/2, 2*max(hi, compute/memory), floor/2
	ceiling := 2 * compute / 1e12
	x := func(v float64) float64 {
		return left + math.Log(v/lo)/math.Log(hi/lo)*(chartWidth-left-right)
	}
	y := func(v float64) float64 { return top + (1-math.Log(v/floor)/math.Log(ceiling/floor))*height }
	ops := opsOf(points)
	c := newChart(top+height+44+16*math.Ceil(float64(len(ops))/4+1), "kernels under the roofs of the device")
	for p := math.Ceil(math.Log10(lo)); p <= math.Log10(hi); p++ {
		v := math.Pow(10, p)
		c.line(x(v), top, x(v), top+height, "grid")
		c.text(x(v), top+height+13, "tick mid", tickText(v))
	}
	for p := math.Ceil(math.Log10(floor)); p <= math.Log10(ceiling); p++ {
		v := math.Pow(10, p)
		c.line(left, y(v), chartWidth-right, y(v), "grid")
		c.text(left-3, y(v)+4, "tick end", tickText(v))
	}
	ridge := compute / memory
	c.line(x(max(lo, floor*1e12/memory)), y(max(lo*memory/1e12, floor)), x(ridge), y(compute/1e12), "roof")
	c.line(x(ridge), y(compute/1e12), x(hi), y(compute/1e12), "roof")
	c.text(x(ridge)+4, y(compute/1e12)-5, "label", fmt.Sprintf("%s TFLOP/s, %s GB/s", amount(compute/1e12), amount(memory/1e9)))
	c.text(left+2, top+9, "tick", "TFLOP/s")
	c.text(chartWidth-right, top+height+28, "tick end", "FLOPs a byte")
	for _, k := range points {
		c.mark(x(k.Intensity), y(k.FLOPs/1e12), slices.Index(ops, k.Op), fmt.Sprintf("%s: %s, %s TFLOP/s, %s GB/s, %s of roof", k.Name, seconds(k.Median), amount(k.FLOPs/1e12), amount(k.Bytes/1e9), share(k.Roof)))
	}
	c.legend(top+height+46, ops)
	return c.done()
}

// historySVG draws tokens a second over the commits of a device, a line a kind of step.
func historySVG(files []*result.File) template.HTML {
	type point struct {
		commit, title string
		tokens        float64
	}
	lines := map[string][]point{}
	var order, commits []string
	for _, f := range files {
		commit := f.Time.Format("01-02") + " " + shorten(f.Environment.Program.Commit, 8)
		for _, s := range Steps(f) {
			if s.Tokens <= 0 || s.Row.Params["trainer"] != "" {
				continue
			}
			key := model(cmp.Or(s.Model, s.Row.Params["run"])) + " " + historyKey(s.Row)
			if lines[key] == nil {
				order = append(order, key)
			}
			if !slices.Contains(commits, commit) {
				commits = append(commits, commit)
			}
			lines[key] = append(lines[key], point{commit, fmt.Sprintf("%s at %s: %s tokens/s", key, f.Environment.Program.Commit, count(s.Tokens)), s.Tokens})
		}
	}
	order = slices.DeleteFunc(order, func(k string) bool { return len(lines[k]) < 2 })
	if len(order) == 0 {
		return ""
	}
	const left, right, top, height = 40.0, 12.0, 8.0, 180.0
	most := 0.0
	for _, k := range order {
		for _, p := range lines[k] {
			most = max(most, p.tokens)
		}
	}
	most *= 1.08
	x := func(commit string) float64 {
		return left + 10 + float64(slices.Index(commits, commit))/math.Max(float64(len(commits)-1), 1)*(chartWidth-left-right-20)
	}
	y := func(v float64) float64 { return top + (1-v/most)*height }
	c := newChart(top+height+40+16*float64(len(order)), "tokens a second over commits")
	for _, t := range linearTicks(most, 4) {
		c.line(left, y(t), chartWidth-right, y(t), "grid")
		c.text(left-3, y(t)+4, "tick end", tickText(t))
	}
	every := (len(commits) + 3) / 4
	for i, commit := range commits {
		if i%every == 0 {
			c.text(min(max(x(commit), left+30), chartWidth-right-30), top+height+14, "tick mid", commit)
		}
	}
	for i, key := range order {
		for j, p := range lines[key] {
			if j > 0 {
				before := lines[key][j-1]
				c.line(x(before.commit), y(before.tokens), x(p.commit), y(p.tokens), "line "+series(i))
			}
			c.dot(x(p.commit), y(p.tokens), 3.5, series(i), p.title)
		}
		c.rect(4, top+height+24+16*float64(i), 10, 10, series(i), "")
		c.text(18, top+height+33+16*float64(i), "label", key)
	}
	return c.done()
}

// historyKey is what a step of one kind keeps over commits.
func historyKey(r result.Row) string {
	if run := r.Params["run"]; run != "" && run != strings.TrimPrefix(r.Params["model"], "qwen2.5-") {
		return "(" + run + ")"
	}
	if r.Params["run"] != "" {
		return fmt.Sprintf("bf16, r 8, %d tokens", r.Tokens)
	}
	return method(r) + ", " + shapeText(r) + " tokens"
}

// trackSVG draws a long run: tokens a second, clock and temperature over time, each as a share of its largest value.
func trackSVG(r result.Row) template.HTML {
	if len(r.Track) < 2 {
		return ""
	}
	const left, right, top, height = 44.0, 8.0, 8.0, 160.0
	names := []string{"tokens/s", "SM clock", "power", "temperature"}
	values := [][]float64{nil, nil, nil, nil}
	for _, m := range r.Track {
		values[0] = append(values[0], float64(r.Tokens)/m.Seconds)
		values[1], values[2], values[3] = append(values[1], m.SMClock), append(values[2], m.Power), append(values[3], m.TempC)
	}
	c := newChart(top+height+60, "a long run")
	last := r.Track[len(r.Track)-1].At
	x := func(at float64) float64 { return left + at/last*(chartWidth-left-right) }
	for _, t := range []float64{0, 0.25, 0.5, 0.75, 1} {
		c.line(left, top+(1-t)*height, chartWidth-right, top+(1-t)*height, "grid")
		c.text(left-3, top+(1-t)*height+4, "tick end", fmt.Sprintf("%.0f %%", 100*t))
	}
	for _, t := range linearTicks(last, 5)[1:] {
		c.text(min(x(t), chartWidth-right-14), top+height+13, "tick mid", fmt.Sprintf("%.4g s", t))
	}
	for i, v := range values {
		most := slices.Max(v)
		if most <= 0 {
			continue
		}
		names[i] += fmt.Sprintf(", up to %s", tickText(math.Round(most)))
		for j := 1; j < len(v); j++ {
			c.line(x(r.Track[j-1].At), top+(1-v[j-1]/most)*height, x(r.Track[j].At), top+(1-v[j]/most)*height, "line "+series(i))
		}
	}
	c.legend(top+height+34, names)
	return c.done()
}
