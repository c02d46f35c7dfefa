//go:build cuda

package main

import (
	"errors"
	"fmt"
	"time"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/cuda"
	"qlora/cuda/nvml"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// This file is what measuring needs of a card: cuda's probe in the words of bench.

var variants = map[string]cuda.Variant{"": cuda.Auto, "auto": cuda.Auto, "sm_80": cuda.SM80}

// variantOf is the kernels that a flag names.
func variantOf(name string) (cuda.Variant, error) {
	v, ok := variants[name]
	if !ok {
		return v, usageError{fmt.Errorf("--variant %s: choose auto or sm_80", name)}
	}
	return v, nil
}

// cardLimits are what of the conformance cases a card takes.
func cardLimits(b ops.Backend) opstest.Options {
	if _, ok := b.(onCard); !ok {
		return opstest.Options{}
	}
	return opstest.Options{Multiple: 8, HeadSizes: []int{64, 128}}
}

// kernelsOf names the kernels that a backend runs.
func kernelsOf(b ops.Backend) string {
	if _, ok := b.(onCard); ok {
		return cuda.Architectures()
	}
	return kernelVariant()
}

// openCardProbe returns the probe of a card: nil for another device.
func openCardProbe(b ops.Backend) (measure.Probe, error) {
	card, ok := b.(onCard)
	if !ok {
		return nil, nil
	}
	p, err := cuda.NewProbe(card.Backend)
	if err != nil {
		return nil, err
	}
	return &cardProbe{p, card.Backend}, nil
}

type cardProbe struct {
	*cuda.Probe
	b *cuda.Backend
}

func (p *cardProbe) Mark() (measure.Mark, error) {
	m, err := p.Probe.Mark()
	return measure.Mark(m), err
}

func (p *cardProbe) Seconds(from, to measure.Mark) (float64, error) {
	return p.Probe.Seconds(int(from), int(to))
}

func (p *cardProbe) Loads() ([]measure.Load, func() error, error) {
	copies, reads, products, done, err := p.Probe.Loads()
	named := func(name, unit string, l cuda.Load) measure.Load {
		return measure.Load{Name: name, Unit: unit, Run: l.Run, FLOPs: l.FLOPs, Bytes: l.Bytes}
	}
	return []measure.Load{named(result.CopyRoof, "B/s", copies), named(result.ReadRoof, "B/s", reads), named(result.ComputeRoof, "FLOP/s", products)}, done, err
}

func (p *cardProbe) Yardstick(c opstest.Case) (library string, run func(), err error) {
	switch {
	case c.Attention != nil:
		return p.Attention(c.Attention.T, c.Attention.Heads, c.Attention.Back)
	case len(c.Products) > 0:
		var all []cuda.Product
		for _, k := range c.Products {
			all = append(all, cuda.Product(k))
		}
		return p.Products(all)
	}
	return "", nil, errors.New("no library has this op")
}

func (p *cardProbe) Card() (*result.Card, []string) {
	f, missing, ok := p.Facts()
	multiprocessors, l2 := p.Sizes()
	c := p.b.Card()
	card := &result.Card{Name: c.Name, Capability: c.Capability(), CUDA: cuda.RuntimeVersion(), Memory: c.Memory, Processors: multiprocessors, L2: l2}
	if !ok {
		return card, missing
	}
	card.ID, card.Driver, card.ECC, card.MIG = f.ID, f.Driver, f.ECC, f.MIG
	card.SMClockMax, card.SMClockLimit, card.MemClockMax = int(f.SMClockMax), int(f.SMClockLimit), int(f.MemClockMax)
	card.PowerLimit, card.PowerDefault, card.SlowdownTempC = f.PowerLimitW, f.PowerDefaultW, int(f.SlowdownTempC)
	card.PCIeGen, card.PCIeGenMax, card.PCIeWidth, card.PCIeWidthMax = f.PCIeGen, f.PCIeGenMax, f.PCIeWidth, f.PCIeWidthMax
	return card, missing
}

func (p *cardProbe) Sense() (measure.Reading, bool) {
	at := time.Now()
	r, ok := p.Probe.Sense()
	return measure.Reading{At: at, SMClock: float64(r.SMClock), MemClock: float64(r.MemClock), Power: r.PowerW, TempC: float64(r.TemperatureC), Energy: r.EnergyJ,
		Throttled: r.Throttle, Void: r.Void}, ok
}

func (p *cardProbe) Others() []string {
	_, others := p.Processes()
	var all []string
	for _, o := range others {
		all = append(all, describeProcess(o))
	}
	return all
}

// describeProcess says what a process holds, and not which it is.
func describeProcess(p nvml.Process) string {
	if p.Bytes == 0 {
		return "one whose memory is not told"
	}
	return fmt.Sprintf("one with %.1f GiB", float64(p.Bytes)/(1<<30))
}

func (p *cardProbe) Memory() (int64, bool) {
	own, _ := p.Processes()
	return own, own > 0
}
