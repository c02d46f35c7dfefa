package main

import (
	"fmt"

	"qlora/model/cpu"
	"qlora/model/ops"
)

// backendNames are the backends of this binary. This file alone names them.
const backendNames = "cpu"

// withoutCUDA says why there is no cuda backend here, and what to do.
const withoutCUDA = "this binary was built without CUDA"

const cudaFix = "build it with `make build` on a machine with the CUDA toolkit"

// openBackend opens the backend of --backend and says on standard error which it is and why. cuda
// is never replaced by another.
func openBackend(e *env, choice string) (ops.Backend, error) {
	why := "as --backend says"
	switch choice {
	case "auto":
		why = withoutCUDA
	case "cpu":
	case "cuda":
		return nil, usageError{fmt.Errorf("--backend cuda: %s: %s, or say --backend cpu", withoutCUDA, cudaFix)}
	default:
		return nil, usageError{fmt.Errorf("--backend %s: choose auto, cuda or cpu", choice)}
	}
	b := cpu.New[float32]()
	e.logf("backend: %s (%s): %s", b.Name(), b.Describe(), why)
	return withinMemory{b}, nil
}

// withinMemory refuses an arena larger than the memory there is, before anything is loaded into it.
type withinMemory struct{ ops.Backend }

// noFitError is a run that needs more memory than there is.
type noFitError struct{ need, free uint64 }

func (e *noFitError) Error() string {
	return fmt.Sprintf("the run needs %s of memory, and %s is free: lower --max_length or the samples of a step, say --torch_dtype bfloat16, or choose a smaller model", gib(e.need), gib(e.free))
}

func (b withinMemory) NewArena(bytes int64) (ops.Buffer, error) {
	if _, free, err := memory(); err == nil && uint64(bytes) > free {
		return nil, &noFitError{uint64(bytes), free}
	}
	return b.Backend.NewArena(bytes)
}

// kernelVariant names the instruction set of the cpu backend's kernels.
func kernelVariant() string { return cpu.New[float32]().Describe() }
