//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"cmp"
	"fmt"
	"time"
	"unsafe"

	"gorgonia.org/cu"

	"qlora/model/ops"
)

// Variant chooses among the kernels of an op.
type Variant int32

const (
	Auto Variant = iota // by a static table: the card's own where there is one
	SM80                // those that every card of 8.0 and newer runs
	SM90                // those of Hopper alone
)

// Options say how a backend runs. The zero value is the product's.
type Options struct {
	Device  int // of those that the driver shows
	Variant Variant
	// SyncOps waits for every launch, so that a fault of the card names its op. Slow.
	SyncOps bool
	// ProfileOps times every launch: see Profile.
	ProfileOps bool
}

// Backend is ops.Backend on one card. The zero value is not ready: call New.
type Backend struct {
	opt     Options
	dev     device
	stream  cu.Stream
	bus     transfers
	staging *staging
	arenas  []*arena
	work    ops.Tensor     // scratch memory of each op in its turn
	dequant [2]dequantised // wide and narrow weights
	plan    ops.Tensor     // of attention's backward
	planned planned
	loads   int // of batches, ever
	args    *arguments
	log     launches
	loaded  Loaded
	profile *profile // nil without Options.ProfileOps

	err   error        // the first refusal since the last Sync
	fault *DeviceError // the first fault of the card, for good
}

var _ ops.Backend = (*Backend)(nil)

// New opens a card. It fails with *Unavailable where there is none that can be used.
func New(o Options) (*Backend, error) {
	dev, err := openDevice(o.Device)
	if err != nil {
		return nil, err
	}
	b := &Backend{opt: o, dev: dev, args: &arguments{}}
	if o.ProfileOps {
		b.profile = &profile{}
	}
	err = dev.do(func() (err error) {
		if b.stream, err = cu.MakeStream(cu.NonBlocking); err != nil {
			return fmt.Errorf("cuda: a stream: %w", err)
		}
		if b.bus, err = newTransfers(); err != nil {
			return err
		}
		b.staging, err = newStaging()
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Name is "cuda".
func (b *Backend) Name() string { return "cuda" }

// Describe tells the card and the kernels in use.
func (b *Backend) Describe() string {
	kernels := Architectures()
	if b.opt.Variant != Auto {
		kernels = fmt.Sprintf("%v alone of %s", b.opt.Variant, kernels)
	}
	return fmt.Sprintf("%s, capability %s, %.1f GiB, kernels %s", b.dev.Name, b.dev.Capability(), float64(b.dev.Memory)/(1<<30), kernels)
}

func (v Variant) String() string { return [...]string{"auto", "sm_80", "sm_90a"}[v] }

// Card is the card in use.
func (b *Backend) Card() Card { return b.dev.Card }

// Loaded is the weights read so far.
type Loaded struct {
	Bytes int64 // read, those of 32 bits counted as of 16
	Time  time.Duration
}

// GBps is the rate from their files to the card, in 10⁹ bytes a second.
func (l Loaded) GBps() float64 { return float64(l.Bytes) / float64(max(l.Time, 1)) }

// Loaded says how much NewWeight has read, and how long it took.
func (b *Backend) Loaded() Loaded { return b.loaded }

// Sync waits for the card. A refusal is returned once, a fault of the card ever after.
func (b *Backend) Sync() error {
	if err := b.do("Sync", b.stream.Synchronize); err != nil {
		return err
	}
	err := b.err
	b.err = nil
	return err
}

// Close gives the memory and the card back. After a fault it leaves that to the end of the process.
func (b *Backend) Close() error {
	if b.fault != nil {
		return nil
	}
	err := b.do("Close", func() error {
		err := b.stream.Synchronize()
		for _, a := range b.arenas {
			err = cmp.Or(err, a.free())
		}
		b.arenas = nil
		return cmp.Or(err, b.bus.free(), b.staging.free(), b.stream.Destroy())
	})
	return cmp.Or(err, b.dev.close())
}

// do runs f on the card, unless it has failed before; an error of f is a fault of the card, seen in op.
func (b *Backend) do(op string, f func() error) error {
	if b.fault != nil {
		return b.fault
	}
	if err := b.dev.do(f); err != nil {
		b.fault = &DeviceError{Op: op, Exact: b.opt.SyncOps, Cause: err, Launches: b.log.list()}
		return b.fault
	}
	return nil
}

// begin opens an op whose arguments were found to be errs. It reports whether to go on: not after an error.
func (b *Backend) begin(errs ...error) bool {
	b.fail(cmp.Or(errs...))
	return b.err == nil && b.fault == nil
}

func (b *Backend) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// launch calls a launcher. The tensors are what the log shows of it, the outputs first.
func (b *Backend) launch(op string, launcher func() C.qk_status, tensors ...ops.Tensor) {
	this := b.log.add(op, tensors)
	var refused error
	err := b.do(op, func() error {
		stop, err := b.profile.start(op, tensors, b.stream)
		if err != nil {
			return err
		}
		status, err := launched(launcher())
		switch {
		case status == launchFailed:
			return err
		case err != nil:
			refused = fmt.Errorf("cuda: %v: %w", this, err)
			return nil
		}
		if err := stop(); err != nil || !b.opt.SyncOps {
			return err
		}
		return b.stream.Synchronize()
	})
	if err != nil {
		b.fault.Op = this.String()
	}
	b.fail(refused)
}

// stored refuses a tensor that the card does not keep as d. ops.CheckX has seen that the activations of an op are
// of one type, so one of them is enough.
func stored(op, arg string, t ops.Tensor, d ops.DType) error {
	if t.Nil() || t.DType == d {
		return nil
	}
	return fmt.Errorf("cuda: %s: %s is %s, and on a card it is %s", op, arg, t.DType, d)
}

// at is the address of a tensor, 0 for one that is absent.
func at(t ops.Tensor) C.qk_ptr { return C.qk_ptr(address(t)) }

func (b *Backend) onStream() C.qk_stream { return C.qk_stream(uintptr(unsafe.Pointer(b.stream.C()))) }

func (b *Backend) variant() C.int32_t { return C.int32_t(b.opt.Variant) }

func (b *Backend) workBytes() C.int64_t {
	if b.work.Nil() {
		return 0
	}
	return C.int64_t(b.work.Bytes())
}
