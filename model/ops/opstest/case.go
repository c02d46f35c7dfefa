package opstest

import (
	"fmt"

	"qlora/model/ops"
)

// Case is one call of an op: shapes, wiring, tolerances, and the work it stands for.
type Case struct {
	Name  string
	Op    string
	Size  Size
	FLOPs float64 // multiplications and additions, LoRA included
	Bytes float64 // least traffic with bfloat16 activations and weights
	Cols  int     // of the frozen weight of a product; else 0

	// What a library of the vendor is asked for, to compare with: the products of the op, without what goes into them beside;
	// attention of one segment.
	Products  []Product
	Attention *AttentionShape

	plan     plan
	consumes bool // overwrites what it reads, so that it must be written anew before the call is repeated
}

// Product is y (M,N) = x (M,K)·Wᵀ, or backward dx (M,K) = dy (M,N)·W.
type Product struct {
	M, N, K int
	Back    bool
}

// AttentionShape is causal attention of T tokens, or its backward.
type AttentionShape struct {
	T     int
	Heads ops.Heads
	Back  bool
}

// Size says where a case can run.
type Size uint8

const (
	Small Size = iota // everywhere
	Bench             // real shapes of a 7B model: a card
	Huge              // a tensor of more than 2³¹ elements: a card, and hours of the oracle
)

func (s Size) String() string { return [...]string{"small", "bench", "huge"}[s] }

// Multiple is the largest power of two, up to 16, that divides every width of the case, and HeadSize the
// size of its heads or 0: what a backend's limits are about. The vocabulary is a width of HeadLoss, whose
// gradient is a product over it.
func (c Case) Multiple() int {
	widths := []int{c.plan.dims.C, c.plan.dims.F}
	if c.Op == "HeadLoss" {
		widths = append(widths, c.plan.dims.V)
	}
	n := 16
	for _, w := range widths {
		for w%n != 0 {
			n /= 2
		}
	}
	return n
}

// Columns is the width of the case's model, C.
func (c Case) Columns() int { return c.plan.dims.C }

// HeadSize is the size of the heads of a case on attention, else 0.
func (c Case) HeadSize() int { return c.plan.dims.D }

// Cases lists every case. The same list serves tests and benchmarks.
func Cases() []Case {
	var all []Case
	for _, f := range []func() []Case{
		embedCases, rmsnormCases, linearCases, attentionCases, swigluCases,
		linearBackCases, rmsnormBackCases, attentionBackCases, swigluBackCases, loraGradCases,
		headCases, optimizerCases, decodeCases, sampleCases, nf4Cases,
	} {
		all = append(all, f()...)
	}
	return all
}

// The models whose widths the cases have.
type modelShape struct {
	name string
	C, F int
	h    ops.Heads
	V    int
}

var (
	qwen7B    = modelShape{"7B", 3584, 18944, ops.Heads{H: 28, Hk: 4, D: 128}, 152064}
	qwen15B   = modelShape{"1.5B", 1536, 8960, ops.Heads{H: 12, Hk: 2, D: 128}, 151936}
	qwen05B   = modelShape{"0.5B", 896, 4864, ops.Heads{H: 14, Hk: 2, D: 64}, 151936}
	smolLM    = modelShape{"SmolLM2", 576, 1536, ops.Heads{H: 9, Hk: 3, D: 64}, 49152}
	tinyOdd   = modelShape{"odd", 13, 19, ops.Heads{H: 3, Hk: 1, D: 6}, 37}
	tinyEven  = modelShape{"tiny", 48, 80, ops.Heads{H: 4, Hk: 2, D: 16}, 104}
	allModels = []modelShape{tinyOdd, tinyEven, smolLM, qwen05B, qwen15B, qwen7B}
)

// lengths are the token counts every op meets: around the tiles' edges, primes, one.
var lengths = []int{1, 2, 3, 31, 63, 64, 65, 113, 127, 128, 129, 257}

// patterns are the LoRA on a weight of n parts, taken in turn: none, all parts with ranks of their own,
// some, and the largest.
func patterns(i, n int) adapters {
	drops := []float32{0, 0.05, 0.5}
	drop := drops[i%len(drops)]
	ranks := [][]int{{0, 0, 0}, {8, 16, 4}, {8, 0, 5}, {0, 3, 0}, {64, 64, 64}, {1, 0, 0}}[i%6][:n]
	return adapters{ranks, drop}
}

func segmentsFor(i, T int) int { return min([]int{1, 2, 7}[i%3], T) }

func (c *Case) dims(m modelShape, h ops.HostBatch, width int) {
	c.plan.host = h
	c.plan.dims = ops.Dims{T: len(h.IDs), S: len(h.SegStart) - 1, N: max(len(h.Rows), 1), C: m.C, F: m.F, V: m.V,
		H: m.h.H, Hk: m.h.Hk, D: m.h.D, Width: width, Rank: min(width, ops.MaxRank), Training: true}
}

// newCase names a case and sets its bounds.
func newCase(op string, size Size, m modelShape, h ops.HostBatch, rank int, format string, args ...any) Case {
	c := Case{Op: op, Size: size, Name: fmt.Sprintf("%s/%s T%d S%d %s", op, m.name, len(h.IDs), len(h.SegStart)-1, fmt.Sprintf(format, args...))}
	c.dims(m, h, rank)
	c.plan.name = c.Name
	return c
}

// sizeOf says what a case of T tokens by wide columns is.
func sizeOf(T, wide int) Size {
	switch {
	case T*wide > 1<<31:
		return Huge
	case T >= 1024:
		return Bench
	}
	return Small
}

// past2G is the tokens that make a tensor of width wide cross 2³¹ elements.
func past2G(wide int) int { return (1<<31)/wide/64*64 + 128 }

func product2(m, n, k int) float64 { return 2 * float64(m) * float64(n) * float64(k) }

func sum(parts ...int) float64 {
	n := 0.0
	for _, p := range parts {
		n += float64(p)
	}
	return n
}
