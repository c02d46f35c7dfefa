package ops

import (
	"math"
	"testing"
)

// The noise of a sample is uniform: its mean is 0 and its mean square alpha²/(3·L·C), as that of torch's uniform_(-a, a)
// with a = alpha/sqrt(L·C); it reaches nearly to a and not beyond; neighbours are not related.
func TestNoise(t *testing.T) {
	const alpha, length, cols = 5, 64, 512
	a := alpha / math.Sqrt(length*cols)
	unit := NoiseUnit(alpha, length, cols)
	var n, sum, squares, most, product, before float64
	for pos := range uint32(length) {
		for group := range uint32(cols / 8) {
			for _, lane := range DropLanes(42, 7, group, pos, 3, NoiseStream) {
				v := float64(NoiseStep(lane)) * unit
				n, sum, squares, most = n+1, sum+v, squares+v*v, max(most, math.Abs(v))
				product, before = product+v*before, v
			}
		}
	}
	within := func(what string, got, want, tolerance float64) {
		if !(math.Abs(got-want) <= tolerance) {
			t.Errorf("%s %g, want %g within %g", what, got, want, tolerance)
		}
	}
	deviation := a / math.Sqrt(3)
	within("mean", sum/n, 0, 5*deviation/math.Sqrt(n))
	within("mean square", squares/n, a*a/3, 5*a*a*math.Sqrt(4./45/n))
	within("product of neighbours", product/n, 0, 5*deviation*deviation/math.Sqrt(n))
	if !(most < a && most > 0.999*a) {
		t.Errorf("the largest is %g of %g", most, a)
	}
	if NoiseStep(0) != -65535 || NoiseStep(65535) != 65535 {
		t.Error("the ends are not symmetric")
	}
}

func TestSegmentLength(t *testing.T) {
	h := HostBatch{SegStart: []int32{0, 3, 4, 9}}
	for token, want := range []int{3, 3, 3, 1, 5, 5, 5, 5, 5} {
		if got := h.SegmentLength(token); got != want {
			t.Errorf("token %d: %d, want %d", token, got, want)
		}
	}
}
