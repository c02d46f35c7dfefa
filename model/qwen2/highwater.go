package qwen2

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"qlora/model/memory"
	"qlora/model/ops"
)

// Mark is how far a buffer was written.
type Mark struct {
	memory.Buffer
	Written int64 // bytes up to the last word that is not the pattern
}

// untouched fills watched memory: a NaN as float32 and as bfloat16, so that what reads before anything was written does
// not stay unseen.
const untouched = 0xffc1ffc1

// apart is the plan with a place of its own for every buffer.
func (m *Model) apart() (memory.Plan, error) {
	all := make([]memory.Buffer, len(m.Plan.Buffers))
	for i, b := range m.Plan.Buffers {
		b.First, b.Last = 0, m.end()
		all[i] = b
	}
	return memory.Layout(all, ops.Align)
}

// markPiece is what is filled or read at a time.
const markPiece = 1 << 20

// mark fills the arenas, and remembers where the buffers lie.
func (m *Model) mark(places memory.Plan) error {
	pattern := make([]byte, markPiece)
	for i := 0; i < len(pattern); i += 4 {
		binary.LittleEndian.PutUint32(pattern[i:], untouched)
	}
	m.places = places
	for i, b := range places.Buffers {
		for at := int64(0); at < b.Bytes; at += markPiece {
			n := min(markPiece, b.Bytes-at)
			if err := m.b.Write(m.piece(i, at, n), pattern[:n]); err != nil {
				return err
			}
		}
	}
	for _, t := range []ops.Tensor{m.Moment1, m.Moment2} { // which begin at zero
		if !t.Nil() {
			m.b.Zero(t)
		}
	}
	return nil
}

// piece views n bytes of buffer i from at on.
func (m *Model) piece(i int, at, n int64) ops.Tensor {
	b := m.places.Buffers[i]
	t := ops.Tensor{Name: b.Name, DType: ops.U8, Shape: []int{int(n)}, Buf: m.arena, Off: m.places.Offsets[i] + at}
	if b.Host {
		t.Buf = m.host
	}
	return t
}

// HighWater says how far each buffer of a model built with Watch was written so far.
func (m *Model) HighWater() ([]Mark, error) {
	if m.places.Buffers == nil {
		return nil, fmt.Errorf("qwen2: the memory is not watched")
	}
	marks := make([]Mark, len(m.Plan.Buffers))
	raw := make([]byte, markPiece)
	var word [4]byte
	binary.LittleEndian.PutUint32(word[:], untouched)
	for i, b := range m.Plan.Buffers {
		marks[i].Buffer = b
		for end := b.Bytes; end > 0 && marks[i].Written == 0; {
			at := (end - 1) / markPiece * markPiece
			some := raw[:end-at]
			if err := m.b.Read(some, m.piece(i, at, end-at)); err != nil {
				return nil, err
			}
			marks[i].Written = lastTouched(some, word[:])
			if marks[i].Written > 0 {
				marks[i].Written += at
			}
			end = at
		}
	}
	return marks, m.b.Sync()
}

// lastTouched is the bytes up to the last word that is not the pattern's.
func lastTouched(raw, word []byte) int64 {
	for end := len(raw); end > 0; {
		from := (end - 1) / 4 * 4
		if !bytes.Equal(raw[from:end], word[:end-from]) {
			return int64(end)
		}
		end = from
	}
	return 0
}

// Peaks is what each category takes at its fullest moment, in bytes: as planned, and as far as its buffers were written, in
// whole units of ops.Align, as their parts are laid out.
func Peaks(marks []Mark, c memory.Category) (planned, written int64) {
	buffers := make([]memory.Buffer, len(marks))
	for i, mark := range marks {
		buffers[i] = mark.Buffer
	}
	planned = memory.Peak(buffers, c, 1)
	for i, mark := range marks {
		buffers[i].Bytes = min(mark.Bytes, (mark.Written+ops.Align-1)/ops.Align*ops.Align)
	}
	return planned, memory.Peak(buffers, c, 1)
}
