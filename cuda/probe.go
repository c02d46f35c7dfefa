//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"gorgonia.org/cu"

	"qlora/cuda/nvml"
	"qlora/cuda/yardstick"
	"qlora/internal/random"
	"qlora/model/ops"
)

// Probe measures a backend's card: its clock, its roofs, its sensors, and the vendor's libraries as yardsticks. What it
// allocates is the card's memory beside the backend's arenas, given back as soon as it is not needed.
type Probe struct {
	b      *Backend
	events []cu.Event
	used   int

	flushed cu.DevicePtr // what Flush writes, 0 before the first
	flushes int64        // bytes of it
	turn    byte

	loads [3]cu.DevicePtr // of the roofs: destination, source, sums

	sensors *nvml.Probe // nil where NVML does not open
	missing []string

	blas      *yardstick.BLAS
	dnn       *yardstick.DNN
	blasError error // why there is none
	dnnError  error
	opened    bool           // the libraries were looked for
	scratch   []cu.DevicePtr // operands of the yardstick in use
	plans     []*yardstick.Plan
	workspace cu.DevicePtr // cuBLAS's
}

// NewProbe returns the probe of b's card. Close it before b.
func NewProbe(b *Backend) (*Probe, error) {
	p := &Probe{b: b}
	var err error
	if p.sensors, err = nvml.Open(b.dev.PCI); err != nil {
		p.missing = append(p.missing, fmt.Sprintf("clocks, power, heat, other processes: %v", err))
	}
	return p, nil
}

// Mark enqueues an event, and returns its number.
func (p *Probe) Mark() (int, error) {
	err := p.b.do("Mark", func() error {
		if p.used == len(p.events) {
			e, err := cu.MakeEvent(cu.DefaultEvent)
			if err != nil {
				return err
			}
			p.events = append(p.events, e)
		}
		p.used++
		return p.events[p.used-1].Record(p.b.stream)
	})
	return p.used - 1, err
}

// Seconds is the time between two events that have happened.
func (p *Probe) Seconds(from, to int) (float64, error) {
	var ms float64
	err := p.b.do("Seconds", func() (err error) { ms, err = p.events[from].Elapsed(p.events[to]); return err })
	return ms * 1e-3, err
}

// Forget lets the events be used again.
func (p *Probe) Forget() { p.used = 0 }

// leastFlush is written by Flush on a card whose cache is small, or not told.
const leastFlush = 64 << 20

// Flush enqueues a fill of twice the second-level cache, with another byte each time.
func (p *Probe) Flush() {
	if p.flushed == 0 {
		_, cache := p.Sizes()
		p.flushes = max(2*cache, leastFlush)
		var err error
		if p.flushed, err = p.alloc(p.flushes); err != nil {
			p.b.fail(err)
			return
		}
	}
	p.turn++
	_ = p.b.do("Flush", func() error { // kept as the backend's fault
		return cu.MemsetD8Async(p.flushed, p.turn, p.flushes, p.b.stream)
	})
}

// Load is a work that reaches a roof.
type Load struct {
	FLOPs, Bytes float64 // of one run
	Run          func()
}

// Sizes of the loads: far more than caches hold, and long enough to fill a card for a millisecond.
const (
	loadBytes = 1 << 30
	loadFLOPs = 1e12
)

// Loads are a copy, a read and products on tensor cores, on random numbers. done gives their memory back.
func (p *Probe) Loads() (copies, reads, products Load, done func() error, err error) {
	dst, src, out := &p.loads[0], &p.loads[1], &p.loads[2]
	done = func() error { return p.free(dst, src, out) }
	var flops float64
	multiprocessors, _ := p.Sizes()
	for d, bytes := range map[*cu.DevicePtr]int64{dst: loadBytes, src: loadBytes, out: int64(multiprocessors) * C.QK_PROBE_OUT} {
		if *d, err = p.alloc(bytes); err != nil {
			return copies, reads, products, done, err
		}
	}
	p.fill(*src, loadBytes, 1)
	run := func(name string, launcher func() C.qk_status) func() { return func() { p.b.launch(name, launcher) } }
	at := func(d *cu.DevicePtr) C.qk_ptr { return C.qk_ptr(*d) }
	copies = Load{Bytes: 2 * loadBytes, Run: run("probe copy", func() C.qk_status { return C.qk_probe_copy(at(dst), at(src), loadBytes, p.b.onStream()) })}
	reads = Load{Bytes: loadBytes, Run: run("probe read", func() C.qk_status { return C.qk_probe_read(at(out), at(src), loadBytes, p.b.onStream()) })}
	products.Run = run("probe products", func() C.qk_status {
		var done C.double
		status := C.qk_probe_products(at(out), at(src), loadFLOPs, &done, p.b.onStream(), p.b.variant())
		flops = float64(done)
		return status
	})
	products.Run() // says how many FLOPs a run has
	err = p.b.Sync()
	products.FLOPs = flops
	return copies, reads, products, done, err
}

// alloc takes memory of the card. That there is none is no fault of the card's.
func (p *Probe) alloc(bytes int64) (d cu.DevicePtr, err error) {
	if err := p.b.dev.do(func() (err error) { d, err = cu.MemAlloc(bytes); return err }); err != nil {
		return 0, fmt.Errorf("cuda: %.1f GiB beside the run for measuring: %w", float64(bytes)/(1<<30), err)
	}
	return d, nil
}

// fill writes normal numbers in bfloat16.
func (p *Probe) fill(d cu.DevicePtr, bytes int64, seed uint32) {
	const cols = 1024
	p.b.launch("fill", func() C.qk_status {
		return C.qk_random_normal(C.qk_ptr(d), cols, 0, C.int32_t(bytes/2/cols), cols, C.uint32_t(seed), 7, C.float(noise.Scale()), p.b.onStream())
	})
}

// noise are the numbers that roofs and yardsticks run on: zeros would cost a card less power, and run faster.
var noise = random.Normal{Std: 1.0 / 8}

// free gives memory back, behind the work that uses it.
func (p *Probe) free(all ...*cu.DevicePtr) error {
	return p.b.do("free", func() error {
		err := p.b.stream.Synchronize()
		for _, d := range all {
			if *d != 0 {
				err = cmp.Or(err, cu.MemFree(*d))
				*d = 0
			}
		}
		return err
	})
}

// open looks for the vendor's libraries, once.
func (p *Probe) open() {
	if p.opened {
		return
	}
	p.opened = true
	stream := uintptr(p.b.onStream())
	p.blasError = p.b.dev.do(func() (err error) {
		if p.blas, err = yardstick.OpenBLAS(); err != nil {
			return err
		}
		if p.workspace, err = p.alloc(yardstick.WorkspaceBytes); err != nil {
			return err
		}
		return p.blas.Prepare(stream, uintptr(p.workspace))
	})
	p.dnnError = p.b.dev.do(func() (err error) { p.dnn, err = yardstick.OpenDNN(stream); return err })
}

// Product is y (M,N) = x (M,K)·Wᵀ, or backward dx (M,K) = dy (M,N)·W.
type Product struct {
	M, N, K int
	Back    bool
}

// Products is cuBLAS at some products, one after the other.
func (p *Probe) Products(all []Product) (library string, run func(), err error) {
	if p.open(); p.blasError != nil {
		return "", nil, p.blasError
	}
	var wide, narrow, weight int64
	for _, k := range all {
		wide, narrow, weight = max(wide, int64(k.M)*int64(k.N)), max(narrow, int64(k.M)*int64(k.K)), max(weight, int64(k.N)*int64(k.K))
	}
	d, err := p.operands(wide, narrow, weight)
	if err != nil {
		return "", nil, err
	}
	y, x, w := d[0], d[1], d[2]
	run, err = p.foreign(func() error {
		for _, k := range all {
			var err error
			if k.Back { // dx = dy·W, whose inner length is N
				err = p.blas.Product(x, y, w, true, k.M, k.K, k.N)
			} else {
				err = p.blas.Product(y, x, w, false, k.M, k.N, k.K)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return p.blas.Name(), run, err
}

// foreign makes a call of a library once, for an error of the library is none of the card, and returns what makes it
// again: an error then is kept for the backend's Sync.
func (p *Probe) foreign(call func() error) (run func(), err error) {
	if err := errors.Join(p.b.dev.do(call), p.b.Sync()); err != nil {
		return nil, err
	}
	return func() {
		if err := p.b.dev.do(call); err != nil {
			p.b.fail(err)
		}
	}, nil
}

// operands are blocks of normal numbers in bfloat16, in place of those before.
func (p *Probe) operands(lengths ...int64) ([]uintptr, error) {
	if err := p.drop(); err != nil {
		return nil, err
	}
	const granule = 1024
	var all []uintptr
	for i, n := range lengths {
		bytes := 2 * ((n + granule - 1) / granule * granule)
		d, err := p.alloc(bytes)
		if err != nil {
			return nil, err
		}
		p.scratch = append(p.scratch, d)
		p.fill(d, bytes, uint32(10+i))
		all = append(all, uintptr(d))
	}
	return all, p.b.Sync()
}

// drop frees the operands of the yardstick before.
func (p *Probe) drop() error {
	var all []*cu.DevicePtr
	for i := range p.scratch {
		all = append(all, &p.scratch[i])
	}
	err := p.free(all...)
	for _, plan := range p.plans {
		_ = p.b.dev.do(func() error { plan.Close(); return nil })
	}
	p.scratch, p.plans = nil, nil
	return err
}

// Attention is cuDNN at causal attention of one segment of T tokens, forward or backward.
func (p *Probe) Attention(T int, h ops.Heads, back bool) (library string, run func(), err error) {
	if p.open(); p.dnnError != nil {
		return "", nil, p.dnnError
	}
	wide, narrow := int64(T*h.H*h.D), int64(T*h.Hk*h.D)
	d, err := p.operands(wide, narrow, narrow, wide, 2*int64(T*h.H), wide, wide, narrow, narrow) // the statistics are float32
	if err != nil {
		return "", nil, err
	}
	a := yardstick.Attention{T: T, H: h.H, Hk: h.Hk, D: h.D, Q: d[0], K: d[1], V: d[2], O: d[3], Stats: d[4], DO: d[5], DQ: d[6], DK: d[7], DV: d[8]}
	run, err = p.planned(p.dnn.Forward, a)
	if err == nil && back { // the forward has run, and left what the backward reads
		run, err = p.planned(p.dnn.Backward, a)
	}
	return p.dnn.Name(), run, err
}

// planned is a plan of cuDNN's with its workspace.
func (p *Probe) planned(make func(yardstick.Attention) (*yardstick.Plan, error), a yardstick.Attention) (run func(), err error) {
	var plan *yardstick.Plan
	if err := p.b.dev.do(func() (err error) { plan, err = make(a); return err }); err != nil {
		return nil, err
	}
	p.plans = append(p.plans, plan)
	workspace, err := p.more(plan.WorkspaceBytes())
	if err != nil {
		return nil, err
	}
	if err := p.b.dev.do(func() error { return plan.Bind(workspace) }); err != nil {
		return nil, err
	}
	return p.foreign(plan.Run)
}

// more adds a block to the operands.
func (p *Probe) more(bytes int64) (uintptr, error) {
	d, err := p.alloc(max(bytes, 256))
	if err == nil {
		p.scratch = append(p.scratch, d)
	}
	return uintptr(d), err
}

// Facts describe the card, and name what could not be asked. ok is false where NVML does not open.
func (p *Probe) Facts() (f nvml.Facts, missing []string, ok bool) {
	if p.sensors == nil {
		return nvml.Facts{}, p.missing, false
	}
	f = p.sensors.Facts()
	return f, append(p.missing, f.Missing...), true
}

// Sizes are the card's multiprocessors and the bytes of its second-level cache.
func (p *Probe) Sizes() (multiprocessors int, l2 int64) {
	facts, err := p.b.dev.id.Attributes(cu.MultiprocessorCount, cu.L2CacheSize)
	if err != nil {
		return 0, 0
	}
	return facts[0], int64(facts[1])
}

// RuntimeVersion is that of the CUDA runtime inside the program: "13.0".
func RuntimeVersion() string { return versionText(builtFor) }

// Sense reads the sensors; ok is false where there are none. Any goroutine may call it.
func (p *Probe) Sense() (r nvml.Reading, ok bool) {
	if p.sensors == nil {
		return nvml.Reading{}, false
	}
	return p.sensors.Pulse(), true
}

// Processes are what this process holds on the card, 0 where it cannot be told, and the others there. In a container
// numbers of processes may be those of the machine: a single one is this one. Where none is listed, all that is in use
// counts as held by this one.
func (p *Probe) Processes() (own int64, others []nvml.Process) {
	if p.sensors == nil {
		return 0, nil
	}
	all, _ := p.sensors.Processes()
	if own, others = split(all, os.Getpid()); len(all) == 0 {
		own = int64(p.sensors.Read().MemoryUsed)
	}
	return own, others
}

// split tells this process from the others.
func split(all []nvml.Process, pid int) (own int64, others []nvml.Process) {
	if len(all) == 1 {
		return all[0].Bytes, nil
	}
	for _, one := range all {
		if one.PID == pid {
			own = one.Bytes
		} else {
			others = append(others, one)
		}
	}
	return own, others
}

// Close gives all back.
func (p *Probe) Close() error {
	err := errors.Join(p.drop(), p.free(&p.flushed, &p.workspace))
	if p.blas != nil {
		err = errors.Join(err, p.b.do("cuBLAS", p.blas.Close))
	}
	if p.dnn != nil {
		err = errors.Join(err, p.b.do("cuDNN", p.dnn.Close))
	}
	err = errors.Join(err, p.b.do("events", func() error {
		var err error
		for i := range p.events {
			err = cmp.Or(err, cu.DestroyEvent(&p.events[i]))
		}
		p.events = nil
		return err
	}))
	if p.sensors != nil {
		err = errors.Join(err, p.sensors.Close())
	}
	return err
}
