package ops

import (
	"math"
	"math/bits"
	"testing"
)

// The known answers of the Random123 distribution (kat_vectors, philox4x32, 10 rounds).
func TestPhiloxKnownAnswers(t *testing.T) {
	for _, c := range []struct {
		ctr  [4]uint32
		key  [2]uint32
		want [4]uint32
	}{
		{[4]uint32{}, [2]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, [2]uint32{0xffffffff, 0xffffffff}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0}, [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := Philox(c.ctr, c.key); got != c.want {
			t.Errorf("Philox(%08x, %08x) = %08x, want %08x", c.ctr, c.key, got, c.want)
		}
	}
}

// lane states the definition of the mask a second time, one column at a time and with the
// multiplications in 64-bit halves as the paper writes them.
func lane(seed, step, column, pos, sample, module uint32) uint16 {
	x, k := [4]uint32{column / 8, pos, sample, module}, [2]uint32{seed, step}
	for round := range 10 {
		if round > 0 {
			k[0], k[1] = k[0]+0x9E3779B9, k[1]+0xBB67AE85
		}
		hi0, lo0 := bits.Mul32(0xD2511F53, x[0])
		hi1, lo1 := bits.Mul32(0xCD9E8D57, x[2])
		x[0], x[1], x[2], x[3] = hi1^x[1]^k[0], lo1, hi0^x[3]^k[1], lo0
	}
	return uint16(x[column%8/2] >> (16 * (column % 2)))
}

func TestDropLanesAreTheDefinition(t *testing.T) {
	for i := range uint32(2000) {
		seed, step, group, pos, sample, module := i*2654435761, i, i%449, i*7%2048, i%64, i%196
		lanes := DropLanes(seed, step, group, pos, sample, module)
		for j, got := range lanes {
			if want := lane(seed, step, 8*group+uint32(j), pos, sample, module); got != want {
				t.Fatalf("lane %d of group %d: %04x, want %04x", j, group, got, want)
			}
		}
	}
}

func TestDropThresholdAndScale(t *testing.T) {
	for _, c := range []struct {
		p    float32
		want uint32
	}{{0, 0}, {0.05, 3277}, {0.1, 6554}, {0.5, 32768}, {0.99999, 65535}} {
		th := DropThreshold(c.p)
		if th != c.want {
			t.Errorf("threshold of %g is %d, want %d", c.p, th, c.want)
		}
		if got, want := float64(DropScale(th))*float64(65536-th)/65536, 1.0; math.Abs(got-want) > 1e-7 {
			t.Errorf("scale of %g times its chance is %g", c.p, got)
		}
	}
}

// Over n lanes the kept share of a fair mask has a standard deviation of sqrt(p(1-p)/n); and what one
// module keeps says nothing of another, nor one step, sample, position or column of the next.
func TestDropoutStatistics(t *testing.T) {
	const cols, positions = 896, 600
	const n = cols * positions
	mask := func(p float32, seed, step, sample, module, shift uint32) []bool {
		keep := make([]bool, 0, n)
		for pos := range uint32(positions) {
			for g := range uint32(cols / 8) {
				for _, l := range DropLanes(seed, step, g, pos+shift, sample, module) {
					keep = append(keep, uint32(l) >= DropThreshold(p))
				}
			}
		}
		return keep
	}
	for _, p := range []float32{0.05, 0.5} {
		base := mask(p, 42, 1, 0, 3, 0)
		q := 1 - float64(DropThreshold(p))/65536
		kept := 0
		for _, k := range base {
			if k {
				kept++
			}
		}
		if rate, sd := float64(kept)/n, math.Sqrt(q*(1-q)/n); math.Abs(rate-q) > 4*sd {
			t.Errorf("p=%g keeps %.5f, want %.5f within %.5f", p, rate, q, 4*sd)
		}
		for name, other := range map[string][]bool{
			"module": mask(p, 42, 1, 0, 4, 0), "sample": mask(p, 42, 1, 1, 3, 0), "step": mask(p, 42, 2, 0, 3, 0),
			"seed": mask(p, 43, 1, 0, 3, 0), "position": mask(p, 42, 1, 0, 3, 1), "column": append(base[1:n:n], base[0]),
		} {
			if r := correlation(base, other, q); math.Abs(r) > 4/math.Sqrt(n) {
				t.Errorf("p=%g: the mask of another %s correlates by %.5f, more than %.5f", p, name, r, 4/math.Sqrt(n))
			}
		}
	}
}

func correlation(a, b []bool, q float64) float64 {
	value := func(k bool) float64 {
		if k {
			return 1 - q
		}
		return -q
	}
	sum := 0.0
	for i := range a {
		sum += value(a[i]) * value(b[i])
	}
	return sum / (float64(len(a)) * q * (1 - q))
}

func TestSampleUniform(t *testing.T) {
	sum, seen := 0.0, map[float64]bool{}
	const n = 20000
	for i := range uint32(n) {
		u := SampleUniform(1, i%200, i/200)
		if u < 0 || u >= 1 || seen[u] {
			t.Fatalf("draw %d is %g: outside [0,1) or seen before", i, u)
		}
		seen[u] = true
		sum += u
	}
	if mean := sum / n; math.Abs(mean-0.5) > 4/math.Sqrt(12*n) {
		t.Errorf("mean %g", mean)
	}
}
