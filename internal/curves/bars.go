package curves

import (
	"image/color"
	"io"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/palette"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"qlora/internal/atomicfile"
)

// Part is one piece of every bar.
type Part struct {
	Name   string
	Values []float64 // of each bar
}

// DrawBars writes the PNG image of stacked bars to path, the first part at the bottom, with a line at limit (0: none).
func DrawBars(path, title, unit string, bars []string, parts []Part, limit float64) error {
	p := plot.New()
	p.Title.Text = title
	p.Title.Padding = vg.Points(6)
	p.Y.Label.Text = unit
	p.Y.Min = 0
	p.X.Tick.Length = 0
	p.NominalX(bars...)
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs = true, false, -vg.Points(4)
	colors := palette.Rainbow(len(parts), palette.Blue, palette.Red, 0.55, 0.9, 1).Colors()
	var below *plotter.BarChart
	for i, part := range parts {
		bar, err := plotter.NewBarChart(plotter.Values(part.Values), vg.Points(70))
		if err != nil {
			return err
		}
		bar.Color, bar.LineStyle.Width = colors[i], 0
		if below != nil {
			bar.StackOn(below)
		}
		p.Add(bar)
		p.Legend.Add(part.Name, bar)
		below = bar
	}
	if limit > 0 {
		line, err := plotter.NewLine(plotter.XYs{{X: -0.6, Y: limit}, {X: float64(len(bars)) - 0.4, Y: limit}})
		if err != nil {
			return err
		}
		line.Color, line.Dashes = color.Black, []vg.Length{vg.Points(4), vg.Points(3)}
		p.Add(line)
		p.Legend.Add("budget", line)
	}
	p.X.Min, p.X.Max = -0.6, float64(len(bars))+0.6 // room for the legend
	canvas := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))
	margin := vg.Points(8)
	p.Draw(draw.Crop(draw.New(canvas), margin, -2*margin, margin, -margin))
	return atomicfile.WriteFile(path, func(w io.Writer) error {
		_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(w)
		return err
	})
}
