//go:build cuda

package cuda

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gorgonia.org/cu"

	"qlora/model/ops"
)

// Profile is where the card's time goes, in the mean of some steps: the batches of one optimizer step, or each batch
// where there are no such steps (evaluation, decoding). Times are the card's own, from events around every launch, which
// keep neighbouring kernels from overlapping: a profiled run is a little slower than one that is not.
type Profile struct {
	Steps int
	Span  time.Duration // of a step, from its first launch to the end of its last
	Ops   []OpTime      // the dearest first
}

// OpTime is what one op took on tensors of one shape.
type OpTime struct {
	Op, Shapes string  // outputs first
	Calls      float64 // a step
	Time       time.Duration
	FLOPs      float64 // of a step: those of the product with the weight, 0 where there is none
}

// warmup is how many steps go by before a profile begins, in a run of more.
const warmup = 3

// profile collects the time of launches.
type profile struct {
	begun   bool   // a step: what is launched before the first is not counted
	step    uint32 // that is running
	warm    bool   // the warm-up is over
	counted int    // steps in totals
	span    float64
	totals  map[opKey]*opTotal
	running []timed
	idle    []timed // to be used again
}

// timed is a launch between two events.
type timed struct {
	begin, end cu.Event
	key        opKey
	flops      float64
}

type opKey struct{ op, shapes string }

type opTotal struct {
	calls        int
	milliseconds float64
	flops        float64
}

// start puts an event before a launch; stop puts another behind it. A nil profile does neither.
func (p *profile) start(op string, tensors []ops.Tensor, stream cu.Stream) (stop func() error, err error) {
	if p == nil || !p.begun {
		return func() error { return nil }, nil
	}
	var t timed
	if n := len(p.idle); n > 0 {
		t, p.idle = p.idle[n-1], p.idle[:n-1]
	} else if t, err = newTimed(); err != nil {
		return nil, err
	}
	t.key, t.flops = opKey{op, shapes(tensors)}, flops(op, tensors)
	stop = func() error {
		p.running = append(p.running, t)
		return t.end.Record(stream)
	}
	return stop, t.begin.Record(stream)
}

func newTimed() (t timed, err error) {
	if t.begin, err = cu.MakeEvent(cu.DefaultEvent); err != nil {
		return t, err
	}
	t.end, err = cu.MakeEvent(cu.DefaultEvent)
	return t, err
}

// collect takes up the launches of the step that has ended. The stream must have been waited for.
func (p *profile) collect() error {
	if len(p.running) == 0 {
		return nil
	}
	if p.counted == warmup && !p.warm {
		p.warm, p.counted, p.span, p.totals = true, 0, 0, nil
	}
	if p.totals == nil {
		p.totals = map[opKey]*opTotal{}
	}
	for _, t := range p.running {
		ms, err := t.begin.Elapsed(t.end)
		if err != nil {
			return err
		}
		sum := p.totals[t.key]
		if sum == nil {
			sum = &opTotal{}
			p.totals[t.key] = sum
		}
		sum.calls++
		sum.milliseconds += ms
		sum.flops += t.flops
	}
	span, err := p.running[0].begin.Elapsed(p.running[len(p.running)-1].end)
	p.counted++
	p.span += span
	p.idle, p.running = append(p.idle, p.running...), p.running[:0]
	return err
}

// result is the mean of the steps collected.
func (p *profile) result() Profile {
	n := float64(max(p.counted, 1))
	r := Profile{Steps: p.counted, Span: milliseconds(p.span / n)}
	for key, sum := range p.totals {
		r.Ops = append(r.Ops, OpTime{key.op, key.shapes, float64(sum.calls) / n, milliseconds(sum.milliseconds / n), sum.flops / n})
	}
	slices.SortFunc(r.Ops, func(a, b OpTime) int {
		return cmp.Or(cmp.Compare(b.Time, a.Time), strings.Compare(a.Op+a.Shapes, b.Op+b.Shapes))
	})
	return r
}

func milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// shapes writes those of the first tensors that are there: "2048x4608 2048x3584".
func shapes(tensors []ops.Tensor) string {
	var s strings.Builder
	for _, t := range tensors[:min(len(tensors), shown)] {
		if t.Nil() {
			continue
		}
		if s.Len() > 0 {
			s.WriteByte(' ')
		}
		for i, d := range t.Shape {
			if i > 0 {
				s.WriteByte('x')
			}
			s.WriteString(strconv.Itoa(d))
		}
	}
	return s.String()
}

// flops are those of a product of a packed row with a weight: the tensors that Linear and LinearBack tell.
func flops(op string, tensors []ops.Tensor) float64 {
	if op != "Linear" && op != "LinearBack" {
		return 0
	}
	rows, w := tensors[0].Dim(0), tensors[2]
	return 2 * float64(rows) * float64(w.Dim(0)) * float64(w.Dim(1))
}

// beginStep opens a step, unless the batch is one more of that which runs, and takes up the one before.
func (b *Backend) beginStep(step uint32) error {
	p := b.profile
	if p == nil || p.begun && step != 0 && step == p.step {
		return nil
	}
	p.begun, p.step = true, step
	return b.endStep("LoadBatch")
}

func (b *Backend) endStep(op string) error {
	return b.do(op, func() error { return cmp.Or(b.stream.Synchronize(), b.profile.collect()) })
}

// Profile is what Options.ProfileOps has measured up to now: no steps without it. In a run of more than three steps the
// first three do not count.
func (b *Backend) Profile() (Profile, error) {
	if b.profile == nil {
		return Profile{}, nil
	}
	err := b.endStep("Profile")
	return b.profile.result(), err
}
