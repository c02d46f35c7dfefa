package gemm

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"unsafe"

	"qlora/model/cpu/vec"
)

// eachVariant runs the test with every variant of the kernels that this processor has, and with plain loops in the
// shape of the AVX-512 kernels, so that what surrounds these is tested everywhere.
func eachVariant(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	kept := current
	defer func() { current = kept }()
	for _, k := range append([]*kernels{plainLoops(12, 32)}, variants...) {
		current = k
		t.Run(k.variant, test)
	}
}

// plainLoops are kernels of tiles of up to mr rows and panels of nr columns, as type micro reads.
func plainLoops(mr, nr int) *kernels {
	k := generic
	k.variant, k.mr, k.nr = fmt.Sprintf("plain %dx%d", mr, nr), mr, nr
	k.copyPanel = func(dst, src *byte, lds uintptr, rows int) {
		for r := range rows {
			copy(unsafe.Slice(offset(dst, uintptr(4*r*nr)), 4*nr), unsafe.Slice(offset(src, uintptr(r)*lds), 4*nr))
		}
	}
	k.f32, k.bf16 = nil, nil
	for rows := 1; rows <= mr; rows++ {
		k.f32 = append(k.f32, []micro{plainLoop(rows, 1, nr, 4)})
		k.bf16 = append(k.bf16, []micro{plainLoop(rows, 1, nr, 2)})
	}
	k.f32[0] = append(k.f32[0], nil, nil, plainLoop(1, 4, nr, 4))
	k.bf16[2] = append(k.bf16[2], plainLoop(3, 2, nr, 2))
	return &k
}

func plainLoop(rows, panels, nr int, size uintptr) micro {
	return func(tiles int, a *byte, rs, ks uintptr, b *byte, ps uintptr, k int, y *byte, ldy uintptr, add int) {
		for i := range uintptr(tiles * rows) {
			for j := range panels * nr {
				var sum float32
				for l := range k {
					x := element(unsafe.Pointer(offset(a, i*rs+uintptr(l)*ks)), 0, 4)
					w := element(unsafe.Pointer(offset(b, uintptr(j/nr)*ps)), l*nr+j%nr, size)
					sum += float32(x * w)
				}
				to := (*float32)(unsafe.Pointer(offset(y, i*ldy+uintptr(4*j))))
				if add != 0 {
					sum += *to
				}
				*to = sum
			}
		}
	}
}

const poison = 1e30 // what lies around an output, and in one that is to be overwritten

// matrix is a row-major test matrix with a gap after each row and a guard at both ends.
type matrix struct {
	rows, cols, ld int
	all            []float32
}

const guard = 37

func newMatrix(rows, cols int) matrix {
	m := matrix{rows: rows, cols: cols, ld: cols + 3}
	m.all = make([]float32, guard+rows*m.ld+guard)
	for i := range m.all {
		m.all[i] = poison
	}
	return m
}

func randomMatrix(r *rand.Rand, rows, cols int) matrix {
	m := newMatrix(rows, cols)
	for i := range rows {
		for j := range cols {
			m.set(i, j, float32(r.NormFloat64()))
		}
	}
	return m
}

func (m matrix) data() []float32         { return m.all[guard : len(m.all)-guard] }
func (m matrix) at(i, j int) float32     { return m.data()[i*m.ld+j] }
func (m matrix) set(i, j int, v float32) { m.data()[i*m.ld+j] = v }
func (m matrix) clone() matrix           { m.all = append([]float32(nil), m.all...); return m }
func (m matrix) row(i int) []float32     { return m.data()[i*m.ld : i*m.ld+m.cols] }
func (m matrix) f64(i, j int) float64    { return float64(m.at(i, j)) }
func (m matrix) outside(t *testing.T) {
	t.Helper()
	for i, v := range m.all {
		at := i - guard
		if inside := at >= 0 && at/m.ld < m.rows && at%m.ld < m.cols; !inside && v != poison {
			t.Fatalf("(%d,%d) output: wrote %v outside, at %d from its start", m.rows, m.cols, v, at)
		}
	}
}

// near checks y against the float64 sums of old + Σ_k a(i,k)·b(k,j), within the error of float32 sums of that length.
func near(t *testing.T, y, old matrix, add bool, k int, a, b func(i, k int) float64) {
	t.Helper()
	y.outside(t)
	const eps = 1.0 / (1 << 24)
	for i := range y.rows {
		for j := range y.cols {
			var want, size float64
			if add {
				want = old.f64(i, j)
				size = math.Abs(want)
			}
			for l := range k {
				p := a(i, l) * b(l, j)
				want += p
				size += math.Abs(p)
			}
			// The bound of n roundings is n·eps·Σ|terms|; they behave like a random walk.
			limit := 3 * eps * size * (1 + math.Sqrt(float64(k)))
			if got := y.f64(i, j); !(math.Abs(got-want) <= limit) {
				t.Fatalf("(%d,%d,%d) at (%d,%d): got %v, want %v within %.2g", y.rows, y.cols, k, i, j, got, want, limit)
			}
		}
	}
}

func same(t *testing.T, what string, got, want matrix) {
	t.Helper()
	for i := range got.rows {
		for j := range got.cols {
			if g, w := got.at(i, j), want.at(i, j); math.Float32bits(g) != math.Float32bits(w) {
				t.Fatalf("%s: at (%d,%d) got %v, want %v", what, i, j, g, w)
			}
		}
	}
}

func pack(t testing.TB, w matrix, bf16 bool) *Matrix {
	t.Helper()
	m, err := Pack(w.rows, w.cols, bf16, func(row, count int, dst []float32) error {
		for i := range count {
			copy(dst[i*w.cols:(i+1)*w.cols], w.row(row+i))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// stored is W as the matrix keeps it.
func stored(m *Matrix) matrix {
	w := newMatrix(m.N, m.K)
	for n := range m.N {
		m.Row(w.row(n), n)
	}
	return w
}

// shapes are all small sizes around the edges of tiles, panels and blocks, thinned to every eighth combination, and
// some that cross several blocks.
func shapes(r *rand.Rand) [][3]int {
	sizes := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 23, 31, 32, 33, 37}
	var s [][3]int
	for _, m := range sizes {
		for _, n := range sizes {
			for _, k := range sizes {
				if r.IntN(8) == 0 {
					s = append(s, [3]int{m, n, k})
				}
			}
		}
	}
	return append(s, [3]int{241, 65, 255}, [3]int{13, 130, 256}, [3]int{61, 33, 257}, [3]int{7, 515, 513}, [3]int{5, 259, 769},
		[3]int{1, 300, 600}, [3]int{2, 131, 300}, [3]int{3, 131, 300}, [3]int{499, 17, 67})
}

func TestPackedProducts(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, s := range shapes(r) {
			M, N, K := s[0], s[1], s[2]
			bf16, add := r.IntN(2) == 0, r.IntN(2) == 0
			m := pack(t, randomMatrix(r, N, K), bf16)
			w := stored(m)
			x, dy := randomMatrix(r, M, K), randomMatrix(r, M, N)

			y := newMatrix(M, N)
			if add {
				y = randomMatrix(r, M, N)
			}
			old := y.clone()
			m.MulT(y.data(), y.ld, x.data(), x.ld, M, add)
			near(t, y, old, add, K, x.f64, func(k, n int) float64 { return w.f64(n, k) })

			dx := newMatrix(M, K)
			if add {
				dx = randomMatrix(r, M, K)
			}
			old = dx.clone()
			m.Mul(dx.data(), dx.ld, dy.data(), dy.ld, M, add)
			near(t, dx, old, add, N, dy.f64, w.f64)
		}
	})
}

func TestPlainProducts(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		for _, s := range append(shapes(r), [3]int{16, 300, 600}, [3]int{300, 16, 600}, [3]int{600, 8, 300}) {
			m, n, k := s[0], s[1], s[2]
			add := r.IntN(2) == 0
			out := func() matrix {
				if add {
					return randomMatrix(r, m, n)
				}
				return newMatrix(m, n)
			}
			a, aT := randomMatrix(r, m, k), randomMatrix(r, k, m)
			b, bT := randomMatrix(r, k, n), randomMatrix(r, n, k)

			y := out()
			old := y.clone()
			Mul(y.data(), y.ld, a.data(), a.ld, b.data(), b.ld, m, n, k, add)
			near(t, y, old, add, k, a.f64, b.f64)

			y = out()
			old = y.clone()
			MulT(y.data(), y.ld, a.data(), a.ld, bT.data(), bT.ld, m, n, k, add)
			near(t, y, old, add, k, a.f64, func(k, n int) float64 { return bT.f64(n, k) })

			y = out()
			old = y.clone()
			TMul(y.data(), y.ld, aT.data(), aT.ld, b.data(), b.ld, m, n, k, add)
			near(t, y, old, add, k, func(i, k int) float64 { return aT.f64(k, i) }, b.f64)
		}
	})
}

// TestRowsAlone holds that a row's result has the same bits alone, in every batch and at every place in it, and that
// the number of cores does not matter.
func TestRowsAlone(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		const M, N, K = 263, 83, 523
		for _, bf16 := range []bool{false, true} {
			m := pack(t, randomMatrix(r, N, K), bf16)
			x, dy := randomMatrix(r, M, K), randomMatrix(r, M, N)
			products := []struct {
				name string
				x    matrix
				cols int
				mul  func(y, x []float32, ldy, ldx, M int)
			}{
				{"MulT", x, N, func(y, x []float32, ldy, ldx, M int) { m.MulT(y, ldy, x, ldx, M, false) }},
				{"Mul", dy, K, func(y, x []float32, ldy, ldx, M int) { m.Mul(y, ldy, x, ldx, M, false) }},
			}
			for _, p := range products {
				all := newMatrix(M, p.cols)
				p.mul(all.data(), p.x.data(), all.ld, p.x.ld, M)
				for _, first := range []int{0, 5, 100, M - 17} {
					for _, rows := range []int{1, 2, 3, 4, 5, 6, 7, 12, 13, 17} {
						some := newMatrix(rows, p.cols)
						p.mul(some.data(), p.x.data()[first*p.x.ld:], some.ld, p.x.ld, rows)
						want := matrix{rows, p.cols, all.ld, all.all[first*all.ld : (first+rows)*all.ld+2*guard]}
						same(t, fmt.Sprintf("%s: %d rows from %d alone", p.name, rows, first), some, want)
					}
				}
				cores := runtime.GOMAXPROCS(1)
				one := newMatrix(M, p.cols)
				p.mul(one.data(), p.x.data(), one.ld, p.x.ld, M)
				runtime.GOMAXPROCS(2)
				two := newMatrix(M, p.cols)
				p.mul(two.data(), p.x.data(), two.ld, p.x.ld, M)
				runtime.GOMAXPROCS(cores)
				same(t, p.name+": 1 core against 2", one, two)
				same(t, p.name+": 1 core against all", one, all)
			}
		}
	})
}

// TestPackedEqualsPlain holds that the packed products and the plain ones sum in the same order.
func TestPackedEqualsPlain(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(7, 8))
		const M, N, K = 29, 301, 290
		m := pack(t, randomMatrix(r, N, K), true)
		w := stored(m)
		x, dy := randomMatrix(r, M, K), randomMatrix(r, M, N)
		packed, plain := newMatrix(M, N), newMatrix(M, N)
		m.MulT(packed.data(), packed.ld, x.data(), x.ld, M, false)
		MulT(plain.data(), plain.ld, x.data(), x.ld, w.data(), w.ld, M, N, K, false)
		same(t, "x·Wᵀ", packed, plain)
		packed, plain = newMatrix(M, K), newMatrix(M, K)
		m.Mul(packed.data(), packed.ld, dy.data(), dy.ld, M, false)
		Mul(plain.data(), plain.ld, dy.data(), dy.ld, w.data(), w.ld, M, K, N, false)
		same(t, "dy·W", packed, plain)
	})
}

// TestTMulInPieces holds the contract of a gradient: tokens in pieces cut at multiples of 256 give the same bits.
func TestTMulInPieces(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(9, 10))
		const T, R, C = 900, 12, 77
		du, x := randomMatrix(r, T, R), randomMatrix(r, T, C)
		whole := newMatrix(R, C)
		TMul(whole.data(), whole.ld, du.data(), du.ld, x.data(), x.ld, R, C, T, false)
		for _, cuts := range [][]int{{0, 256, T}, {0, 512, T}, {0, 256, 512, 768, T}} {
			pieces := newMatrix(R, C)
			for i, from := range cuts[:len(cuts)-1] {
				TMul(pieces.data(), pieces.ld, du.data()[from*du.ld:], du.ld, x.data()[from*x.ld:], x.ld, R, C, cuts[i+1]-from, i > 0)
			}
			same(t, fmt.Sprint("cut at ", cuts), pieces, whole)
		}
	})
}

// TestVectorVariantsAgree holds that AVX2 and AVX-512 give the same bits.
func TestVectorVariantsAgree(t *testing.T) {
	if len(variants) < 3 {
		t.Logf("this processor has %d variant(s): nothing to compare AVX-512 with", len(variants))
	}
	kept := current
	defer func() { current = kept }()
	r := rand.New(rand.NewPCG(11, 12))
	const M, N, K = 31, 75, 600
	w, x := randomMatrix(r, N, K), randomMatrix(r, M, K)
	var first *matrix
	for _, k := range variants {
		if k.variant == vec.Generic {
			continue
		}
		current = k
		y := newMatrix(M, N)
		pack(t, w, true).MulT(y.data(), y.ld, x.data(), x.ld, M, false)
		if first == nil {
			first = &y
		}
		same(t, k.variant, y, *first)
	}
}

func TestPackRounds(t *testing.T) {
	eachVariant(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(13, 14))
		w := randomMatrix(r, 37, 45)
		for _, bf16 := range []bool{false, true} {
			m := pack(t, w, bf16)
			if got, want := m.Bytes(), PackedBytes(37, 45, bf16); got != want {
				t.Errorf("Bytes() = %d, PackedBytes = %d", got, want)
			}
			got, row := stored(m), make([]float32, w.cols)
			for i := range w.rows {
				copy(row, w.row(i))
				for j, v := range row {
					if bf16 {
						v = nearestBF16(v)
					}
					if got.at(i, j) != v {
						t.Fatalf("bf16 %v at (%d,%d): %v stored as %v, want %v", bf16, i, j, row[j], got.at(i, j), v)
					}
				}
			}
		}
	})
}

// nearestBF16 rounds by comparing the two neighbours in float64.
func nearestBF16(x float32) float32 {
	down := math.Float32frombits(math.Float32bits(x) &^ 0xffff)
	up := math.Float32frombits(math.Float32bits(x)&^0xffff + 0x10000)
	a, b := math.Abs(float64(x)-float64(down)), math.Abs(float64(up)-float64(x))
	if a < b || a == b && math.Float32bits(down)&0x10000 == 0 {
		return down
	}
	return up
}

func TestPackErrors(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Pack(3, 3, false, func(int, int, []float32) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error of rows: got %v", err)
	}
	for _, s := range [][2]int{{0, 3}, {3, 0}, {-1, 3}} {
		if _, err := Pack(s[0], s[1], false, nil); err == nil {
			t.Errorf("shape %v: no error", s)
		}
	}
}

func TestShapesThatDoNotFit(t *testing.T) {
	x := make([]float32, 12)
	for name, call := range map[string]func(){
		"short y":    func() { Mul(x[:11], 4, x, 4, x, 4, 3, 4, 3, false) },
		"short a":    func() { Mul(x, 4, x[:10], 4, x, 4, 3, 4, 3, false) },
		"narrow row": func() { MulT(x, 3, x, 4, x, 4, 3, 4, 3, false) },
		"negative":   func() { TMul(x, 4, x, 4, x, 4, -1, 4, 3, false) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			call()
		})
	}
}

// TestNoTerms holds that a sum of no terms is zero, or the old value.
func TestNoTerms(t *testing.T) {
	y := newMatrix(3, 5)
	Mul(y.data(), y.ld, nil, 0, nil, 5, 3, 5, 0, false)
	near(t, y, y, false, 0, nil, nil)
	before := y.clone()
	Mul(y.data(), y.ld, nil, 0, nil, 5, 3, 5, 0, true)
	same(t, "add", y, before)
}
