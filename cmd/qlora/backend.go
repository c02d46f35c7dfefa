package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"qlora/bench"
	"qlora/bench/measure"
	"qlora/cuda/sizes"
	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/plan"
)

// This file and backend_cuda.go alone name a backend. What is said of cuda here has two forms: backend_cuda.go in a
// build with the tag cuda, backend_nocuda.go in one without.

// openBackend opens the backend of --backend and says on standard error which it is and why. cuda
// is never replaced by another.
func openBackend(e *env, f deviceFlags) (ops.Backend, error) {
	why := "as --backend says"
	switch f.Backend {
	case "auto", "cuda":
		b, err := openCUDA(e, f)
		var missing *noCUDA
		switch {
		case err == nil:
			if f.Backend == "auto" {
				why = "there is a card"
			}
			e.logf("backend: %s (%s): %s", b.Name(), b.Describe(), why)
			return b, nil
		case !errors.As(err, &missing):
			return nil, err
		case f.Backend == "cuda":
			return nil, usageError{fmt.Errorf("--backend cuda: %w, or say --backend cpu", err)}
		}
		why = missing.reason
	case "cpu":
	default:
		return nil, usageError{fmt.Errorf("--backend %s: choose auto, cuda or cpu", f.Backend)}
	}
	if f.variant != "" && f.variant != "auto" {
		return nil, usageError{fmt.Errorf("--variant %s: the processor's kernels have none to choose: leave it out", f.variant)}
	}
	if f.ProfileOps {
		return nil, usageError{errors.New("--profile_ops: only launches on a card are timed: leave it out, or say --backend cuda")}
	}
	b := cpu.New[float32]()
	e.logf("backend: %s (%s): %s", b.Name(), b.Describe(), why)
	return withinMemory{b}, nil
}

// cardSizes is what memory takes on a card, which need not be there.
func cardSizes(c plan.Card) ops.Sizes { return sizes.Card{Multiprocessors: c.Multiprocessors} }

// noCUDA is why there is no cuda backend, and what to do.
type noCUDA struct{ reason, fix string }

func (e *noCUDA) Error() string { return e.reason + ": " + e.fix }

// withinMemory refuses an arena larger than the memory there is, before anything is loaded into it.
type withinMemory struct{ ops.Backend }

// noFitError is a run that needs more memory than there is.
type noFitError struct {
	need, free int64
	fits       []string // configurations that would
}

// NoFit tells it from faults.
func (*noFitError) NoFit() {}

func (e *noFitError) Error() string {
	text := fmt.Sprintf("the run needs %s of memory, and %s is there for it", plan.GiB(e.need), plan.GiB(e.free))
	if len(e.fits) == 0 {
		return text + ": lower --max_length or the samples of a step, say --torch_dtype bfloat16, or choose a smaller model"
	}
	return text + ". What fits:\n  " + strings.Join(e.fits, "\n  ")
}

// room of the processor is what is free, or the budget; nothing is gained by moving things to the host's memory.
func (b withinMemory) room(budget int64) (room, error) {
	_, free, err := memory()
	if err != nil { // unknown: what is asked for is tried
		free = 1 << 62
	}
	r := room{block: int64(min(free, 1<<62)), card: plan.Processor}
	if budget > 0 {
		r.block, r.host = min(r.block, budget), r.block // a budget is there to be tested, host memory included
	}
	return r, nil
}

func (b withinMemory) NewArena(bytes int64) (ops.Buffer, error) {
	if _, free, err := memory(); err == nil && uint64(bytes) > free {
		return nil, &noFitError{bytes, int64(free), nil}
	}
	return b.Backend.NewArena(bytes)
}

// openProbe returns the probe of a backend's device.
func openProbe(b ops.Backend) (measure.Probe, error) {
	if p, err := openCardProbe(b); p != nil || err != nil {
		return p, err
	}
	return measure.NewHost(b), nil
}

// suite is what kernels of a backend are checked with.
func suite(e *env, d benchDevice, b ops.Backend) bench.Suite {
	s := bench.Suite{Oracle: func() ops.Backend { return cpu.New[float64]() }, Weights: ops.BF16, Options: cardLimits(b)}
	s.Open = func() (ops.Backend, error) {
		silent := *e
		silent.err = io.Discard
		return openBackend(&silent, deviceFlags{Backend: b.Name(), variant: d.Variant})
	}
	return s
}

// kernelVariant names the instruction set of the cpu backend's kernels.
func kernelVariant() string { return cpu.New[float32]().Describe() }
