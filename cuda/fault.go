//go:build cuda

package cuda

import (
	"fmt"
	"strings"

	"qlora/model/ops"
)

// DeviceError is a fault of the card. It is final: CUDA has lost the context, and only a new process gets another.
type DeviceError struct {
	Op       string   // where the fault showed, with its tensors: at or after the launch at fault, unless Exact
	Exact    bool     // each launch was waited for: Op is the one at fault
	Cause    error    // the driver's or the runtime's
	Launches []string // the last ones before it, oldest first
}

func (e *DeviceError) Error() string {
	var s strings.Builder
	if e.Exact {
		fmt.Fprintf(&s, "the card failed in %s: %v", e.Op, e.Cause)
	} else {
		fmt.Fprintf(&s, "the card failed, which showed in %s: %v (--sync_ops waits for each launch and names the one at fault)", e.Op, e.Cause)
	}
	s.WriteString("\n`dmesg | grep Xid` says more: 48, 94 and 95 are memory errors and 79 a lost card (reset or replace it), 13 and 31 an error of this program")
	if len(e.Launches) > 0 {
		fmt.Fprintf(&s, "\nthe last launches, the newest last:\n  %s", strings.Join(e.Launches, "\n  "))
	}
	return s.String()
}

func (e *DeviceError) Unwrap() error { return e.Cause }

// kept is how many launches are remembered, and shown of each how many tensors.
const (
	kept  = 32
	shown = 4
)

// launches is a ring of the last ones. A launch is put into words only when it is asked for.
type launches struct {
	ring [kept]launch
	n    int // ever
}

type launch struct {
	op      string
	tensors [shown]ops.Tensor
	n       int
}

func (l *launches) add(op string, tensors []ops.Tensor) *launch {
	at := &l.ring[l.n%kept]
	at.op, at.n = op, copy(at.tensors[:], tensors)
	l.n++
	return at
}

// list is the launches kept, oldest first.
func (l *launches) list() []string {
	var all []string
	for i := max(0, l.n-kept); i < l.n; i++ {
		all = append(all, l.ring[i%kept].String())
	}
	return all
}

func (l *launch) String() string {
	var s strings.Builder
	s.WriteString(l.op)
	for _, t := range l.tensors[:l.n] {
		if !t.Nil() {
			s.WriteString(" " + t.String())
		}
	}
	return s.String()
}
