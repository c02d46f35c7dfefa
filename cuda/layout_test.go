//go:build cuda

package cuda

import (
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"qlora/model/ops"
)

var qkv = ops.WeightSpec{Name: "qkv", Kind: ops.QKV, DType: ops.BF16, Parts: []int{12, 6, 6}, Cols: 8, HeadDim: 6}

// TestOrder holds the order of q, k, v to the words of kernels/api.h: the rows of each head of q and k as 0, D/2, 1, D/2+1 ...
func TestOrder(t *testing.T) {
	rows := make([]float32, qkv.Rows())
	for i := range rows {
		rows[i] = float32(i)
	}
	want := []float32{
		0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, // two heads of q
		12, 15, 13, 16, 14, 17, // one of k
		18, 19, 20, 21, 22, 23} // v
	if diff := cmp.Diff(want, place(qkv, rows)); diff != "" {
		t.Error("rows on the card (-want +got):\n" + diff)
	}
}

// TestStrips shows that every row goes to a place of its own, in blocks of any number of heads as in one.
func TestStrips(t *testing.T) {
	for _, s := range []ops.WeightSpec{
		qkv,
		{Kind: ops.QKV, Parts: []int{3584, 512, 512}, HeadDim: 128},
		{Kind: ops.GateUp, Parts: []int{24, 24}},
		{Kind: ops.Plain, Parts: []int{31}},
	} {
		whole := places(s, math.MaxInt)
		for block := range 3 {
			if got := places(s, block+1); !slices.Equal(got, whole) {
				t.Errorf("%v in blocks of %d units: rows go elsewhere than in one block", s, block+1)
			}
		}
		slices.Sort(whole)
		for i, row := range whole {
			if i != row {
				t.Fatalf("%v: row %d of the card gets no row, or two", s, i)
			}
		}
	}
}

// places is the row on the card of every row of s, moved units at a time.
func places(s ops.WeightSpec, units int) []int {
	var all []int
	for p, rows := range s.Parts {
		block := rows
		if units < rows/unit(s, p) {
			block = units * unit(s, p)
		}
		for row := 0; row < rows; row += block {
			n := min(block, rows-row)
			to := make([]int, n)
			for _, t := range strips(s, p, row, n) {
				for i := range t.rows {
					to[t.src+i] = t.dst + i*t.step
				}
			}
			all = append(all, to...)
		}
	}
	return all
}

func TestCheckLayout(t *testing.T) {
	for _, c := range []struct {
		name string
		spec ops.WeightSpec
		want string
	}{
		{"good", ops.WeightSpec{Name: "w", DType: ops.BF16, Cols: 64}, ""},
		{"float32", ops.WeightSpec{Name: "w", DType: ops.F32, Cols: 64}, "cuda: weight w is to be stored as float32, and a card stores bfloat16 or NF4: say --torch_dtype bfloat16, or --backend cpu"},
		{"odd columns", ops.WeightSpec{Name: "w", DType: ops.BF16, Cols: 12}, "cuda: weight w has 12 columns; the kernels take multiples of 8"},
	} {
		got := ""
		if err := checkLayout(c.spec); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
