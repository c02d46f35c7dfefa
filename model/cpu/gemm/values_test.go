package gemm

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Products of values made on demand have the bits of the same values packed.
func TestValues(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		for _, c := range []struct{ m, n, k int }{{1, 7, 64}, {3, 40, 128}, {13, 33, 320}, {250, 65, 576}, {5, 300, 13}} {
			rng := rand.New(rand.NewPCG(uint64(c.n), uint64(c.k)))
			random := func(n int) []float32 {
				v := make([]float32, n)
				for i := range v {
					v[i] = float32(rng.NormFloat64())
				}
				return v
			}
			w, x, dy := random(c.n*c.k), random(c.m*c.k), random(c.m*c.n)
			packed, err := Pack(c.n, c.k, false, func(row, count int, dst []float32) error {
				copy(dst, w[row*c.k:(row+count)*c.k])
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			made := &Values{N: c.n, K: c.k, Make: func(dst []float32, ld, row, count, k0, kc int) {
				for i := range count {
					copy(dst[i*ld:i*ld+kc], w[(row+i)*c.k+k0:])
				}
			}}
			for _, add := range []bool{false, true} {
				want, got := random(c.m*c.n), make([]float32, c.m*c.n)
				copy(got, want)
				packed.MulT(want, c.n, x, c.k, c.m, add)
				made.MulT(got, c.n, x, c.k, c.m, add)
				sameBits(t, got, want, "MulT")
				want, got = random(c.m*c.k), make([]float32, c.m*c.k)
				copy(got, want)
				packed.Mul(want, c.k, dy, c.n, c.m, add)
				made.Mul(got, c.k, dy, c.n, c.m, add)
				sameBits(t, got, want, "Mul")
			}
		}
	})
}

func sameBits(t *testing.T, got, want []float32, what string) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d is %g, packed %g", what, i, got[i], want[i])
		}
	}
}
