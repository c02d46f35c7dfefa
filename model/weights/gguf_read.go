package weights

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// ggufReader reads the header of a GGUF file from front to back. The first fault
// sticks, and everything read after it is zero, so that parsing code checks once.
type ggufReader struct {
	r    *bufio.Reader
	name string
	pos  int64 // of the next byte
	size int64 // of the file
	buf  [1 << 10]byte
	err  error
}

func newGGUFReader(src io.ReaderAt, size int64, name string) *ggufReader {
	return &ggufReader{r: bufio.NewReaderSize(io.NewSectionReader(src, 0, size), 1<<16), name: name, size: size}
}

func (g *ggufReader) fault(at int64, format string, args ...any) {
	if g.err == nil {
		g.err = &FormatError{g.name, at, fmt.Sprintf(format, args...)}
	}
}

// fits reports, and faults otherwise, whether n things of at least each bytes can
// follow: asked before memory is made for them.
func (g *ggufReader) fits(n uint64, each int64, what string) bool {
	if g.err == nil && n > uint64((g.size-g.pos)/each) {
		g.fault(g.pos, "%d %s declared, but only %d bytes follow", n, what, g.size-g.pos)
	}
	return g.err == nil
}

// read returns the next n bytes, zero after a fault; those of a short text are
// overwritten by the next read.
func (g *ggufReader) read(n uint64) []byte {
	fits := g.fits(n, 1, "bytes")
	p := g.buf[:min(n, uint64(len(g.buf)))]
	if !fits {
		clear(p)
		return p
	}
	if n > uint64(len(p)) {
		p = make([]byte, n)
	}
	got, err := io.ReadFull(g.r, p)
	g.pos += int64(got)
	if err != nil {
		clear(p)
		g.fault(g.pos, "reading the header: %s", err)
	}
	return p
}

func (g *ggufReader) u8() uint8   { return g.read(1)[0] }
func (g *ggufReader) u16() uint16 { return binary.LittleEndian.Uint16(g.read(2)) }
func (g *ggufReader) u32() uint32 { return binary.LittleEndian.Uint32(g.read(4)) }
func (g *ggufReader) u64() uint64 { return binary.LittleEndian.Uint64(g.read(8)) }

func (g *ggufReader) string() string { return string(g.read(g.u64())) }

// The type codes of metadata values.
const (
	ggufU8 = iota
	ggufI8
	ggufU16
	ggufI16
	ggufU32
	ggufI32
	ggufF32
	ggufBool
	ggufString
	ggufArray
	ggufU64
	ggufI64
	ggufF64
)

// value reads a metadata value of type code t: an int64, uint64, float64, float32,
// bool or string, or a slice of the type an array was written with.
func (g *ggufReader) value(t uint32) any {
	switch t {
	case ggufU8:
		return int64(g.u8())
	case ggufI8:
		return int64(int8(g.u8()))
	case ggufU16:
		return int64(g.u16())
	case ggufI16:
		return int64(int16(g.u16()))
	case ggufU32:
		return int64(g.u32())
	case ggufI32:
		return int64(int32(g.u32()))
	case ggufF32:
		return math.Float32frombits(g.u32())
	case ggufBool:
		return g.bool()
	case ggufString:
		return g.string()
	case ggufArray:
		return g.array()
	case ggufU64:
		return g.u64()
	case ggufI64:
		return int64(g.u64())
	case ggufF64:
		return math.Float64frombits(g.u64())
	}
	g.fault(g.pos, "unknown metadata type %d", t)
	return nil
}

func (g *ggufReader) bool() bool {
	b := g.u8()
	if b > 1 {
		g.fault(g.pos-1, "%d is not a truth value", b)
	}
	return b == 1
}

func (g *ggufReader) array() any {
	t, n := g.u32(), g.u64()
	switch t {
	case ggufU8:
		return readArray(g, n, 1, g.u8)
	case ggufI8:
		return readArray(g, n, 1, func() int8 { return int8(g.u8()) })
	case ggufU16:
		return readArray(g, n, 2, g.u16)
	case ggufI16:
		return readArray(g, n, 2, func() int16 { return int16(g.u16()) })
	case ggufU32:
		return readArray(g, n, 4, g.u32)
	case ggufI32:
		return readArray(g, n, 4, func() int32 { return int32(g.u32()) })
	case ggufF32:
		return readArray(g, n, 4, func() float32 { return math.Float32frombits(g.u32()) })
	case ggufBool:
		return readArray(g, n, 1, g.bool)
	case ggufString:
		return readArray(g, n, 8, g.string)
	case ggufU64:
		return readArray(g, n, 8, g.u64)
	case ggufI64:
		return readArray(g, n, 8, func() int64 { return int64(g.u64()) })
	case ggufF64:
		return readArray(g, n, 8, func() float64 { return math.Float64frombits(g.u64()) })
	}
	g.fault(g.pos, "arrays of metadata type %d are not supported", t)
	return nil
}

// readArray reads n values that take at least each bytes.
func readArray[T any](g *ggufReader, n uint64, each int64, read func() T) []T {
	if !g.fits(n, each, "array elements") {
		return nil
	}
	values := make([]T, n)
	for i := range values {
		values[i] = read()
		if g.err != nil {
			return nil
		}
	}
	return values
}
