package vec

import (
	"math"
	"math/rand/v2"
	"testing"

	"qlora/model/ops"
)

// TestDropout compares with the stream of package ops, column by column and bit by bit, at lengths around the blocks.
func TestDropout(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		for _, n := range []int{1, 7, 8, 63, 64, 65, 128, 200, 576} {
			for _, p := range []float32{0, 0.05, 0.5, 0.999} {
				m := Mask{r.Uint32(), r.Uint32(), r.Uint32(), r.Uint32(), r.Uint32(), r.Uint32(), ops.DropThreshold(p)}
				scale, x, out := ops.DropScale(m.Threshold), normals(r, n, 1), newGuarded(n)
				Dropout(out.data(), x, m, scale)
				if !out.intact() {
					t.Fatalf("n=%d: wrote outside", n)
				}
				for c, got := range out.data() {
					lanes := ops.DropLanes(m.Seed, m.Step, m.Group+uint32(c/8), m.Pos, m.Sample, m.Module)
					want := float32(0)
					if uint32(lanes[c%8]) >= m.Threshold {
						want = x[c] * scale
					}
					if math.Float32bits(got) != math.Float32bits(want) {
						t.Fatalf("n=%d p=%g: column %d is %v, want %v", n, p, c, got, want)
					}
				}
			}
		}
	})
}

func BenchmarkDropout(b *testing.B) {
	x := make([]float32, 576)
	for b.Loop() {
		Dropout(x, x, Mask{Threshold: 3277}, 1)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(x)), "ns/value")
}
