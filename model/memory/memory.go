// Package memory lays out the one block of memory a run lives in.
//
// A run names every buffer it will ever use, with a category and the span of moments in which its
// contents matter. [Layout] gives each an offset so that buffers whose spans overlap never share
// a byte and others may. Nothing is allocated after that, so whether a run fits is known, to the byte,
// before it starts. Buffers in the host's memory are laid out likewise, in a block of their own. The package is
// arithmetic alone: it knows no backend.
package memory

import (
	"cmp"
	"fmt"
	"slices"
)

// Category is the row of the memory table a buffer is counted in.
type Category uint8

const (
	Weights Category = iota
	LoRA
	Gradients
	Optimizer
	Activations
	KVCache
	Workspace
	IO
	categories
)

func (c Category) String() string {
	return [...]string{"weights", "lora", "gradients", "optimizer", "activations", "kv cache", "workspace", "input, output"}[c]
}

// Categories lists them in table order.
func Categories() []Category {
	all := make([]Category, categories)
	for i := range all {
		all[i] = Category(i)
	}
	return all
}

// Buffer is one named piece of a run's memory. Its contents matter from moment First to
// moment Last, both included.
type Buffer struct {
	Name        string
	Category    Category
	Bytes       int64
	First, Last int
	Host        bool // in the host's memory
}

func (b Buffer) lives(moment int) bool { return b.First <= moment && moment <= b.Last }

// Plan is a set of buffers with their places.
type Plan struct {
	Buffers   []Buffer
	Offsets   []int64 // of each buffer in its block
	Bytes     int64   // of the block that holds them
	HostBytes int64   // of the block in the host's memory
	align     int64
}

func aligned(n, align int64) int64 { return (n + align - 1) / align * align }

// Layout places buffers at multiples of align. Those that live as long as the run lie at the bottom. Of the others the
// largest goes first, each at the lowest offset free over its whole span (first fit by decreasing size), which is within
// a few percent of the best for the nested lifetimes of a forward and its backward.
func Layout(buffers []Buffer, align int64) (Plan, error) {
	p := Plan{Buffers: buffers, Offsets: make([]int64, len(buffers)), align: align}
	for i, b := range buffers {
		if b.Bytes < 0 || b.First < 0 || b.Last < b.First {
			return Plan{}, fmt.Errorf("memory: buffer %d, %s, has %d bytes and lives from %d to %d", i, b.Name, b.Bytes, b.First, b.Last)
		}
	}
	p.Bytes, p.HostBytes = p.place(false), p.place(true)
	return p, nil
}

// place gives the buffers of one block their offsets, and returns its size.
func (p *Plan) place(host bool) (bytes int64) {
	var order []int
	first, last := 0, 0
	for i, b := range p.Buffers {
		first, last = min(first, b.First), max(last, b.Last)
		if b.Host == host {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(p.Buffers[j].Bytes, p.Buffers[i].Bytes) })
	var rest, placed []int // placed: by offset
	for _, i := range order {
		if b := p.Buffers[i]; b.First > first || b.Last < last {
			rest = append(rest, i)
			continue
		}
		p.Offsets[i] = bytes
		bytes += aligned(p.Buffers[i].Bytes, p.align)
	}
	bottom := bytes
	for _, i := range rest {
		size, at := aligned(p.Buffers[i].Bytes, p.align), bottom
		for _, j := range placed {
			if p.Buffers[j].First > p.Buffers[i].Last || p.Buffers[j].Last < p.Buffers[i].First {
				continue
			}
			if p.Offsets[j] >= at+size {
				break
			}
			at = max(at, p.Offsets[j]+aligned(p.Buffers[j].Bytes, p.align))
		}
		p.Offsets[i] = at
		bytes = max(bytes, at+size)
		k, _ := slices.BinarySearchFunc(placed, at, func(j int, at int64) int { return cmp.Compare(p.Offsets[j], at) })
		placed = slices.Insert(placed, k, i)
	}
	return bytes
}

// Peak is the most bytes of a category that matter at one moment. Categories that share places can add up to more than a
// plan's Bytes.
func Peak(buffers []Buffer, c Category, align int64) int64 {
	most, _ := fullest(buffers, align, func(b *Buffer) bool { return !b.Host && b.Category == c })
	return most
}

// Fullest is what each category takes at the moment at which most bytes matter. What Bytes has beyond their sum is left
// between buffers.
func (p Plan) Fullest() (bytes [categories]int64) {
	_, moment := fullest(p.Buffers, p.align, onCard)
	for _, b := range p.Buffers {
		if !b.Host && b.lives(moment) {
			bytes[b.Category] += aligned(b.Bytes, p.align)
		}
	}
	return bytes
}

// Least is the most bytes that matter at one moment: no layout takes less.
func Least(buffers []Buffer, align int64) int64 {
	most, _ := fullest(buffers, align, onCard)
	return most
}

func onCard(b *Buffer) bool { return !b.Host }

// fullest finds the moment at which the buffers that count have most bytes.
func fullest(buffers []Buffer, align int64, counts func(*Buffer) bool) (most int64, moment int) {
	last := 0
	for i := range buffers {
		last = max(last, buffers[i].Last)
	}
	change := make([]int64, last+2)
	for i := range buffers {
		if b := &buffers[i]; counts(b) {
			change[b.First] += aligned(b.Bytes, align)
			change[b.Last+1] -= aligned(b.Bytes, align)
		}
	}
	var now int64
	for at, by := range change {
		if now += by; now > most {
			most, moment = now, at
		}
	}
	return most, moment
}
