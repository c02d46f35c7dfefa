//go:build cuda

// Package cuda runs the model on one NVIDIA card: the Go side of the kernels in ../kernels, one [ops.Backend].
//
// A run lives in one arena of device memory and on one stream. An op checks its arguments (ops.CheckX), hands
// addresses to its launcher in kernels/api.h, and returns: nothing waits but Read and Sync. What crosses to the card goes
// through a few pinned slots (staging.go), so that the host fills one while another is on its way.
//
// Storage on the card is bfloat16 for activations and frozen weights, float32 for norm weights, statistics, LoRA
// factors, gradients and the optimizer. Weights are laid out as the kernels read them while they are loaded (layout.go).
//
// A fault of the card is final: the process's context is lost with it. The first one is kept with the launches before
// it (fault.go), nothing is called after it, and every Sync returns it again.
//
// The package is built with the tag cuda, cgo and the objects of kernels.mk. It starts on a machine without a driver:
// then New says what is missing.
package cuda
