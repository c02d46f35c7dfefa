//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"

	"qlora/model/ops"
)

// arena is a block of the card's memory, or of the host's.
type arena struct {
	base  cu.DevicePtr // as the card sees it
	bytes int64
	host  unsafe.Pointer // as the host sees it; nil of the card's
}

// free gives it back, with the card's context current.
func (a *arena) free() error {
	if a.host != nil {
		return freeHost(a.host)
	}
	return cu.MemFree(a.base)
}

// Bytes is the size asked for.
func (a *arena) Bytes() int64 { return a.bytes }

// address is where a tensor lies on the card, 0 for one that is absent.
func address(t ops.Tensor) uintptr {
	if t.Nil() {
		return 0
	}
	return uintptr(t.Buf.(*arena).base) + uintptr(t.Off)
}

// NoFit is an arena larger than the memory that is free on the card.
type NoFit struct {
	Need, Free int64
}

func (e *NoFit) Error() string {
	return fmt.Sprintf("cuda: an arena of %d bytes does not fit the %d that are free on the card", e.Need, e.Free)
}

// NewArena makes a block of zeros. It fails with *NoFit where the card has no room for it.
func (b *Backend) NewArena(bytes int64) (ops.Buffer, error) {
	if bytes < 0 {
		return nil, fmt.Errorf("cuda: an arena of %d bytes cannot be made", bytes)
	}
	size := max(aligned(bytes), ops.Align)
	a := &arena{bytes: bytes}
	var refused error
	err := b.do("NewArena", func() error {
		free, _, err := cu.MemInfo()
		if err != nil {
			return err
		}
		if size > free {
			refused = &NoFit{bytes, free}
			return nil
		}
		if a.base, err = cu.MemAlloc(size); err == cu.OutOfMemory {
			refused = &NoFit{bytes, free} // free, but not in one piece
			return nil
		} else if err != nil {
			return err
		}
		b.arenas = append(b.arenas, a)
		return cu.MemsetD8Async(a.base, 0, size, b.stream)
	})
	if err != nil {
		return nil, err
	}
	if refused != nil {
		return nil, refused
	}
	return a, nil
}

// MemInfo is the bytes that are free on the card, and all of them.
func (b *Backend) MemInfo() (free, total int64, err error) {
	err = b.do("MemInfo", func() (err error) { free, total, err = cu.MemInfo(); return err })
	return free, total, err
}

// Taken is what this process takes of the card: its arenas, and beside them the context, the kernels' code and all else
// that the driver took since the card was opened. It is not told where the driver does not say, and is off by what
// other processes took or gave back meanwhile.
func (b *Backend) Taken() (arenas, beside int64, ok bool) {
	for _, a := range b.arenas {
		if a.host == nil {
			arenas += max(aligned(a.bytes), ops.Align)
		}
	}
	now := freeMemory(b.dev.PCI)
	if b.dev.before == 0 || now == 0 {
		return arenas, 0, false
	}
	return arenas, b.dev.before - now - arenas, true
}

// Activation is bfloat16, whatever weights are stored as.
func (b *Backend) Activation(ops.DType) ops.DType { return ops.BF16 }

// Write copies src into t, behind the work before it.
func (b *Backend) Write(t ops.Tensor, src []byte) error {
	if err := ops.CheckCopy("Write", t, len(src)); err != nil {
		return err
	}
	return b.upload("Write", t, src)
}

// onHost runs f on a tensor's bytes where it lies in the host's memory, behind the work on the card.
func (b *Backend) onHost(op string, t ops.Tensor, f func(bytes []byte)) (done bool, err error) {
	bytes := hostBytes(t)
	if bytes == nil {
		return false, nil
	}
	err = b.do(op, func() error { return cmp.Or(b.stream.Synchronize(), b.bus.stream.Synchronize()) })
	if err == nil {
		f(bytes)
	}
	return true, err
}

func (b *Backend) upload(op string, t ops.Tensor, src []byte) error {
	if done, err := b.onHost(op, t, func(bytes []byte) { copy(bytes, src) }); done {
		return err
	}
	to := cu.DevicePtr(address(t))
	return b.do(op, func() error {
		for len(src) > 0 {
			s, err := b.staging.take()
			if err != nil {
				return err
			}
			n := copy(s.bytes, src)
			if err := s.send(to, n, b.stream); err != nil {
				return err
			}
			src, to = src[n:], to+cu.DevicePtr(n)
		}
		return nil
	})
}

// Read copies t into dst, after the work before it.
func (b *Backend) Read(dst []byte, t ops.Tensor) error {
	if err := ops.CheckCopy("Read", t, len(dst)); err != nil {
		return err
	}
	if done, err := b.onHost("Read", t, func(bytes []byte) { copy(dst, bytes) }); done {
		return err
	}
	from := cu.DevicePtr(address(t))
	return b.do("Read", func() error {
		for len(dst) > 0 {
			s, err := b.staging.take()
			if err != nil {
				return err
			}
			n := min(len(dst), slotBytes)
			if err := cu.MemcpyDtoHAsync(unsafe.Pointer(unsafe.SliceData(s.bytes)), from, int64(n), b.stream); err != nil {
				return err
			}
			if err := b.stream.Synchronize(); err != nil {
				return err
			}
			copy(dst, s.bytes[:n])
			dst, from = dst[n:], from+cu.DevicePtr(n)
		}
		return nil
	})
}

// Zero fills t with zeros.
func (b *Backend) Zero(t ops.Tensor) {
	if !b.begin(ops.CheckCopy("Zero", t, int(t.Bytes()))) {
		return
	}
	if done, _ := b.onHost("Zero", t, func(bytes []byte) { clear(bytes) }); done {
		return
	}
	_ = b.do("Zero", func() error { return cu.MemsetD8Async(cu.DevicePtr(address(t)), 0, t.Bytes(), b.stream) }) // kept as b.fault
}

// LoadBatch copies h into the batch's block: one copy for all but rows of millions of tokens.
func (b *Backend) LoadBatch(batch *ops.Batch, h ops.HostBatch) error {
	words, err := batch.Load(h)
	if err != nil {
		return err
	}
	if err := b.beginStep(h.Step); err != nil {
		return err
	}
	b.loads++
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 4*len(words))
	return b.upload("LoadBatch", batch.Block, bytes)
}
