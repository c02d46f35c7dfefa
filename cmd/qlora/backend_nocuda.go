//go:build !cuda

package main

import (
	"qlora/bench/measure"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// backendNames are the backends of this binary.
const backendNames = "cpu"

var withoutCUDA = noCUDA{"this binary was built without CUDA", "build it with `make build` on a machine with the CUDA toolkit"}

func openCUDA(*env, deviceFlags) (ops.Backend, error) { return nil, &withoutCUDA }

// checkCUDA is what doctor says of cards.
func checkCUDA() []finding {
	return []finding{{"cuda", warning, withoutCUDA.reason, "training runs on the processor; for the card, " + withoutCUDA.fix}}
}

// loadRate says how fast weights went to a card.
func loadRate(ops.Backend) string { return "" }

// measureProcess says what a process takes of a card beside what was planned.
func measureProcess(*env, ops.Backend, *memoryReport) bool { return false }

// openCardProbe returns the probe of a card: nil for another device.
func openCardProbe(ops.Backend) (measure.Probe, error) { return nil, nil }

// cardLimits are what of the conformance cases a card takes: all on another device.
func cardLimits(ops.Backend) opstest.Options { return opstest.Options{} }

// kernelsOf names the kernels that a backend runs.
func kernelsOf(ops.Backend) string { return kernelVariant() }

// isDeviceFault tells the fault of a card from other errors.
func isDeviceFault(error) bool { return false }
