package random

import (
	"math"
	"slices"
	"testing"
)

// TestNormalMoments holds a stream to the moments it claims, within four standard errors.
func TestNormalMoments(t *testing.T) {
	const n, std = 1 << 20, 0.02
	x := make([]float32, n)
	Normal{Seed: 42, Stream: 7, Std: std}.Fill(x, 0)
	var sum, square, fourth, neighbours float64
	for i, v := range x {
		z := float64(v) / std
		if math.Abs(z) > math.Sqrt(24) {
			t.Fatalf("number %d is %v deviations from the mean", i, z)
		}
		sum += z
		square += z * z
		fourth += z * z * z * z
		if i > 0 {
			neighbours += z * float64(x[i-1]) / std
		}
	}
	for _, c := range []struct {
		name              string
		got, want, spread float64 // spread of one number
	}{
		{"mean", sum / n, 0, 1},
		{"variance", square / n, 1, math.Sqrt(1.85)},
		{"kurtosis", fourth / n, 2.85, math.Sqrt(96)},
		{"correlation of neighbours", neighbours / n, 0, 1},
	} {
		if math.Abs(c.got-c.want) > 4*c.spread/math.Sqrt(n) {
			t.Errorf("%s is %v, want %v", c.name, c.got, c.want)
		}
	}
}

// TestNormalByPlace makes a stream in pieces, past 2³² too, and demands the same numbers.
func TestNormalByPlace(t *testing.T) {
	n := Normal{Seed: 1, Stream: 2, Std: 1}
	for _, first := range []int64{0, 1<<32 - 5} {
		whole, pieces := make([]float32, 100), make([]float32, 100)
		n.Fill(whole, first)
		n.Fill(pieces[:33], first)
		n.Fill(pieces[33:], first+33)
		if !slices.Equal(whole, pieces) {
			t.Errorf("the numbers from %d on depend on where they are begun", first)
		}
	}
	first, other := make([]float32, 100), make([]float32, 100)
	n.Fill(first, 0)
	for name, m := range map[string]Normal{"seed": {2, 2, 1}, "stream": {1, 3, 1}} {
		if m.Fill(other, 0); slices.Equal(first, other) {
			t.Errorf("another %s gives the same numbers", name)
		}
	}
	if n.Fill(other, 1<<32); slices.Equal(first, other) {
		t.Error("the numbers repeat after 2³²")
	}
}
