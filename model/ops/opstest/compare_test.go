package opstest

import (
	"strings"
	"testing"

	"qlora/model/ops"
)

func TestTolerances(t *testing.T) {
	n := 1000
	ref := take(normal("ref", 1), n, ops.F64)
	off := func(f func(i int, v float64) float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = f(i, ref[i])
		}
		return v
	}
	stored := off(func(_ int, v float64) float64 { return round(v, ops.BF16) })
	one := func(by float64) []float64 {
		return off(func(i int, v float64) float64 {
			if i == 500 {
				return v + by
			}
			return v
		})
	}
	rule := tolerance{rule: attention, coarse: off(func(i int, v float64) float64 { return v + []float64{0.01, -0.01}[i%2] })}
	for _, c := range []struct {
		name     string
		tol      tolerance
		got      []float64
		d, store ops.DType
		want     string // of the error; "" for none
	}{
		{"float32 rounding", byElement, off(func(_ int, v float64) float64 { return round(v, ops.F32) }), ops.F32, ops.F32, ""},
		{"one element of float32 off", byElement, one(1e-3), ops.F32, ops.F32, "NMSE"},
		{"bfloat16 rounding", byElement, stored, ops.BF16, ops.BF16, ""},
		{"one element of bfloat16 off", byElement, one(0.1), ops.BF16, ops.BF16, "ulp"},
		{"bfloat16 rounding of a product", byProduct, stored, ops.BF16, ops.BF16, ""},
		{"bfloat16 in a float32 product", byProduct, stored, ops.F32, ops.F32, "NMSE"},
		{"a product 1 % off", byProduct, off(func(_ int, v float64) float64 { return 1.01 * v }), ops.BF16, ops.BF16, "calc_diff"},
		{"attention within twice the coarse error", rule, one(0.019), ops.BF16, ops.BF16, ""},
		{"attention beyond it", rule, one(0.05), ops.BF16, ops.BF16, "max error"},
		{"not a number", byProduct, off(func(i int, v float64) float64 { return v / map[bool]float64{true: 0, false: 1}[i == 3] }), ops.BF16, ops.BF16, "element 3 is"},
		{"equal", equal, one(0), ops.F32, ops.F32, ""},
		{"not equal", equal, one(1e-9), ops.F32, ops.F32, "element 500"},
	} {
		err := c.tol.compare(c.got, ref, c.d, c.store)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// Zeros where the oracle has zeros are right, anything else there is not.
func TestToleranceOfZeros(t *testing.T) {
	zeros := make([]float64, 4)
	for _, tol := range []tolerance{byElement, byProduct, equal} {
		for _, d := range []ops.DType{ops.F32, ops.BF16} {
			if err := tol.compare(zeros, zeros, d, d); err != nil {
				t.Error(err)
			}
			if err := tol.compare([]float64{0, 1e-30, 0, 0}, zeros, d, d); err == nil {
				t.Errorf("rule %d, %s: 1e-30 passes for 0", tol.rule, d)
			}
		}
	}
}

func TestCasesHaveNamesOfTheirOwn(t *testing.T) {
	seen, sizes := map[string]bool{}, map[Size]int{}
	for _, c := range Cases() {
		if seen[c.Name] {
			t.Errorf("two cases are named %s", c.Name)
		}
		seen[c.Name] = true
		sizes[c.Size]++
		if c.FLOPs < 0 || c.Bytes <= 0 || c.plan.wire == nil {
			t.Errorf("%s: %g FLOPs, %g bytes", c.Name, c.FLOPs, c.Bytes)
		}
	}
	if sizes[Small] < 200 || sizes[Bench] < 20 || sizes[Huge] < 10 {
		t.Errorf("sizes %v", sizes)
	}
}

func TestBatchesAreWhole(t *testing.T) {
	for T := 1; T < 40; T++ {
		for _, S := range []int{1, min(2, T), min(7, T), T} {
			h := batch(T, S, (T+1)/2, 50)
			room := ops.Tensor{DType: ops.I32, Shape: []int{ops.BatchWords(T, S, T)}, Buf: measure{}}
			b, err := ops.NewBatch(room, T, S, T)
			if err == nil {
				_, err = b.Load(h)
			}
			if err != nil {
				t.Errorf("T=%d S=%d: %v", T, S, err)
			}
			total := 0
			for s := range S {
				total += len(segment(h, s).Rows)
			}
			if total != len(h.Rows) {
				t.Errorf("T=%d S=%d: the segments have %d labels of %d", T, S, total, len(h.Rows))
			}
		}
	}
}
