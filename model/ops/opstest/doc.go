// Package opstest holds the conformance cases of [ops.Backend]: what every backend is tested
// with, and what its benchmark measures.
//
// A [Case] is an op, its shapes, and a function that lays out its tensors in a rig and makes the
// call. The runner makes the call on the backend under test and on the oracle, the float64 CPU
// backend, fed with the same stored values, and demands that
//
//   - outputs agree within the tolerance of their storage (see compare.go);
//   - nothing else in the arena changed by a bit: sentinels of 4 KiB between all tensors, inputs,
//     weights, packed LoRA factors;
//   - a second run, on other garbage in outputs and workspace and another GOMAXPROCS, gives the
//     same bits.
//
// [RunGradients] checks the oracle itself: every backward against central differences of its own
// forward, alone and in a decoder of two layers. [RunReference] checks its forward against the
// formulas, and [RunInvariants] what must hold to the bit on any backend: packing, B = 0.
//
// To add an op: a method of the interface, a case here, a file in each backend.
//
// Fused weights (q|k|v, gate|up) and what comes out of them have a layout of the backend's own. The
// cases state values in the order of the model's parts; the rig finds a backend's order through
// the interface itself, by a product with a weight of zeros whose bias counts its rows.
package opstest
