// Package memory lays out the one block of memory a run lives in.
//
// A run names every buffer it will ever use, with a category and the span of moments in which its
// contents matter. [Layout] gives each an offset so that buffers whose spans overlap never share
// a byte and others may. Nothing is allocated after that, so whether a run fits is known, to the byte,
// before it starts. The package is arithmetic alone: it knows no backend.
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
}

// Plan is a set of buffers with their places.
type Plan struct {
	Buffers []Buffer
	Offsets []int64 // of each buffer
	Bytes   int64   // of the block that holds them
}

// Layout places buffers at multiples of align. The largest goes first, each at the lowest
// offset free over its whole span (first fit by decreasing size), which is within a few percent of the
// best for the nested lifetimes of a forward and its backward.
func Layout(buffers []Buffer, align int64) (Plan, error) {
	p := Plan{Buffers: buffers, Offsets: make([]int64, len(buffers))}
	order := make([]int, len(buffers))
	for i, b := range buffers {
		if b.Bytes < 0 || b.Last < b.First {
			return Plan{}, fmt.Errorf("memory: buffer %s has %d bytes and lives from %d to %d", b.Name, b.Bytes, b.First, b.Last)
		}
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(buffers[b].Bytes, buffers[a].Bytes) })

	var placed []int // by offset
	for _, i := range order {
		size := (buffers[i].Bytes + align - 1) / align * align
		at := int64(0)
		for _, j := range placed {
			if buffers[j].First > buffers[i].Last || buffers[j].Last < buffers[i].First {
				continue
			}
			if p.Offsets[j] >= at+size {
				break
			}
			at = max(at, p.Offsets[j]+(buffers[j].Bytes+align-1)/align*align)
		}
		p.Offsets[i] = at
		p.Bytes = max(p.Bytes, at+size)
		k, _ := slices.BinarySearchFunc(placed, at, func(j int, at int64) int { return cmp.Compare(p.Offsets[j], at) })
		placed = slices.Insert(placed, k, i)
	}
	return p, nil
}

// Peak is the most bytes of a category that matter at one moment. Categories that share places can
// add up to more than Bytes.
func (p Plan) Peak(c Category) int64 {
	var most int64
	for _, b := range p.Buffers {
		if b.Category != c {
			continue
		}
		var sum int64 // a peak begins where some buffer begins
		for _, o := range p.Buffers {
			if o.Category == c && o.First <= b.First && b.First <= o.Last {
				sum += o.Bytes
			}
		}
		most = max(most, sum)
	}
	return most
}
