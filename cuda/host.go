//go:build cuda

package cuda

/*
#include <cuda_runtime_api.h>
#include <stdint.h>

// Pinned memory of the host that the card reads and writes at the same address.
static cudaError_t host_memory(void **p, size_t bytes) {
  void *card = 0;
  cudaError_t error = cudaHostAlloc(p, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (error == cudaSuccess) error = cudaHostGetDevicePointer(&card, *p, 0);
  if (error == cudaSuccess && card != *p) error = cudaErrorNotSupported;
  return error;
}

static cudaError_t copy_any(uintptr_t dst, uintptr_t src, size_t bytes, cudaStream_t s) {
  return cudaMemcpyAsync((void *)dst, (const void *)src, bytes, cudaMemcpyDefault, s);
}
*/
import "C"

import (
	"cmp"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"

	"qlora/model/ops"
)

// NoHostMemory is an arena that the host has no memory to pin for.
type NoHostMemory struct {
	Need  int64
	Cause error
}

func (e *NoHostMemory) Error() string {
	return fmt.Sprintf("cuda: %d bytes of the host's memory cannot be pinned: %v", e.Need, e.Cause)
}

func (e *NoHostMemory) Unwrap() error { return e.Cause }

// NewHostArena makes a block of pinned memory, which the card sees at the same address. It fails with *NoHostMemory where the
// host has too little.
func (b *Backend) NewHostArena(bytes int64) (ops.Buffer, error) {
	if bytes < 0 {
		return nil, fmt.Errorf("cuda: an arena of %d bytes cannot be made", bytes)
	}
	a := &arena{bytes: bytes}
	var refused error
	err := b.do("NewHostArena", func() error {
		if status := C.host_memory(&a.host, C.size_t(max(aligned(bytes), ops.Align))); status != C.cudaSuccess {
			refused = &NoHostMemory{bytes, runtimeError(status)}
			C.cudaGetLastError() // it is said
			return nil
		}
		a.base = cu.DevicePtr(uintptr(a.host))
		b.arenas = append(b.arenas, a)
		return nil
	})
	if err != nil || refused != nil {
		return nil, cmp.Or(err, refused)
	}
	return a, nil
}

func freeHost(p unsafe.Pointer) error {
	if status := C.cudaFreeHost(p); status != C.cudaSuccess {
		return runtimeError(status)
	}
	return nil
}

// hostBytes is the bytes of a tensor that lies in the host's memory, nil of one that lies on the card. Work on the card
// that touches it must be over.
func hostBytes(t ops.Tensor) []byte {
	a := t.Buf.(*arena)
	if a.host == nil {
		return nil
	}
	return unsafe.Slice((*byte)(a.host), a.bytes)[t.Off : t.Off+t.Bytes()]
}

// transfers copy between host and card on a stream of their own, beside the kernels.
type transfers struct {
	stream cu.Stream
	behind cu.Event // what was launched before the copies
	done   cu.Event // the copies so far
}

// newTransfers is called with the card's context current, as is free.
func newTransfers() (t transfers, err error) {
	if t.stream, err = cu.MakeStream(cu.NonBlocking); err != nil {
		return t, fmt.Errorf("cuda: a stream: %w", err)
	}
	if t.behind, err = cu.MakeEvent(cu.DisableTiming); err != nil {
		return t, fmt.Errorf("cuda: an event: %w", err)
	}
	if t.done, err = cu.MakeEvent(cu.DisableTiming); err != nil {
		return t, fmt.Errorf("cuda: an event: %w", err)
	}
	return t, nil
}

func (t *transfers) free() error {
	return cmp.Or(t.stream.Synchronize(), cu.DestroyEvent(&t.behind), cu.DestroyEvent(&t.done), t.stream.Destroy())
}

// Transfer copies src to dst behind the work so far and beside what follows.
func (b *Backend) Transfer(dst, src ops.Tensor) {
	if !b.begin(ops.CheckTransfer(dst, src)) {
		return
	}
	t := &b.bus
	_ = b.do("Transfer", func() error { // kept as b.fault
		if err := cmp.Or(t.behind.Record(b.stream), t.stream.Wait(t.behind, 0)); err != nil {
			return err
		}
		status := C.copy_any(C.uintptr_t(address(dst)), C.uintptr_t(address(src)), C.size_t(src.Bytes()), C.cudaStream_t(unsafe.Pointer(t.stream.C())))
		if status != C.cudaSuccess {
			return runtimeError(status)
		}
		return t.done.Record(t.stream)
	})
}

// AwaitTransfers puts what follows behind all transfers so far.
func (b *Backend) AwaitTransfers() {
	if !b.begin() {
		return
	}
	_ = b.do("AwaitTransfers", func() error { return b.stream.Wait(b.bus.done, 0) }) // kept as b.fault
}
