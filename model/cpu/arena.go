package cpu

import (
	"fmt"
	"unsafe"

	"qlora/model/ops"
)

// arena is a block of memory whose first byte is aligned to ops.Align.
type arena struct {
	bytes []byte
}

// Bytes is the size asked for.
func (a *arena) Bytes() int64 { return int64(len(a.bytes)) }

// NewArena makes a block of zeros. The system gives pages as they are first written.
func (b *Backend[T]) NewArena(bytes int64) (ops.Buffer, error) {
	if bytes < 0 || bytes != int64(int(bytes)) {
		return nil, fmt.Errorf("cpu: an arena of %d bytes cannot be made", bytes)
	}
	block := make([]byte, int(bytes)+ops.Align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(block)))) & (ops.Align - 1)
	return &arena{block[skip : skip+int(bytes) : skip+int(bytes)]}, nil
}

// NewHostArena is NewArena: all memory is the host's.
func (b *Backend[T]) NewHostArena(bytes int64) (ops.Buffer, error) { return b.NewArena(bytes) }

// raw is the bytes of a tensor that a check of its op found to lie within its arena.
func raw(t ops.Tensor) []byte {
	return t.Buf.(*arena).bytes[t.Off : t.Off+t.Bytes()]
}

// view is the elements of a tensor as E, whose size is that of the tensor's storage type.
func view[E float32 | float64 | int32 | uint16 | uint8](t ops.Tensor) []E {
	return unsafe.Slice((*E)(unsafe.Pointer(unsafe.SliceData(raw(t)))), t.Len())
}

// Write copies src into t.
func (b *Backend[T]) Write(t ops.Tensor, src []byte) error {
	if err := ops.CheckCopy("Write", t, len(src)); err != nil {
		return err
	}
	copy(raw(t), src)
	return nil
}

// Read copies t into dst.
func (b *Backend[T]) Read(dst []byte, t ops.Tensor) error {
	if err := ops.CheckCopy("Read", t, len(dst)); err != nil {
		return err
	}
	copy(dst, raw(t))
	return nil
}

// Zero fills t with zeros.
func (b *Backend[T]) Zero(t ops.Tensor) {
	if b.begin(ops.CheckCopy("Zero", t, int(t.Bytes()))) {
		clear(raw(t))
	}
}

// Transfer copies src to dst at once.
func (b *Backend[T]) Transfer(dst, src ops.Tensor) {
	if b.begin(ops.CheckTransfer(dst, src)) {
		copy(raw(dst), raw(src))
	}
}

// AwaitTransfers does nothing (see Transfer).
func (b *Backend[T]) AwaitTransfers() {}

// LoadBatch copies h into b's block.
func (b *Backend[T]) LoadBatch(batch *ops.Batch, h ops.HostBatch) error {
	words, err := batch.Load(h)
	if err != nil {
		return err
	}
	copy(view[int32](batch.Block), words)
	return nil
}

// Activation is the storage of activations: that of the arithmetic, whatever weights are stored as.
func (b *Backend[T]) Activation(ops.DType) ops.DType {
	if isFloat64[T]() {
		return ops.F64
	}
	return ops.F32
}

// WorkspaceBytes is 0: scratch memory is the backend's own, grows on first use and is kept.
func (b *Backend[T]) WorkspaceBytes(ops.Dims) int64 { return 0 }

// SetWorkspace does nothing (see WorkspaceBytes).
func (b *Backend[T]) SetWorkspace(ops.Tensor, ops.Dims) {}

// LoRAPackBytes is 0: products read A and B themselves.
func (b *Backend[T]) LoRAPackBytes(*ops.LoRA) int64 { return 0 }

// PackLoRA checks the adapters; there is no pack to write.
func (b *Backend[T]) PackLoRA(all []*ops.LoRA) { b.begin(ops.CheckPackLoRA(all, b.LoRAPackBytes)) }
