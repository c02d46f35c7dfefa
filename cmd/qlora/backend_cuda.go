//go:build cuda

package main

import (
	"errors"
	"fmt"
	"time"

	"qlora/cuda"
	"qlora/cuda/nvml"
	"qlora/model/ops"
	"qlora/model/plan"
)

// backendNames are the backends of this binary.
const backendNames = "cuda, cpu"

func openCUDA(e *env, f deviceFlags) (ops.Backend, error) {
	variant, err := variantOf(f.variant)
	if err != nil {
		return nil, err
	}
	b, err := cuda.New(cuda.Options{SyncOps: f.SyncOps, ProfileOps: f.ProfileOps, Variant: variant})
	var missing *cuda.Unavailable
	switch {
	case errors.As(err, &missing):
		return nil, &noCUDA{missing.Reason, missing.Fix}
	case err != nil:
		return nil, err
	}
	return onCard{b, e}, nil
}

// onCard says in the command's words that a run does not fit the card, and at the end where the time went.
type onCard struct {
	*cuda.Backend
	e *env
}

// Close prints the profile, if there is one, and closes the card.
func (b onCard) Close() error {
	p, err := b.Profile()
	if err == nil && p.Steps > 0 {
		err = printProfile(b.e, p)
	}
	return errors.Join(err, b.Backend.Close())
}

// printProfile prints the ops of a step, the dearest first, on standard error.
func printProfile(e *env, p cuda.Profile) error {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()*1e3) }
	share := func(d time.Duration) string { return fmt.Sprintf("%.1f", 100*d.Seconds()/p.Span.Seconds()) }
	t := newTable(&env{out: e.err}, "op", "shapes", "calls", "ms a step", "%", "us a call", "TFLOP/s")
	idle := p.Span
	for _, o := range p.Ops {
		idle -= o.Time
		rate := ""
		if o.FLOPs > 0 {
			rate = fmt.Sprintf("%.0f", o.FLOPs/o.Time.Seconds()/1e12)
		}
		row := []any{o.Op, o.Shapes, fmt.Sprintf("%.4g", o.Calls), ms(o.Time), share(o.Time), fmt.Sprintf("%.1f", o.Time.Seconds()*1e6/o.Calls), rate}
		if err := t.Append(row...); err != nil {
			return err
		}
	}
	if err := t.Append("between ops", "copies, fills, waits for the host", "", ms(idle), share(idle), "", ""); err != nil {
		return err
	}
	e.logf("profile: the mean of %d steps of %s ms, on the card", p.Steps, ms(p.Span))
	return t.Render()
}

func (b onCard) NewArena(bytes int64) (ops.Buffer, error) {
	arena, err := b.Backend.NewArena(bytes)
	var full *cuda.NoFit
	if errors.As(err, &full) {
		return nil, &noFitError{full.Need, full.Free, nil}
	}
	return arena, err
}

// room of a card is what is free, less what the process may come to take beside its block (kernels are loaded when they are
// first needed), and within the budget. Of the host's memory half of what is free may be pinned.
func (b onCard) room(budget int64) (room, error) {
	free, _, err := b.MemInfo()
	if err != nil {
		return room{}, err
	}
	_, beside, _ := b.Taken() // 0 where the driver does not tell
	r := room{block: free - max(plan.Context-beside, 0), card: plan.CardLike(b.Card().Name, b.Card().Multiprocessors)}
	if budget > 0 {
		r.block = min(r.block, budget-plan.Context)
	}
	if _, host, err := memory(); err == nil {
		r.host = int64(host / 2)
	}
	return r, nil
}

// measureProcess says what the process takes of the card beside what was planned. It reports whether that was more.
func measureProcess(e *env, b ops.Backend, r *memoryReport) (more bool) {
	card, ok := b.(onCard)
	if !ok {
		return false
	}
	r.LoadGBps, r.ContextPlanned = card.Loaded().GBps(), plan.Context
	block, beside, ok := card.Taken()
	if !ok {
		e.logf("memory: the driver does not tell what the process takes of the card beside its block of %s", plan.GiB(r.Block))
		return false
	}
	r.ContextMeasured, r.ProcessMeasured = beside, block+beside
	e.logf("memory: planned %s for the process (block %s, context at most %s); it takes %s (context %s)", plan.GiB(r.Block+plan.Context), plan.GiB(r.Block),
		plan.GiB(plan.Context), plan.GiB(block+beside), plan.GiB(beside))
	if beside > plan.Context {
		e.logf("memory: the context is larger than planned: the budget is not kept")
	}
	return beside > plan.Context
}

// loadRate says how fast weights went to the card, "" for another backend.
func loadRate(b ops.Backend) string {
	if card, ok := b.(onCard); ok && card.Loaded().Bytes > 0 {
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
