//go:build cuda

package main

import (
	"errors"
	"fmt"

	"qlora/cuda"
	"qlora/cuda/nvml"
	"qlora/model/ops"
)

// backendNames are the backends of this binary.
const backendNames = "cuda, cpu"

func openCUDA(syncOps bool) (ops.Backend, error) {
	b, err := cuda.New(cuda.Options{SyncOps: syncOps})
	var missing *cuda.Unavailable
	switch {
	case errors.As(err, &missing):
		return nil, &noCUDA{missing.Reason, missing.Fix}
	case err != nil:
		return nil, err
	}
	return onCard{b}, nil
}

// onCard says in the command's words that a run does not fit the card.
type onCard struct{ *cuda.Backend }

func (b onCard) NewArena(bytes int64) (ops.Buffer, error) {
	arena, err := b.Backend.NewArena(bytes)
	var full *cuda.NoFit
	if errors.As(err, &full) {
		return nil, &noFitError{uint64(full.Need), uint64(full.Free)}
	}
	return arena, err
}

// loadRate says how fast weights went to the card, "" for another backend.
func loadRate(b ops.Backend) string {
	if card, ok := b.(onCard); ok {
		return fmt.Sprintf(", loaded at %.1f GB/s", card.Loaded().GBps())
	}
	return ""
}

// isDeviceFault tells the fault of a card from other errors.
func isDeviceFault(err error) bool { return isA[*cuda.DeviceError](err) }

// checkCUDA is what doctor says of cards: one finding where none can be used, else the driver's and one a card. A card
// that is there but cannot train is bad; without any, the processor trains.
func checkCUDA() []finding {
	version, _ := cuda.Driver() // Cards says what is wrong with it
	cards, err := cuda.Cards()
	var missing *cuda.Unavailable
	switch {
	case errors.As(err, &missing) && version > 0:
		return []finding{{"cuda", bad, missing.Reason, missing.Fix}}
	case errors.As(err, &missing):
		return []finding{{"cuda", warning, missing.Reason, "training runs on the processor; for a card, " + missing.Fix}}
	case err != nil:
		return []finding{{"cuda", bad, err.Error(), "see `dmesg | grep Xid` and restart"}}
	}
	all := []finding{{Check: "cuda", Verdict: good, Found: fmt.Sprintf("driver for CUDA %d.%d, kernels for %s", version/1000, version%1000/10, cuda.Architectures())}}
	for _, c := range cards {
		all = append(all, checkCard(c))
	}
	return all
}

// leastCardMemory is what a 0.5B model trains in with room to spare.
const leastCardMemory = 4 << 30

func checkCard(c cuda.Card) finding {
	f := finding{Check: fmt.Sprintf("card %d", c.Index), Verdict: good,
		Found: fmt.Sprintf("%s, capability %s, %s", c.Name, c.Capability(), gib(uint64(c.Memory)))}
	var unfit *cuda.Unavailable
	if errors.As(c.Usable(), &unfit) {
		f.Verdict, f.Found, f.Fix = bad, unfit.Reason, unfit.Fix
		return f
	}
	probe, err := nvml.Open(c.PCI)
	if err != nil {
		f.Verdict, f.Fix = warning, fmt.Sprintf("training runs, but clocks and power cannot be watched: %v", err)
		return f
	}
	defer probe.Close()
	facts, now := probe.Facts(), probe.Read()
	f.Found = fmt.Sprintf("%v, capability %s, %s free of %s, now %d MHz, %.0f W, %d C", facts, c.Capability(), gib(now.MemoryFree), gib(uint64(c.Memory)),
		now.SMClock, now.PowerW, now.TemperatureC)
	switch {
	case now.ECCErrors > 0:
		f.Verdict, f.Fix = bad, fmt.Sprintf("%d memory errors that could not be corrected: reset the card or replace it", now.ECCErrors)
	case now.MemoryFree < leastCardMemory && len(now.Missing) == 0:
		f.Verdict, f.Fix = warning, "other programs use the card's memory: nvidia-smi lists them"
	case facts.PCIeWidthMax > facts.PCIeWidth && facts.PCIeWidth > 0:
		f.Verdict, f.Fix = warning, fmt.Sprintf("the card sits in %d of its %d PCIe lanes: weights load slower", facts.PCIeWidth, facts.PCIeWidthMax)
	}
	return f
}
