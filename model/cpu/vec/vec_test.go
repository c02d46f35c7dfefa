package vec

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func eachVariant(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	kept := current
	defer func() { current = kept }()
	for _, k := range implementations {
		current = k
		t.Run(k.variant, test)
	}
}

func normals(r *rand.Rand, n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * scale)
	}
	return x
}

// ulps is the distance of got from want in units in the last place of want as a float32.
func ulps(got float32, want float64) float64 {
	w := float32(want)
	if got == w || got != got && w != w {
		return 0
	}
	unit := math.Max(math.Ldexp(1, math.Ilogb(want)-23), math.Ldexp(1, -149))
	return math.Abs(float64(got)-want) / unit
}

func TestExp(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		var x []float32
		for v := float32(-110); v < 95; v += 0.00137 {
			x = append(x, v)
		}
		inf := float32(math.Inf(1))
		x = append(x, 0, float32(math.Copysign(0, -1)), 1e-30, -1e-30, 1e-40, inf, -inf, 1e30, -1e30, 88.72283, 88.72284, -87.33655, -103.972,
			float32(math.NaN()))
		got := make([]float32, len(x))
		Exp(got, x)
		worst := 0.0
		for i, v := range x {
			e := ulps(got[i], math.Exp(float64(v)))
			worst = max(worst, e)
			if !(e <= 1.5) {
				t.Fatalf("e^%v: got %v, want %v: %.2f ulp", v, got[i], math.Exp(float64(v)), e)
			}
		}
		t.Logf("worst error %.3f ulp over %d values", worst, len(x))
	})
}

// guarded is a slice of n values in poisoned surroundings; intact tells whether these are as they were.
type guarded struct{ all []float32 }

const guard = 11

func newGuarded(n int) guarded {
	g := guarded{make([]float32, n+2*guard)}
	for i := range g.all {
		g.all[i] = 1e30
	}
	return g
}

func (g guarded) data() []float32 { return g.all[guard : len(g.all)-guard] }

func (g guarded) intact() bool {
	return !slices.ContainsFunc(append(slices.Clone(g.all[:guard]), g.all[len(g.all)-guard:]...), func(v float32) bool { return v != 1e30 })
}

// close fails unless got is within n float32 roundings of want, relative to size.
func closeTo(t *testing.T, what string, got float32, want, size, n float64) {
	t.Helper()
	if !(math.Abs(float64(got)-want) <= n*size/(1<<24)+1e-37) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// TestElementwise compares every element by element function with float64, at every length up to some blocks, with
// guards around the outputs, and holds that an element has the same bits alone.
func TestElementwise(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for n := range 70 {
			x, y, d := normals(r, n, 4), normals(r, n, 1), normals(r, n, 1)
			out, second := newGuarded(n), newGuarded(n)
			check := func(name string, run func(to, to2 []float32, i, j int), want func(i int) (float64, float64), floor, roundings float64) {
				t.Helper()
				run(out.data(), second.data(), 0, n)
				if !out.intact() || !second.intact() {
					t.Fatalf("%s, n=%d: wrote outside", name, n)
				}
				for i := range n {
					w, w2 := want(i)
					closeTo(t, fmt.Sprintf("%s n=%d at %d", name, n, i), out.data()[i], w, math.Abs(w)+floor, roundings)
					closeTo(t, fmt.Sprintf("%s (second) n=%d at %d", name, n, i), second.data()[i], w2, math.Abs(w2)+floor, roundings)
					one, two := newGuarded(1), newGuarded(1)
					copy(one.data(), out.data()[i:])
					run(one.data(), two.data(), i, i+1)
					if one.data()[0] != out.data()[i] || two.data()[0] != second.data()[i] {
						t.Fatalf("%s: element %d of %d alone gives other bits", name, i, n)
					}
				}
			}
			silu := func(v float32) (s, silu float64) { s = 1 / (1 + math.Exp(-float64(v))); return s, float64(v) * s }
			check("SwiGLU", func(to, to2 []float32, i, j int) { SwiGLU(to, x[i:j], y[i:j]); clear(to2) }, func(i int) (float64, float64) {
				_, a := silu(x[i])
				return a * float64(y[i]), 0
			}, 1e-3, 16)
			check("SwiGLUBack", func(to, to2 []float32, i, j int) { SwiGLUBack(to, to2, d[i:j], x[i:j], y[i:j]) }, func(i int) (float64, float64) {
				s, a := silu(x[i])
				return float64(d[i]) * float64(y[i]) * s * (1 + float64(x[i])*(1-s)), float64(d[i]) * a
			}, 1e-3, 300) // 1 + gate·(1-s) cancels near -1.28
			check("Scale", func(to, to2 []float32, i, j int) { Scale(to, 1.7, x[i:j]); clear(to2) }, func(i int) (float64, float64) {
				return float64(float32(1.7)) * float64(x[i]), 0
			}, 0, 1)
			check("Axpy", func(to, to2 []float32, i, j int) {
				copy(to, y[i:j])
				Axpy(to, 1.7, x[i:j])
				clear(to2)
			}, func(i int) (float64, float64) {
				return float64(y[i]) + float64(float32(1.7))*float64(x[i]), 0
			}, 30, 1)
		}
	})
}

// TestInPlace holds that a destination may be a source, as documented.
func TestInPlace(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		const n = 77
		x, y, d := normals(r, n, 2), normals(r, n, 2), normals(r, n, 2)
		want, want2, got, got2 := make([]float32, n), make([]float32, n), slices.Clone(x), slices.Clone(y)
		Exp(want, x)
		Exp(got, got)
		if !slices.Equal(got, want) {
			t.Error("Exp in place differs")
		}
		got = slices.Clone(x)
		SwiGLUBack(want, want2, d, x, y)
		SwiGLUBack(got, got2, d, got, got2)
		if !slices.Equal(got, want) || !slices.Equal(got2, want2) {
			t.Error("SwiGLUBack in place differs")
		}
		got = slices.Clone(x)
		sum := ExpSum(want, x, 3)
		if ExpSum(got, got, 3) != sum || !slices.Equal(got, want) {
			t.Error("ExpSum in place differs")
		}
	})
}

func TestReductions(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for _, n := range append(func() (small []int) {
			for n := range 140 {
				small = append(small, n)
			}
			return
		}(), 576, 1000, 49152) {
			x, y := normals(r, n, 1), normals(r, n, 1)
			var dot, squares, size, top float64 = 0, 0, 0, math.Inf(-1)
			for i := range x {
				a, b := float64(x[i]), float64(y[i])
				dot, squares, size, top = dot+a*b, squares+a*a, size+math.Abs(a*b), max(top, a)
			}
			roundings := 2 + math.Sqrt(float64(n))
			closeTo(t, fmt.Sprint("Dot n=", n), Dot(x, y), dot, size, roundings)
			closeTo(t, fmt.Sprint("Dot with itself n=", n), Dot(x, x), squares, squares, roundings)
			if got := Max(x); float64(got) != top {
				t.Fatalf("Max n=%d: got %v, want %v", n, got, top)
			}
			if n == 0 {
				continue
			}
			out := newGuarded(n)
			sum, want := ExpSum(out.data(), x, float32(top)), 0.0
			if !out.intact() {
				t.Fatalf("ExpSum n=%d: wrote outside", n)
			}
			for i, v := range out.data() {
				e := math.Exp(float64(x[i] - float32(top)))
				want += e
				if ulps(v, e) > 1.5 {
					t.Fatalf("ExpSum n=%d at %d: got %v, want %v", n, i, v, e)
				}
			}
			closeTo(t, fmt.Sprint("ExpSum n=", n), sum, want, want, 4+roundings)
		}
	})
}

func TestMaskedSoftmaxRow(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		x := make([]float32, 13)
		for i := range x {
			x[i] = float32(math.Inf(-1))
		}
		x[4], x[12] = 2, 2
		if got := ExpSum(x, x, Max(x)); got != 2 || x[4] != 1 || x[0] != 0 {
			t.Errorf("sum %v of %v", got, x)
		}
	})
}

// TestBF16 takes every upper half with the lower halves around a tie.
func TestBF16(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		lows := []uint32{0, 1, 0x7fff, 0x8000, 0x8001, 0xffff}
		src := make([]float32, len(lows)<<16)
		for i := range src {
			src[i] = math.Float32frombits(uint32(i/len(lows))<<16 | lows[i%len(lows)])
		}
		got, back := make([]uint16, len(src)), make([]float32, len(src))
		ToBF16(got, src)
		FromBF16(back, got)
		for i, x := range src {
			upper, low := uint16(i/len(lows)), lows[i%len(lows)]
			want := upper
			if low > 0x8000 || low == 0x8000 && upper&1 == 1 {
				want++ // the carry may pass into the exponent, and to Inf
			}
			if x != x {
				if back[i] == back[i] {
					t.Fatalf("NaN %#x became %v", math.Float32bits(x), back[i])
				}
				continue
			}
			if got[i] != want || math.Float32bits(back[i]) != uint32(want)<<16 {
				t.Fatalf("%#x: got %#x, want %#x, back %#x", math.Float32bits(x), got[i], want, math.Float32bits(back[i]))
			}
		}
		for n := range 20 { // the end of a slice
			short, wide := make([]uint16, n+1), make([]float32, n+1)
			short[n], wide[n] = 0xabcd, 7
			ToBF16(short[:n], src[6*0x3f80:][:n])
			FromBF16(wide[:n], got[6*0x3f80:][:n])
			if !slices.Equal(short[:n], got[6*0x3f80:][:n]) || !slices.Equal(wide[:n], back[6*0x3f80:][:n]) || short[n] != 0xabcd || wide[n] != 7 {
				t.Fatalf("%d values: got %v %v", n, short, wide)
			}
		}
	})
}

func TestLengthsMustAgree(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Exp(make([]float32, 3), make([]float32, 4))
}

func TestChooseVariant(t *testing.T) {
	usable := []string{Generic, AVX2}
	for _, c := range []struct {
		wanted, got string
		fails       bool
	}{{"", AVX2, false}, {"generic", Generic, false}, {"avx2", AVX2, false}, {"avx512", AVX2, true}, {"mmx", AVX2, true}} {
		got, err := choose(usable, c.wanted)
		if got != c.got || (err != nil) != c.fails {
			t.Errorf("choose(%v, %q) = %q, %v", usable, c.wanted, got, err)
		}
	}
}

func BenchmarkElementwise(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	const n = 64 << 10
	x, y, d, out := normals(r, n, 1), normals(r, n, 1), normals(r, n, 1), make([]float32, n)
	half := make([]uint16, n)
	for _, f := range []struct {
		name string
		run  func()
	}{
		{"Exp", func() { Exp(out, x) }},
		{"SwiGLU", func() { SwiGLU(out, x, y) }},
		{"SwiGLUBack", func() { SwiGLUBack(out, d, d, x, y) }},
		{"ExpSum", func() { ExpSum(out, x, 1) }},
		{"Dot", func() { Dot(x, y) }},
		{"Axpy", func() { Axpy(out, 1e-9, x) }},
		{"ToBF16", func() { ToBF16(half, x) }},
		{"FromBF16", func() { FromBF16(out, half) }},
	} {
		b.Run(f.name, func(b *testing.B) {
			for b.Loop() {
				f.run()
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N)/n, "ns/value")
		})
	}
}
