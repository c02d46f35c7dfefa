package nf4

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"qlora/internal/bfloat16"
)

// The codes and absmax themselves are held to bitsandbytes in model/cpu (TestNF4Golden).

// A tensor read in pieces is that read at once, and no element is further from what was quantised than half the widest
// gap between codes.
func TestQuantizeAndRead(t *testing.T) {
	for _, c := range []struct{ rows, cols int }{{1, 64}, {3, 64}, {5, 320}, {300, 64 * 70}} {
		for _, double := range []bool{false, true} {
			n := c.rows * c.cols
			rng := rand.New(rand.NewPCG(1, uint64(n)))
			values := make([]float32, n)
			for i := range values {
				values[i] = float32(rng.NormFloat64())
			}
			q, err := Quantize(c.rows, c.cols, double, func(dst []float32, row, _ int) error { copy(dst, values[row*c.cols:]); return nil })
			if err != nil {
				t.Fatal(err)
			}
			if q.Double() != double || q.Check(n) != nil || q.Check(n+Block*NestedBlock) == nil {
				t.Fatalf("n %d: double %v, check %v, and of too few %v", n, q.Double(), q.Check(n), q.Check(n+Block*NestedBlock))
			}
			if size := len(q.Codes) + 4*len(q.Absmax) + len(q.Absmax8) + 4*len(q.Nested); double && Bytes(n, true) != int64(size+4) || !double && Bytes(n, false) != int64(size) {
				t.Errorf("n %d double %v: Bytes %d, but %d are held", n, double, Bytes(n, double), size)
			}
			whole, part := make([]float32, n), make([]float32, n)
			q.Read(whole, 0)
			for at := 0; at < n; at += 3 * Block {
				q.Read(part[at:min(at+3*Block, n)], at)
			}
			for i, v := range values {
				if math.Float32bits(whole[i]) != math.Float32bits(part[i]) {
					t.Fatalf("n %d: element %d is %g at once, %g in pieces", n, i, whole[i], part[i])
				}
				if bound := 0.17 * float64(q.At(i/Block)); math.Abs(float64(whole[i]-v)) > bound {
					t.Fatalf("n %d double %v: element %d is %g for %g, further than %g", n, double, i, whole[i], v, bound)
				}
			}
			for at := 0; at < n; at += 32 {
				q.ReadBF16(part[at:at+32], at)
			}
			for i, v := range whole {
				if part[i] != bfloat16.Round(v) {
					t.Fatalf("n %d: element %d is %g in bfloat16, want %g rounded", n, i, part[i], v)
				}
			}
		}
	}
}

func TestQuantizePassesErrors(t *testing.T) {
	want := errors.New("gone")
	if _, err := Quantize(1, 64, true, func([]float32, int, int) error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if _, err := Quantize(2, 65, true, nil); err == nil {
		t.Error("rows that are not whole blocks accepted")
	}
}

// Dequantised to bfloat16 is dequantised and then rounded.
func TestDequantizeBF16(t *testing.T) {
	var codes [Block / 2]byte
	for i := range codes {
		codes[i] = byte(i*37 + 11)
	}
	exact, rounded := make([]float32, 61), make([]float32, 61)
	Dequantize(exact, codes[:], 0.0371)
	DequantizeBF16(rounded, codes[:], 0.0371)
	for i, v := range exact {
		if bfloat16.Round(v) != rounded[i] {
			t.Errorf("element %d: %g, want %g rounded", i, rounded[i], v)
		}
	}
}

func BenchmarkDequantizeBF16(b *testing.B) {
	var codes [Block / 2]byte
	var values [Block]float32
	b.SetBytes(Block)
	for b.Loop() {
		DequantizeBF16(values[:], codes[:], 0.02)
	}
}

func BenchmarkQuantizeBlock(b *testing.B) {
	var codes [Block / 2]byte
	var values [Block]float32
	for i := range values {
		values[i] = float32(math.Sin(float64(i)))
	}
	b.SetBytes(Block)
	for b.Loop() {
		QuantizeBlock(codes[:], values[:])
	}
}
