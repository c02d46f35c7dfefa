//go:build cuda

package cuda

/*
#include <cuda_runtime_api.h>
#include <stdint.h>

// Copies rows to a pitch of their own. The address is an integer, so that Go holds no pointer into the card.
static cudaError_t copy_rows(uintptr_t dst, size_t pitch, const void *src, size_t width, size_t rows, cudaStream_t s) {
  return cudaMemcpy2DAsync((void *)dst, pitch, src, width, width, rows, cudaMemcpyHostToDevice, s);
}
*/
import "C"

import (
	"cmp"
	"errors"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// A slot holds a block of a weight, or a batch; while one is on its way the next is filled.
const (
	slotBytes = 16 << 20
	slots     = 4
)

// staging is pinned host memory, through which all that crosses to and from the card goes: only from there is a copy
// truly asynchronous, and at the full rate of the bus.
type staging struct {
	memory unsafe.Pointer
	slots  [slots]slot
	next   int
}

type slot struct {
	bytes []byte
	sent  cu.Event // after the last copy out of it
}

// newStaging is called with the card's context current, as are all methods that send or wait.
func newStaging() (*staging, error) {
	s := &staging{}
	if status := C.cudaHostAlloc(&s.memory, slots*slotBytes, C.cudaHostAllocDefault); status != C.cudaSuccess {
		return nil, fmt.Errorf("cuda: %d MiB of pinned host memory: %w", slots*slotBytes>>20, runtimeError(status))
	}
	all := unsafe.Slice((*byte)(s.memory), slots*slotBytes)
	for i := range s.slots {
		s.slots[i].bytes = all[i*slotBytes : (i+1)*slotBytes]
		var err error
		if s.slots[i].sent, err = cu.MakeEvent(cu.DisableTiming); err != nil {
			return nil, fmt.Errorf("cuda: an event: %w", err)
		}
	}
	return s, nil
}

// take returns the slot that was sent longest ago, once it is free.
func (s *staging) take() (*slot, error) {
	at := &s.slots[s.next%slots]
	s.next++
	return at, at.sent.Synchronize()
}

// send copies the first n bytes of the slot to dst.
func (s *slot) send(dst cu.DevicePtr, n int, stream cu.Stream) error {
	return cmp.Or(
		cu.MemcpyHtoDAsync(dst, unsafe.Pointer(unsafe.SliceData(s.bytes)), int64(n), stream),
		s.sent.Record(stream))
}

// sendStrips copies rows of rowBytes: strip by strip to their places below base.
func (s *slot) sendStrips(base cu.DevicePtr, strips []strip, rowBytes int, stream cu.Stream) error {
	for _, t := range strips {
		from := s.bytes[t.src*rowBytes : (t.src+t.rows)*rowBytes]
		status := C.copy_rows(C.uintptr_t(base)+C.uintptr_t(t.dst*rowBytes), C.size_t(t.step*rowBytes),
			unsafe.Pointer(unsafe.SliceData(from)), C.size_t(rowBytes), C.size_t(t.rows), C.cudaStream_t(unsafe.Pointer(stream.C())))
		if status != C.cudaSuccess {
			return runtimeError(status)
		}
	}
	return s.sent.Record(stream)
}

func (s *staging) free() error {
	var err error
	for i := range s.slots {
		err = cmp.Or(err, cu.DestroyEvent(&s.slots[i].sent))
	}
	if status := C.cudaFreeHost(s.memory); status != C.cudaSuccess {
		err = cmp.Or(err, runtimeError(status))
	}
	return err
}

func runtimeError(status C.cudaError_t) error {
	return errors.New(C.GoString(C.cudaGetErrorString(status)))
}
