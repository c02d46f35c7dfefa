package data

import (
	"fmt"
)

// Source holds what the steps of a run are made of: units of a sample each, or with packing of
// several.
type Source interface {
	Len() int

	// Unit returns unit i, the same whenever it is asked for. It may be called from several
	// goroutines.
	Unit(i int) (Unit, error)

	Bounds() Bounds

	// Fingerprint tells sources apart that give other units.
	Fingerprint() string
}

// Unit is what a step counts as one.
type Unit struct {
	Samples []Sample
	Passed  []Issue // rows that could not be used, in whose place another stands
}

// Bounds are what a source has at most.
type Bounds struct {
	Sample int // tokens of a sample
	Unit   int // samples of a unit
	Total  int // tokens of all units
}

// Samples is a Source in memory, a sample a unit.
type Samples []Sample

func (s Samples) Len() int                 { return len(s) }
func (s Samples) Unit(i int) (Unit, error) { return Unit{Samples: s[i : i+1 : i+1]}, nil }
func (s Samples) Fingerprint() string      { return Fingerprint(s) }

func (s Samples) Bounds() Bounds {
	b := Bounds{Unit: 1}
	for _, one := range s {
		b.Sample = max(b.Sample, len(one.IDs))
		b.Total += len(one.IDs)
	}
	return b
}

// Packing says how samples are put together into units.
type Packing string

const (
	BinPack    Packing = "binpack"    // by length, the longest first, each into the fullest unit with room
	Sequential Packing = "sequential" // in their order, into a unit until one does not fit
)

// Packed is a Source whose units are samples of length tokens together at most: what ms-swift
// makes one row of. Which samples share a unit changes which make up a step, and nothing else:
// they do not attend to each other.
type Packed struct {
	samples Samples
	units   [][]int
}

// packTogether is how many samples are packed in one go: ms-swift's PACKING_BATCH_SIZE.
const packTogether = 1000

// NewPacked packs samples. The last unit of each thousand is left open for the next.
func NewPacked(samples Samples, length int, how Packing) (*Packed, error) {
	fit := map[Packing]func(Samples, []int, int) [][]int{BinPack: bestFit, Sequential: nextFit}[how]
	if fit == nil {
		return nil, fmt.Errorf("unknown packing strategy %q: choose %s or %s", how, BinPack, Sequential)
	}
	for _, s := range samples {
		if len(s.IDs) > length {
			return nil, fmt.Errorf("%s, row %d: %d tokens do not fit a packed sequence of %d: raise --packing_length, or lower --max_length", s.File, s.Row, len(s.IDs), length)
		}
	}
	p := &Packed{samples: samples}
	var open []int
	for from := 0; from < len(samples); from += packTogether {
		for i := from; i < min(from+packTogether, len(samples)); i++ {
			open = append(open, i)
		}
		units := fit(samples, open, length)
		open = nil
		if last := len(units) - 1; from+packTogether < len(samples) {
			units, open = units[:last], units[last]
		}
		p.units = append(p.units, units...)
	}
	return p, nil
}

// bestFit is best-fit decreasing.
func bestFit(samples Samples, which []int, length int) [][]int {
	var units [][]int
	var used []int
	for _, i := range byLength(samples, which) {
		need := len(samples[i].IDs)
		best := -1
		for u, n := range used {
			if n+need <= length && (best < 0 || n > used[best]) {
				best = u
			}
		}
		if best < 0 {
			best = len(units)
			units, used = append(units, nil), append(used, 0)
		}
		units[best] = append(units[best], i)
		used[best] += need
	}
	return units
}

// nextFit keeps the order of samples.
func nextFit(samples Samples, which []int, length int) [][]int {
	var units [][]int
	left := 0
	for _, i := range which {
		need := len(samples[i].IDs)
		if len(units) == 0 || need > left {
			units, left = append(units, nil), length
		}
		last := len(units) - 1
		units[last] = append(units[last], i)
		left -= need
	}
	return units
}

func (p *Packed) Len() int { return len(p.units) }

func (p *Packed) Unit(i int) (Unit, error) {
	var u Unit
	for _, j := range p.units[i] {
		u.Samples = append(u.Samples, p.samples[j])
	}
	return u, nil
}

func (p *Packed) Bounds() Bounds {
	b := p.samples.Bounds()
	for _, unit := range p.units {
		b.Unit = max(b.Unit, len(unit))
	}
	return b
}

// Fingerprint tells units apart as well as samples.
func (p *Packed) Fingerprint() string {
	all := make(Samples, 0, len(p.samples))
	for _, unit := range p.units {
		all = append(all, Sample{}) // where a unit begins
		for _, i := range unit {
			all = append(all, p.samples[i])
		}
	}
	return Fingerprint(all)
}
