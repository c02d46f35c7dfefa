package curves

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/plot/plotter"
)

// The values are those of tensorboard_smoothing([3, 1, 4, 1, 5], 0.9) of ms-swift 4.5.
func TestSmoothing(t *testing.T) {
	want := []float64{3, 1.9473684210526319, 2.7047970479704797, 2.209072404768828, 2.890600962125467}
	var points plotter.XYs
	for i, v := range []float64{3, 1, 4, 1, 5} {
		points = append(points, plotter.XY{X: float64(i), Y: v})
	}
	for i, p := range smooth(points, 0.9) {
		if p.X != float64(i) || math.Abs(p.Y-want[i]) > 1e-15 {
			t.Errorf("point %d: %v, want %v", i, p, want[i])
		}
	}
}

// falling is a noisy curve of n points.
func falling(n int) []Point {
	var points []Point
	for i := range n {
		points = append(points, Point{float64(5 * i), 2*math.Exp(-float64(i)/20) + 0.3*math.Sin(float64(7*i))})
	}
	return points
}

// drawn draws points, and counts the pixels of each colour.
func drawn(t *testing.T, points []Point, smoothed bool) map[color.Color]int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "train_loss.png")
	if err := Draw(path, "train/loss", points, smoothed); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := png.Decode(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if m.Bounds() != image.Rect(0, 0, 800, 500) {
		t.Errorf("the image is %v, want 800 by 500", m.Bounds())
	}
	count := map[color.Color]int{}
	for y := range 500 {
		for x := range 800 {
			r, g, b, a := m.At(x, y).RGBA()
			count[color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), uint8(a >> 8)}]++
		}
	}
	return count
}

func TestDraw(t *testing.T) {
	spoilt := append(falling(60), Point{300, math.NaN()}, Point{305, math.Inf(1)})
	for _, c := range []struct {
		name         string
		points       []Point
		smoothed     bool
		pale, orange bool
	}{
		{"smoothed", falling(60), true, true, true},
		{"raw", falling(60), false, false, true},
		{"one point", falling(1), true, false, true},
		{"not finite", spoilt, true, true, true},
		{"equal", []Point{{1, 1}, {2, 1}}, false, false, true},
		{"none", nil, true, false, false},
	} {
		count := drawn(t, c.points, c.smoothed)
		if got := count[pale] > 300; got != c.pale {
			t.Errorf("%s: %d pixels of the raw curve's colour", c.name, count[pale])
		}
		if got := count[orange] > 10; got != c.orange {
			t.Errorf("%s: %d pixels of the curve's colour", c.name, count[orange])
		}
	}
}

// No range of values is beyond the plot.
func TestDrawExtremes(t *testing.T) {
	for _, values := range [][]float64{{1e30}, {-1e299, 1e299}, {1e299, 1e299}, {5e-324, 0}, {1e-310}, {1, 1 + 1e-15}, {0}, {1e18, 1e18 + 512}, {-3e-20, 4e12},
		{math.Inf(1)}, {math.NaN(), 1, math.Inf(-1)}, {1e300}} {
		var points []Point
		for i, v := range values {
			points = append(points, Point{float64(i + 1), v})
		}
		for _, smoothed := range []bool{false, true} {
			if count := drawn(t, points, smoothed); count[orange] < 10 && len(finite(points)) > 0 {
				t.Errorf("%v: %d pixels of the curve's colour", values, count[orange])
			}
		}
	}
	if drawn(t, []Point{{1e15, 1}, {1e15 + 1, 2}}, false)[orange] < 10 {
		t.Error("a step of 1e15 shows nothing")
	}
}

func TestDrawNamesTheFile(t *testing.T) {
	if err := Draw(filepath.Join(t.TempDir(), "none", "a.png"), "a", falling(3), false); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("into a folder that is not there: %v", err)
	}
}
