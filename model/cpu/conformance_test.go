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
