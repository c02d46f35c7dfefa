//go:build cuda

package cuda_test

import (
	"flag"
	"testing"

	"qlora/cuda"
	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// The tests named TestCard need a card; scripts/gpu-check.sh runs them.

var (
	variantFlag = flag.String("variant", "auto", "kernels to test: auto or sm_80")
	benchFlag   = flag.Bool("bench_shapes", false, "also the shapes of a 7B model")
)

// open returns a backend on the card; on a machine without one the test fails.
func open(t testing.TB) *cuda.Backend {
	t.Helper()
	variants := map[string]cuda.Variant{"auto": cuda.Auto, "sm_80": cuda.SM80}
	v, ok := variants[*variantFlag]
	if !ok {
		t.Fatalf("-variant %s: choose auto or sm_80", *variantFlag)
	}
	b, err := cuda.New(cuda.Options{Variant: v})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func oracle() ops.Backend { return cpu.New[float64]() }

func options() opstest.Options {
	return opstest.Options{Bench: *benchFlag, Multiple: 8, HeadSizes: []int{64, 128},
		Storage: []opstest.Storage{{Weights: ops.BF16, Activations: ops.BF16}, {Weights: ops.NF4, Activations: ops.BF16}}}
}

// needCard fails the test on a machine without a card, before a runner asks for backends by the dozen.
func needCard(t *testing.T) {
	t.Helper()
	b := open(t)
	t.Logf("%s", b.Describe())
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCardConformance holds every op to the float64 oracle, and to itself.
func TestCardConformance(t *testing.T) {
	needCard(t)
	opstest.RunAll(t, func() ops.Backend { return open(t) }, oracle, options())
}

// TestCardInvariants holds a decoder of two layers to what must be so to the bit.
func TestCardInvariants(t *testing.T) {
	needCard(t)
	opstest.RunInvariants(t, func() ops.Backend { return open(t) }, options())
}

// TestCardHuge runs the cases with a tensor of more than 2³¹ elements: minutes, and up to 60 GiB of the card.
func TestCardHuge(t *testing.T) {
	needCard(t)
	opstest.RunPeriodic(t, func() ops.Backend { return open(t) }, oracle, options(), opstest.IsHuge)
}
