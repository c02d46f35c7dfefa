package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/ops"
)

// Meter is a backend that tells where the time of a step goes: it puts a mark before and behind every op, and adds up
// what lies between, by op, shape and phase. Marks keep neighbouring kernels of a card from overlapping, so a metered step
// is a little slower than one that is not.
type Meter struct {
	ops.Backend
	clock  measure.Clock
	on     bool
	phase  string
	calls  []call
	totals map[opKey]*result.Op
	steps  int
	span   float64
	first  measure.Mark
	err    error
}

// Phases of a step, in order.
const (
	phaseForward   = "forward"
	phaseHead      = "head"
	phaseBackward  = "backward"
	phaseOptimizer = "optimizer"
)

// Phases lists them in order.
func Phases() []string { return []string{phaseForward, phaseHead, phaseBackward, phaseOptimizer} }

type opKey struct{ name, shape, phase string }

// call is an op between two marks.
type call struct {
	opKey
	from, to     measure.Mark
	flops, bytes float64
}

// NewMeter meters a backend by a clock.
func NewMeter(b ops.Backend, clock measure.Clock) *Meter {
	return &Meter{Backend: b, clock: clock, totals: map[opKey]*result.Op{}}
}

// Begin begins a step.
func (m *Meter) Begin() error {
	m.on, m.phase, m.calls = true, phaseForward, m.calls[:0]
	var err error
	m.first, err = m.clock.Mark()
	return err
}

// End ends the step and adds up its calls.
func (m *Meter) End() error {
	m.on = false
	last, err := m.clock.Mark()
	if err = cmp.Or(err, m.err, m.Sync()); err != nil {
		return err
	}
	defer m.clock.Forget()
	span, err := m.clock.Seconds(m.first, last)
	if err != nil {
		return err
	}
	for _, c := range m.calls {
		seconds, err := m.clock.Seconds(c.from, c.to)
		if err != nil {
			return err
		}
		t := m.totals[c.opKey]
		if t == nil {
			t = &result.Op{Name: c.name, Shape: c.shape, Phase: c.phase}
			m.totals[c.opKey] = t
		}
		t.Calls++
		t.Seconds += seconds
		t.FLOPs += c.flops
		t.Bytes += c.bytes
	}
	m.span += span
	m.steps++
	return nil
}

// Ops is the mean of the steps: by phase, the dearest op first, the time between ops last.
func (m *Meter) Ops() []result.Op {
	n := float64(max(m.steps, 1))
	gap := result.Op{Name: result.Gap, Seconds: m.span / n}
	var all []result.Op
	for _, t := range m.totals {
		o := *t
		o.Calls, o.Seconds, o.FLOPs, o.Bytes = o.Calls/n, o.Seconds/n, o.FLOPs/n, o.Bytes/n
		gap.Seconds -= o.Seconds
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b result.Op) int {
		return cmp.Or(cmp.Compare(slices.Index(Phases(), a.Phase), slices.Index(Phases(), b.Phase)), cmp.Compare(b.Seconds, a.Seconds),
			strings.Compare(a.Name+a.Shape, b.Name+b.Shape))
	})
	return append(all, gap)
}

// time makes a call between two marks.
func (m *Meter) time(name, shape string, flops float64, run func(), touched ...ops.Tensor) {
	if !m.on {
		run()
		return
	}
	c := call{opKey: opKey{name, shape, m.phase}, flops: flops}
	for _, t := range touched {
		if !t.Nil() {
			c.bytes += float64(t.Bytes())
		}
	}
	var err error
	if c.from, err = m.clock.Mark(); err == nil {
		run()
		c.to, err = m.clock.Mark()
	}
	m.err = cmp.Or(m.err, err)
	m.calls = append(m.calls, c)
}

// weight is a weight as a tensor that is read.
func weight(w ops.Weight) ops.Tensor {
	return ops.Tensor{Name: w.Spec().Name, DType: ops.U8, Shape: []int{int(w.Bytes())}, Buf: present{}}
}

// present makes a tensor count as given.
type present struct{}

func (present) Bytes() int64 { return 0 }

// width is the columns of u.
func width(l *ops.LoRA) int {
	if l == nil {
		return 0
	}
	return l.Width
}

func mul(factors ...int) float64 {
	p := 1.0
	for _, f := range factors {
		p *= float64(f)
	}
	return p
}

// shape writes dimensions, and the rank of an adapter where there is one: "2048x4608x3584 R24".
func shape(l *ops.LoRA, dims ...int) string {
	var s strings.Builder
	for i, d := range dims {
		if i > 0 {
			s.WriteByte('x')
		}
		fmt.Fprint(&s, d)
	}
	if l != nil {
		fmt.Fprintf(&s, " R%d", width(l))
	}
	return s.String()
}

// pairs is the query-key pairs of causal attention over a batch.
func pairs(b *ops.Batch) float64 {
	n := 0.0
	for s := range b.S {
		length := float64(b.Host.SegStart[s+1] - b.Host.SegStart[s])
		n += length * (length + 1) / 2
	}
	return n
}
