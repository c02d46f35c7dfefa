// Package curves draws the values of a run as PNG images, one curve each, as ms-swift does
// (swift/utils/tb_utils.py): 8 by 5 inches at 100 dots an inch, a smoothed curve over the pale raw
// one where asked for.
package curves

import (
	"image/color"
	"io"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"qlora/internal/atomicfile"
)

const (
	width  = 8 * vg.Inch
	height = 5 * vg.Inch
	dpi    = 100
)

var (
	pale   = color.RGBA{0xff, 0xe2, 0xd9, 0xff} // a raw curve below its smoothed one
	orange = color.RGBA{0xff, 0x70, 0x43, 0xff}
)

// Point is a value of a step.
type Point struct{ Step, Value float64 }

// Draw writes the PNG image of a curve to path, under a title. Points that are not finite, or beyond
// 1e300, are left out; a single point is drawn as a dot.
func Draw(path, title string, points []Point, smoothed bool) error {
	p := plot.New()
	p.Title.Text = title
	p.Title.Padding = vg.Points(6)
	p.X.Label.Text = "step"
	p.X.Tick.Marker = plainTicks{}
	p.Add(plotter.NewGrid())
	if err := add(p, finite(points), smoothed); err != nil {
		return err
	}
	widen(&p.X)
	widen(&p.Y)
	canvas := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))
	margin := vg.Points(8)
	p.Draw(draw.Crop(draw.New(canvas), margin, -2*margin, margin, -margin)) // the last label of the axis needs room
	return atomicfile.WriteFile(path, func(w io.Writer) error {
		_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(w)
		return err
	})
}

// plainTicks are the default ticks, labelled 250 and not 250.00.
type plainTicks struct{ plot.DefaultTicks }

func (t plainTicks) Ticks(low, high float64) []plot.Tick {
	ticks := t.DefaultTicks.Ticks(low, high)
	for i := range ticks {
		if !ticks[i].IsMinor() {
			ticks[i].Label = strconv.FormatFloat(ticks[i].Value, 'f', -1, 64)
		}
	}
	return ticks
}

// add puts the points into a plot: a dot, a curve, or a raw curve and its smoothed one.
func add(p *plot.Plot, points plotter.XYs, smoothed bool) error {
	if len(points) == 1 {
		dot, err := plotter.NewScatter(points)
		if err != nil {
			return err
		}
		dot.GlyphStyle = draw.GlyphStyle{Color: orange, Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
		p.Add(dot)
		return nil
	}
	if len(points) == 0 {
		return nil
	}
	if !smoothed {
		return addLine(p, points, orange)
	}
	if err := addLine(p, points, pale); err != nil {
		return err
	}
	return addLine(p, smooth(points, smoothing), orange)
}

func addLine(p *plot.Plot, points plotter.XYs, c color.Color) error {
	line, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	line.LineStyle = draw.LineStyle{Color: c, Width: vg.Points(1.5)}
	p.Add(line)
	return nil
}

// widen gives an axis a range in which ticks have room: plot panics at 1e30 to 1e30, and a curve of
// rounding errors shows nothing.
func widen(a *plot.Axis) {
	most := max(math.Abs(a.Min), math.Abs(a.Max))
	switch {
	case a.Max < a.Min: // no points
		a.Min, a.Max = 0, 1
	case most < 1e-300:
		a.Min, a.Max = -1, 1
	case a.Max-a.Min < 1e-6*most:
		a.Min, a.Max = a.Min-0.1*most, a.Max+0.1*most
	}
}

func finite(points []Point) plotter.XYs {
	var all plotter.XYs
	for _, p := range points {
		if math.Abs(p.Value) < 1e300 { // false for NaN
			all = append(all, plotter.XY{X: p.Step, Y: p.Value})
		}
	}
	return all
}

// smoothing is the weight of the past in the smoothed curve.
const smoothing = 0.9

// smooth is TensorBoard's exponential moving average, divided by the weight that it has seen, so that
// it does not start at zero: s_i = sum_j a^(i-j) v_j / sum_j a^(i-j), j = 0..i.
func smooth(points plotter.XYs, a float64) plotter.XYs {
	all := make(plotter.XYs, len(points))
	sum, weight := 0.0, 0.0
	for i, p := range points {
		sum = a*sum + p.Y
		weight = a*weight + 1
		all[i] = plotter.XY{X: p.X, Y: sum / weight}
	}
	return all
}
