package weights

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"qlora/internal/atomicfile"
)

// GGUFValue is one metadata value: a string, bool, uint32, int32 or float32, or a slice of string, int32 or float32.
type GGUFValue struct {
	Key   string
	Value any
}

// ggufAlignment is where tensors begin: at its multiples, which is what readers take where the file does not say.
const ggufAlignment = 32

// WriteGGUF writes a GGUF file of version 3 at path, whole or not at all: the metadata and tensors in their order.
// Entries have the shapes and names of the format, but dimensions outermost first.
func WriteGGUF(path string, meta []GGUFValue, entries []Entry) error {
	err := atomicfile.WriteFile(path, func(w io.Writer) error { return EncodeGGUF(w, meta, entries) })
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// EncodeGGUF writes a GGUF file to w.
func EncodeGGUF(w io.Writer, meta []GGUFValue, entries []Entry) error {
	header, sizes, err := encodeGGUFHeader(meta, entries)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for i, e := range entries {
		counted := &countingWriter{w: w}
		if err := e.Write(counted); err != nil {
			return fmt.Errorf("tensor %q: %w", e.Name, err)
		}
		if counted.n != sizes[i] {
			return fmt.Errorf("tensor %q: %d bytes written, but %s %v takes %d", e.Name, counted.n, e.DType, e.Shape, sizes[i])
		}
		if _, err := w.Write(make([]byte, padding(sizes[i]))); err != nil {
			return err
		}
	}
	return nil
}

// padding is what brings n bytes to the next multiple of the alignment.
func padding(n int64) int64 { return (ggufAlignment - n%ggufAlignment) % ggufAlignment }

// encodeGGUFHeader returns all that stands before the first tensor, and the bytes each tensor takes.
func encodeGGUFHeader(meta []GGUFValue, entries []Entry) ([]byte, []int64, error) {
	var h ggufBuffer
	h.WriteString("GGUF")
	h.u32(3)
	h.u64(uint64(len(entries)))
	h.u64(uint64(len(meta)))
	seen := map[string]bool{}
	for _, m := range meta {
		if seen[m.Key] {
			return nil, nil, fmt.Errorf("metadata key %q occurs twice", m.Key)
		}
		seen[m.Key] = true
		h.text(m.Key)
		if err := h.value(m.Value); err != nil {
			return nil, nil, fmt.Errorf("metadata %s: %w", m.Key, err)
		}
	}
	sizes, offset, names := make([]int64, len(entries)), int64(0), map[string]bool{}
	for i, e := range entries {
		code, ok := ggufCode(e.DType)
		n, counted := elements(e.Shape)
		size, fits := e.DType.size(n)
		switch {
		case names[e.Name]:
			return nil, nil, fmt.Errorf("tensor name %q is taken", e.Name)
		case !ok:
			return nil, nil, fmt.Errorf("tensor %q: GGUF has no type %q", e.Name, e.DType)
		case len(e.Shape) < 1 || len(e.Shape) > 4 || slices.Min(e.Shape) < 1 || !counted || !fits || e.Shape[len(e.Shape)-1]%layouts[e.DType].elems != 0:
			return nil, nil, fmt.Errorf("tensor %q: %v is no shape of %s", e.Name, e.Shape, e.DType)
		}
		names[e.Name] = true
		h.text(e.Name)
		h.u32(uint32(len(e.Shape)))
		for _, d := range slices.Backward(e.Shape) {
			h.u64(uint64(d))
		}
		h.u32(code)
		h.u64(uint64(offset))
		sizes[i] = size
		offset += size + padding(size)
	}
	h.Write(make([]byte, padding(int64(h.Len()))))
	return h.Bytes(), sizes, nil
}

func ggufCode(d DType) (uint32, bool) {
	for code, name := range ggufTypes {
		if name == d {
			return code, true
		}
	}
	return 0, false
}

// ggufBuffer is a header being written.
type ggufBuffer struct{ bytes.Buffer }

func (b *ggufBuffer) u32(v uint32) { b.Write(binary.LittleEndian.AppendUint32(nil, v)) }
func (b *ggufBuffer) u64(v uint64) { b.Write(binary.LittleEndian.AppendUint64(nil, v)) }

func (b *ggufBuffer) text(s string) {
	b.u64(uint64(len(s)))
	b.WriteString(s)
}

func (b *ggufBuffer) value(v any) error {
	switch v := v.(type) {
	case string:
		b.u32(ggufString)
		b.text(v)
	case bool:
		b.u32(ggufBool)
		b.WriteByte(map[bool]byte{true: 1}[v])
	case uint32:
		b.u32(ggufU32)
		b.u32(v)
	case int32:
		b.u32(ggufI32)
		b.u32(uint32(v))
	case float32:
		b.u32(ggufF32)
		b.u32(math.Float32bits(v))
	case []string:
		b.array(ggufString, len(v))
		for _, s := range v {
			b.text(s)
		}
	case []int32:
		b.array(ggufI32, len(v))
		for _, n := range v {
			b.u32(uint32(n))
		}
	case []float32:
		b.array(ggufF32, len(v))
		for _, x := range v {
			b.u32(math.Float32bits(x))
		}
	default:
		return fmt.Errorf("a %T is not written", v)
	}
	return nil
}

func (b *ggufBuffer) array(kind uint32, n int) {
	b.u32(ggufArray)
	b.u32(kind)
	b.u64(uint64(n))
}

// GGUFName is the name in a GGUF file of a parameter that Hugging Face calls name.
func GGUFName(name string) (string, bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return "", false
	}
	stem, kind := name[:dot], name[dot+1:]
	prefix := ""
	if rest, ok := strings.CutPrefix(stem, "model.layers."); ok {
		number, inLayer, _ := strings.Cut(rest, ".")
		prefix, stem = "blk."+number+".", inLayer
	}
	for short, long := range ggufNames {
		if gguf := prefix + short + "." + kind; long == stem && huggingFaceName(gguf) == name {
			return gguf, true
		}
	}
	return "", false
}
