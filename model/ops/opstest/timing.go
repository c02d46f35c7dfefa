package opstest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"math"

	"qlora/internal/random"
	"qlora/model/ops"
)

// This file lays cases out to be timed. Shapes of a 7B model hold hundreds of millions of numbers, and the float64
// oracle would take hours over the longest: here tensors are tiled with a few random numbers, weights are random streams
// that a card makes by itself, and nothing is kept to compare with.

// Timing lays out cases on a backend, one after the other in one arena.
type Timing struct {
	m      *machine
	weight ops.DType
}

// NewTiming makes room for the largest of the cases, with weights of type w.
func NewTiming(b ops.Backend, w ops.DType, cases []Case) (*Timing, error) {
	m := &machine{b: b, timing: true}
	return &Timing{m, w}, m.reserve(cases, w, b.Activation(w))
}

// Prepare lays c out, in place of the case before it.
func (t *Timing) Prepare(c Case) (*Prepared, error) { return t.m.prepare(c, t.weight) }

// Prepare lays c out on b with weights of type w, in an arena of its own.
func (c Case) Prepare(b ops.Backend, w ops.DType) (*Prepared, error) {
	return (&machine{b: b, timing: true}).prepare(c, w)
}

func (m *machine) prepare(c Case, w ops.DType) (*Prepared, error) {
	r, err := m.build(&c.plan, w, m.b.Activation(w))
	if err != nil {
		return nil, fmt.Errorf("opstest: %s: %w", c.Name, err)
	}
	return &Prepared{r: r, consumes: c.consumes}, nil
}

// Prepared is a case laid out on a backend, to be timed.
type Prepared struct {
	r        *rig
	consumes bool
}

// Run makes the call once, without waiting for it.
func (p *Prepared) Run() { p.r.run() }

// Forget is called after the backend's memory was written to: what it keeps there from call to call is made anew.
func (p *Prepared) Forget() { p.r.forget() }

// Consumes says that the call overwrites what it reads with something smaller: repeated on its own result it would end on
// zeros, which cost a card less power. Refresh belongs before every call.
func (p *Prepared) Consumes() bool { return p.consumes }

// Refresh writes anew what the call updates in place.
func (p *Prepared) Refresh() error {
	for _, s := range p.r.slots {
		if s.role == update {
			p.r.fail(p.r.writeTiles(s))
		}
	}
	return p.r.err
}

// Verify makes the call twice on the same numbers, and demands the same bits, finite numbers, and sentinels as they
// were. What the numbers should be, the small cases of an op say (Checker). It returns the digest of what was written.
func (p *Prepared) Verify() (digest string, err error) {
	for again := range 2 {
		if err := p.Refresh(); err != nil {
			return "", err
		}
		p.Run()
		if err := p.r.b.Sync(); err != nil {
			return "", err
		}
		sum, err := p.r.digest(again == 0)
		switch {
		case err != nil:
			return "", err
		case again == 0:
			digest = sum
		case sum != digest:
			return "", errors.New("two calls on the same numbers gave different bits")
		}
	}
	return digest, p.r.guarded()
}

// digest is that of all the call has written; with finite, a number that is not is an error.
func (r *rig) digest(finite bool) (string, error) {
	h := sha256.New()
	for _, s := range r.slots {
		if s.role != output && s.role != update {
			continue
		}
		raw := make([]byte, s.Bytes())
		if err := r.b.Read(raw, s.Tensor); err != nil {
			return "", err
		}
		if finite {
			if i := firstUnbounded(raw, s.DType); i >= 0 {
				return "", fmt.Errorf("%s: element %d is not finite", s.Tensor, i)
			}
		}
		h.Write(raw)
	}
	return fmt.Sprintf("%.8x", h.Sum(nil)), nil
}

// firstUnbounded is the first element that is infinite or no number, -1 for none: one with all bits of its exponent set.
func firstUnbounded(raw []byte, d ops.DType) int {
	var mask uint16 // in the upper 16 bits of an element
	switch d {
	case ops.F32, ops.BF16:
		mask = 0x7f80
	case ops.F64:
		mask = 0x7ff0
	default:
		return -1
	}
	size := int(d.Size())
	for i := size; i <= len(raw); i += size {
		if top := uint16(raw[i-1])<<8 | uint16(raw[i-2]); top&mask == mask {
			return i/size - 1
		}
	}
	return -1
}

// coarsely says whether attention is to be compared with a plain computation in bfloat16.
func (r *rig) coarsely() bool { return !r.sizing && !r.timing && r.act == ops.BF16 }

// tiles is how many numbers are made for a tensor: a prime, so that no width repeats them row by row.
const tiles = 65521

// tile fills a slot with the first numbers of g, again and again.
func (r *rig) tile(s *slot, g gen, like ops.DType) {
	s.fill = encode(take(g, min(s.Len(), tiles), like), s.DType, nil)
	r.fail(r.writeTiles(s))
	if s.role != update {
		s.fill = nil
	}
}

func (r *rig) writeTiles(s *slot) error { return r.fillRow(s, 1, 0, s.fill) }

// randomSources are the parts of a weight, and its bias, as streams.
func randomSources(spec ops.WeightSpec) (parts []ops.Source, bias []float32) {
	h := fnv.New32a()
	h.Write([]byte(spec.Name))
	for i, rows := range spec.Parts {
		n := random.Normal{Seed: h.Sum32(), Stream: uint32(i), Std: float32(1 / math.Sqrt(float64(spec.Cols)))}
		parts = append(parts, ops.Source{Name: fmt.Sprintf("%s part %d", spec.Name, i), Rows: rows, Cols: spec.Cols, Random: &n,
			ReadF32: func(dst []float32, row, rows int) error {
				n.Fill(dst[:rows*spec.Cols], int64(row)*int64(spec.Cols))
				for i, v := range dst[:rows*spec.Cols] {
					dst[i] = float32(round(float64(v), ops.BF16))
				}
				return nil
			}})
	}
	if spec.Bias {
		for _, v := range take(normal(spec.Name+" bias", 1), spec.Rows(), spec.DType) {
			bias = append(bias, float32(v))
		}
	}
	return parts, bias
}

// guard writes the sentinels between the slots.
func (r *rig) guard() {
	r.eachGap(func(gap ops.Tensor) error { return r.b.Write(gap, sentinel(gap.Off, gap.Off+gap.Bytes())) })
}

// guarded says where a sentinel has changed.
func (r *rig) guarded() error {
	r.eachGap(func(gap ops.Tensor) error {
		raw := make([]byte, gap.Bytes())
		if err := r.b.Read(raw, gap); err != nil {
			return err
		}
		if want := sentinel(gap.Off, gap.Off+gap.Bytes()); !bytes.Equal(raw, want) {
			return fmt.Errorf("a write outside: byte %d, before %s", gap.Off+firstDifference(raw, want), gap.Name)
		}
		return nil
	})
	return r.err
}

// eachGap visits the memory between the slots, named by what follows.
func (r *rig) eachGap(visit func(gap ops.Tensor) error) {
	end := int64(0)
	for _, s := range r.places() {
		r.fail(visit(ops.Tensor{Name: s.Name, DType: ops.U8, Shape: []int{int(s.Off - end)}, Buf: r.arena, Off: end}))
		end = s.Off + s.Bytes()
	}
}
