package cpu_test

import (
	"testing"

	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

func float() ops.Backend  { return cpu.New[float32]() }
func oracle() ops.Backend { return cpu.New[float64]() }

var options = opstest.Options{Bitwise: true, Storage: []opstest.Storage{
	{Weights: ops.F32, Activations: ops.F32},
	{Weights: ops.BF16, Activations: ops.F32},
	{Weights: ops.BF16, Activations: ops.BF16},
}}

// TestConformance holds the float32 backend to the float64 one, and to itself.
func TestConformance(t *testing.T) { opstest.RunAll(t, float, oracle, options) }

// TestGradients holds the backward of the float64 backend to differences of its forward.
func TestGradients(t *testing.T) { opstest.RunGradients(t, oracle) }

// TestReference holds the forward of the float64 backend to the formulas.
func TestReference(t *testing.T) { opstest.RunReference(t, oracle) }

// TestInvariants holds both to what must be so to the bit.
func TestInvariants(t *testing.T) {
	opstest.RunInvariants(t, float, options)
	opstest.RunInvariants(t, oracle, opstest.Options{Bitwise: true, Storage: []opstest.Storage{{Weights: ops.F32, Activations: ops.F64}}})
}
