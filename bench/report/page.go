package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"qlora/bench/result"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template shows.
type page struct {
	Device, Heading, Conditions string
	Made                        string
	Tiles                       []tile
	Palette                     []string
	Sections                    []section
	Kernels                     []kernelLine
	KernelNote                  string
	Facts                       [][2]string
}

// tile is a number to see first.
type tile struct{ Value, Label string }

// section is a chart or a table under a heading.
type section struct {
	ID, Title, Text string
	Chart           template.HTML
	Table           *Grid
	Wide            bool
}

// kernelLine is a row of the table that can be sorted: what is shown, and what is sorted by.
type kernelLine struct {
	Name, Cache                        string
	Median, Rate, Bytes, Roof, Library string
	Sort                               [5]float64
	Bound                              string
}

// Page writes results as one HTML page: no network, no script but the sorting of a table.
func Page(w io.Writer, files []*result.File, p Predictor, now time.Time) error {
	files = result.Join(files)
	l := newestOf(files)
	if l.device == "" {
		return fmt.Errorf("report: %d files, and none of a device", len(files))
	}
	v := page{Device: l.device, Made: now.UTC().Format("2006-01-02 15:04 UTC"), Palette: palette}
	main := l.stepFile
	if main == nil {
		main = l.kernels
	}
	if main != nil {
		v.Heading, v.Conditions = heading(main), strings.TrimPrefix(strings.TrimSpace(conditions(main)), "sensors: ")
		v.Facts = facts(main)
	}
	v.Tiles = tiles(l)
	v.Sections = sections(l, CompareCards(files, p))
	if l.kernels != nil {
		v.Kernels, v.KernelNote = kernelLines(l.kernels)
	}
	return pageTemplate.Execute(w, v)
}

func tiles(l latest) []tile {
	var all []tile
	add := func(value, label string) {
		if value != dash && value != "" {
			all = append(all, tile{value, label})
		}
	}
	if l.stepFile != nil {
		if steps := Steps(l.stepFile); len(steps) > 0 {
			s := steps[0]
			add(count(s.Tokens), "tokens/s, "+model(s.Model))
			add(seconds(s.Median), "a step of "+shapeText(s.Row)+" tokens")
			add(share(s.MFU), "MFU of the measured roof")
			add(amount(s.Joules), "joules a token")
			add(gib(s.Arena), "arena")
		}
	}
	if l.decode != nil {
		var seen []string
		for _, r := range l.decode.Rows {
			if how := method(r); r.Name == "decode" && r.Params["sequences"] == "1" && len(r.Seconds) > 0 && !slices.Contains(seen, how) {
				seen = append(seen, how)
				add(amount(1/r.Summary().Median), "tokens/s decoding one sequence, "+how)
			}
		}
	}
	if l.kernels != nil {
		var ratios []float64
		for _, k := range Kernels(l.kernels) {
			if k.Ratio > 0 && k.Cache == "hot" && k.Variant == "auto" && len(k.Row.Params["method"]) == 0 && comparable[k.Op] {
				ratios = append(ratios, k.Ratio)
			}
		}
		if len(ratios) > 0 {
			add(digits(geomean(ratios), 3)+" x", fmt.Sprintf("the vendor's libraries, mean of %d products and attentions", len(ratios)))
		}
	}
	return all
}

// comparable are the ops that do what a library does, and not much more.
var comparable = map[string]bool{"Linear": true, "LinearBack": true, "Attention": true, "AttentionBack": true}

func sections(l latest, cards Cards) []section {
	var all []section
	chart := func(id, title, text string, c template.HTML) {
		if c != "" {
			all = append(all, section{ID: id, Title: title, Text: text, Chart: c})
		}
	}
	table := func(id, title string, g Grid) {
		if len(g.Rows) > 0 {
			t := g
			t.Title = ""
			all = append(all, section{ID: id, Title: title, Table: &t, Wide: true})
		}
	}
	if l.step != nil {
		chart("step", "Where a step goes", "A metered step of "+model(l.step.Params["model"])+", "+method(*l.step)+", "+shapeText(*l.step)+" tokens: each bar begins where the one above ends.", waterfallSVG(l.step))
	}
	if l.kernels != nil {
		chart("roofline", "Under the roofs", "Each dot is a kernel, its operands in no cache. The roofs are what our own copy and tensor-core probes reach here.", rooflineSVG(l.kernels))
	}
	if stacks := memoryStacks(l.stepFile); len(stacks) > 0 {
		chart("memory", "Memory", "What lies in the arena, and beside it. The dashed line is what a 24 GB card offers a process.", memorySVG(stacks))
	}
	chart("history", "Over commits", "Tokens a second on this device.", historySVG(l.history))
	chart("cards", "Cards compared", "Pale bars were never run: they are predictions by a roofline from what was measured.", cardsSVG(cards))
	if l.stepFile != nil {
		for _, r := range l.stepFile.Rows {
			chart("sustained", "A long run", "Each as a share of its largest value.", trackSVG(r))
		}
		table("steps", "Training steps", stepGrid(l.stepFile))
		if l.step != nil {
			table("ops", "A step op by op", opGrid(*l.step, l.stepFile))
		}
	}
	if l.decode != nil {
		for i, g := range decodeGrids(l.decode) {
			if i == 0 {
				table("decode", "Generation", g)
			}
		}
	}
	if l.vram != nil {
		for i, g := range vramGrids(l.vram) {
			table(fmt.Sprintf("vram%d", i), g.Title, g)
		}
	}
	if l.peers != nil {
		table("peers", "Peers, in one run", PeersGrid(l.peers))
	}
	if l.jobs != nil {
		table("job", "The article's job", jobGrid(l.jobs))
	}
	for i, g := range cards.Grids() {
		table(fmt.Sprintf("cards%d", i), g.Title, g)
	}
	return all
}

func kernelLines(f *result.File) (all []kernelLine, note string) {
	library := ""
	for _, k := range Kernels(f) {
		if k.Library != "" {
			library = k.Library
		}
		all = append(all, kernelLine{Name: k.Name, Cache: k.Cache, Bound: k.Bound, Median: seconds(k.Median), Rate: rate(k.FLOPs), Bytes: rate(k.Bytes), Roof: share(k.Roof), Library: amount(k.Ratio),
			Sort: [5]float64{k.Median, k.FLOPs / 1e12, k.Bytes / 1e9, k.Roof, k.Ratio}})
	}
	if library != "" {
		note = "× library: how many times as fast as " + library + ", sample by sample in turns."
	}
	return all, note
}

// facts are the environment of a file.
func facts(f *result.File) [][2]string {
	var all [][2]string
	add := func(name, format string, args ...any) {
		all = append(all, [2]string{name, fmt.Sprintf(format, args...)})
	}
	e := f.Environment
	if c := e.Card; c != nil && c.Driver != "" {
		add("card", "%s, %s, %d multiprocessors, id %s", c.Name, gib(c.Memory), c.Processors, c.ID)
		add("driver", "%s, CUDA %s", c.Driver, c.CUDA)
		add("clocks", "SM up to %d MHz, limit %d; memory %d of %d MHz", c.SMClockMax, c.SMClockLimit, c.MemClock, c.MemClockMax)
		add("power", "limit %.0f W, default %.0f W", c.PowerLimit, c.PowerDefault)
		add("ECC, MIG", "%v, %v", c.ECC, c.MIG)
		add("PCIe", "generation %d of %d, x%d of x%d", c.PCIeGen, c.PCIeGenMax, c.PCIeWidth, c.PCIeWidthMax)
	}
	if e.Host.CPU != "" {
		add("machine", "%s, %d cores, %s, %s", e.Host.CPU, e.Host.Cores, gib(e.Host.Memory), e.Host.System)
	}
	add("program", "%s, commit %s, %s", e.Backend, e.Program.Commit, e.Program.Go)
	if len(e.Program.Args) > 0 {
		add("command", "qlora %s", strings.Join(e.Program.Args, " "))
	}
	for _, m := range e.Missing {
		add("not told", "%s", m)
	}
	return all
}
