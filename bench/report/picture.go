package report

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"qlora/bench/result"
	"qlora/internal/atomicfile"
)

// Colours of the pictures and of the page, by what they stand for: of one lightness, told apart by people who do not see
// red or green (Okabe and Ito).
var palette = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933", "#882255"}

func colour(i int) color.Color {
	var r, g, b uint8
	fmt.Sscanf(palette[i%len(palette)], "#%02x%02x%02x", &r, &g, &b)
	return color.RGBA{r, g, b, 0xff}
}

func pale(c color.Color) color.Color {
	r, g, b, _ := c.RGBA()
	mix := func(v uint32) uint8 { return uint8((v>>8)*35/100 + 255*65/100) }
	return color.RGBA{mix(r), mix(g), mix(b), 0xff}
}

// Pictures draws what files hold as PNG images into a folder, and returns their names.
func Pictures(dir string, files []*result.File, p Predictor) ([]string, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	var names []string
	files = result.Join(files)
	save := func(name string, p *plot.Plot, err error, rows int) error {
		if err != nil || p == nil {
			return err
		}
		names = append(names, name+".png")
		return writePNG(filepath.Join(dir, name+".png"), p, rows)
	}
	latest := newestOf(files)
	cards := CompareCards(files, p)
	var errs error
	for _, draw := range []func() error{
		func() error { p, err := plotCards(cards); return save("cards", p, err, len(cards.Cards)) },
		func() error { p, err := plotRoofline(latest.kernels); return save("roofline", p, err, 14) },
		func() error { r := latest.step; p, n, err := plotWaterfall(r); return save("step", p, err, n) },
		func() error { p, n, err := plotMemory(latest.stepFile); return save("memory", p, err, n) },
	} {
		if err := draw(); err != nil && errs == nil {
			errs = err
		}
	}
	return names, errs
}

const (
	pictureWidth = 9 * vg.Inch
	rowHeight    = 0.32 * vg.Inch
)

// writePNG draws a plot as high as its rows need.
func writePNG(path string, p *plot.Plot, rows int) error {
	height := vg.Length(rows)*rowHeight + 1.3*vg.Inch
	canvas := vgimg.NewWith(vgimg.UseWH(pictureWidth, height), vgimg.UseDPI(120))
	margin := vg.Points(8)
	p.Draw(draw.Crop(draw.New(canvas), margin, -2*margin, margin, -margin))
	return atomicfile.WriteFile(path, func(w io.Writer) error {
		_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(w)
		return err
	})
}

// bars is an empty plot of horizontal bars with a name each, the first on top.
func bars(title, axis string, names []string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text = title, axis
	p.Title.Padding = vg.Points(8)
	grid := plotter.NewGrid()
	grid.Horizontal.Color = nil
	p.Add(grid)
	reversed := slices.Clone(names)
	slices.Reverse(reversed)
	p.NominalY(reversed...)
	p.Y.Tick.Length = 0
	p.X.Min = 0
	return p
}

// bar is a horizontal bar of row i of n, from one value to another.
type bar struct {
	row      int
	from, to float64
	fill     color.Color
	hatched  bool
	label    string // behind the bar
}

// Plot draws the bar.
func (b bar) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	lo, hi, mid, half := x(b.from), x(b.to), y(float64(b.row)), rowHeight*0.34
	box := []vg.Point{{X: lo, Y: mid - half}, {X: hi, Y: mid - half}, {X: hi, Y: mid + half}, {X: lo, Y: mid + half}}
	c.FillPolygon(b.fill, box)
	if b.hatched {
		style := draw.LineStyle{Color: color.Gray{0x60}, Width: vg.Points(0.5)}
		for at := lo; at < hi; at += vg.Points(5) {
			end := min(at+2*half, hi)
			c.StrokeLines(style, []vg.Point{{X: at, Y: mid - half}, {X: end, Y: mid - half + end - at}})
		}
		c.StrokeLines(style, append(box, box[0]))
	}
	if b.label != "" {
		text := p.X.Tick.Label
		text.XAlign, text.YAlign = draw.XLeft, draw.YCenter
		c.FillText(text, vg.Point{X: hi + vg.Points(4), Y: mid}, b.label)
	}
}

// DataRange makes the axes hold the bar.
func (b bar) DataRange() (xmin, xmax, ymin, ymax float64) {
	return min(b.from, 0), b.to, float64(b.row) - 0.6, float64(b.row) + 0.6
}

func plotCards(c Cards) (*plot.Plot, error) {
	var names []string
	for _, m := range c.Cards {
		if m.Tokens > 0 {
			names = append(names, m.Device)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	p := bars(c.title(), "tokens a second; hatched: predicted, never run", names)
	row := len(names)
	for _, m := range c.Cards {
		if m.Tokens <= 0 {
			continue
		}
		row--
		b := bar{row: row, to: m.Tokens, fill: colour(0), label: count(m.Tokens)}
		if m.Predicted {
			b.fill, b.hatched, b.label = pale(colour(0)), true, "~ "+b.label
		}
		p.Add(b)
	}
	p.X.Max = 1.15 * c.fastest()
	return p, nil
}

// plotWaterfall draws where a step goes, op by op in the order of phases.
func plotWaterfall(r *result.Row) (*plot.Plot, int, error) {
	if r == nil {
		return nil, 0, nil
	}
	all := byOp(r.Ops)
	var names []string
	for _, o := range all {
		names = append(names, waterfallName(o))
	}
	p := bars(fmt.Sprintf("Where a step goes: %s, %s tokens", model(r.Params["model"]), shapeText(*r)), "milliseconds", names)
	at, total := 0.0, 0.0
	for _, o := range all {
		total += o.Seconds
	}
	phases := map[string]int{}
	for i, o := range all {
		if _, ok := phases[o.Phase]; !ok {
			phases[o.Phase] = len(phases)
		}
		p.Add(bar{row: len(all) - 1 - i, from: 1e3 * at, to: 1e3 * (at + o.Seconds), fill: colour(phases[o.Phase]), label: fmt.Sprintf("%s, %s", seconds(o.Seconds), share(o.Seconds/total))})
		at += o.Seconds
	}
	p.X.Max = 1.25 * 1e3 * total
	return p, len(all), nil
}

func waterfallName(o result.Op) string {
	if o.Phase == "" {
		return o.Name
	}
	return o.Phase + ": " + o.Name
}

// plotRoofline draws kernels under the roofs, both axes logarithmic.
func plotRoofline(f *result.File) (*plot.Plot, error) {
	if f == nil {
		return nil, nil
	}
	compute, memory := roofs(f)
	points := rooflinePoints(f)
	if compute <= 0 || memory <= 0 || len(points) == 0 {
		return nil, nil
	}
	p := plot.New()
	p.Title.Text = "Kernels under the roofs measured on " + f.Environment.Device()
	p.X.Label.Text, p.Y.Label.Text = "FLOPs a byte", "TFLOP/s"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Add(plotter.NewGrid())
	lo, hi, floor := math.Inf(1), 0.0, math.Inf(1)
	for _, k := range points {
		lo, hi, floor = min(lo, k.Intensity), max(hi, k.Intensity), min(floor, k.FLOPs/1e12)
	}
	lo, hi, floor = lo/2, 2*max(hi, compute/memory), floor/2
	roof, err := plotter.NewLine(plotter.XYs{{X: lo, Y: lo * memory / 1e12}, {X: compute / memory, Y: compute / 1e12}, {X: hi, Y: compute / 1e12}})
	if err != nil {
		return nil, err
	}
	roof.Width = vg.Points(1.5)
	p.Add(roof)
	for i, op := range opsOf(points) {
		var xy plotter.XYs
		for _, k := range points {
			if k.Op == op {
				xy = append(xy, plotter.XY{X: k.Intensity, Y: k.FLOPs / 1e12})
			}
		}
		s, err := plotter.NewScatter(xy)
		if err != nil {
			return nil, err
		}
		s.GlyphStyle = draw.GlyphStyle{Color: colour(i), Radius: vg.Points(3.5), Shape: []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}}[i/len(palette)%3]}
		p.Add(s)
		p.Legend.Add(op, s)
	}
	p.Legend.Left, p.Legend.Top = true, true
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = lo, hi, floor, 2*compute/1e12
	return p, nil
}

// rooflinePoints are the kernels with operands in no cache, for which bytes are what the memory moves.
func rooflinePoints(f *result.File) []Kernel {
	return slices.DeleteFunc(Kernels(f), func(k Kernel) bool { return k.Cache != "cold" || k.Intensity <= 0 || k.FLOPs <= 0 })
}

func opsOf(all []Kernel) []string {
	var ops []string
	for _, k := range all {
		if !slices.Contains(ops, k.Op) {
			ops = append(ops, k.Op)
		}
	}
	return ops
}

// plotMemory stacks the memory of a file's steps against what a 24 GB card offers.
func plotMemory(f *result.File) (*plot.Plot, int, error) {
	stacks := memoryStacks(f)
	if len(stacks) == 0 {
		return nil, 0, nil
	}
	var names []string
	most := float64(budget24) / (1 << 30)
	for _, s := range stacks {
		names = append(names, s.Name)
		most = max(most, s.Total())
	}
	p := bars("Memory of a training step", "GiB; the line is what a 24 GB card offers a process, 23.0", names)
	for i, s := range stacks {
		at := 0.0
		for _, part := range s.Parts {
			p.Add(bar{row: len(stacks) - 1 - i, from: at, to: at + part.GiB, fill: colour(part.Colour)})
			at += part.GiB
		}
		total, limit := bar{row: len(stacks) - 1 - i, from: at, to: at, fill: colour(0), label: digits(at, 3)}, float64(budget24)/(1<<30)
		if at < limit && limit < at+0.08*most { // not across the line
			total.from, total.to = limit, limit
		}
		p.Add(total)
	}
	for _, name := range memoryNames {
		p.Legend.Add(name, swatch{colour(slices.Index(memoryNames, name))})
	}
	p.Legend.Top, p.Legend.Padding = true, vg.Points(3)
	line, err := plotter.NewLine(plotter.XYs{{X: float64(budget24) / (1 << 30), Y: -0.6}, {X: float64(budget24) / (1 << 30), Y: float64(len(stacks)) - 0.4}})
	if err != nil {
		return nil, 0, err
	}
	line.Dashes, line.Width, line.Color = []vg.Length{vg.Points(4), vg.Points(3)}, vg.Points(1.5), colour(5)
	p.Add(line)
	p.X.Max = 1.35 * most
	return p, max(len(stacks), 6), nil
}

// swatch is a colour in a legend.
type swatch struct{ fill color.Color }

// Thumbnail draws it.
func (s swatch) Thumbnail(c *draw.Canvas) {
	c.FillPolygon(s.fill, []vg.Point{{X: c.Min.X, Y: c.Min.Y}, {X: c.Max.X, Y: c.Min.Y}, {X: c.Max.X, Y: c.Max.Y}, {X: c.Min.X, Y: c.Max.Y}})
}

// CardsPicture draws tokens a second by card as a PNG image.
func CardsPicture(path string, c Cards) error {
	p, err := plotCards(c)
	if err == nil && p == nil {
		err = fmt.Errorf("%s: no card has a step to draw", path)
	}
	if err != nil {
		return err
	}
	return writePNG(path, p, len(c.Cards))
}
