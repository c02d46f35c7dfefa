package lora

import "testing"

// BenchmarkMerge is a module of the 7B model at rank 16, on one goroutine.
func BenchmarkMerge(b *testing.B) {
	const in, out, rank = 3584, 512, 16
	u := &Update{factors: map[string][]factor{"m": {{a: make([]float32, rank*in), b: make([]float32, out*rank), rank: rank, in: in, out: out, scale: 2}}}}
	w := make([]float32, in*out)
	b.SetBytes(4 * in * out)
	for b.Loop() {
		u.Add("m", w, 0, out)
	}
}
