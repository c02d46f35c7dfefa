package weights

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A GGUF is an open GGUF file of version 2 or 3: metadata, a list of tensors, their
// bytes. Tensors bear the names and stored types of the file; a Model made of it
// maps the names. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
type GGUF struct {
	Version uint32
	File    string

	meta    ggufValues
	tensors tensorList
	close   func() error
}

// ggufValues are the metadata, sorted by key, as a tensorList is.
type ggufValues []ggufValue

type ggufValue struct {
	key   string
	value any
	entry int64 // byte of the file
}

// find returns the value of a key, nil where there is none.
func (l ggufValues) find(key string) any {
	i, ok := slices.BinarySearchFunc(l, key, func(v ggufValue, key string) int { return strings.Compare(v.key, key) })
	if !ok {
		return nil
	}
	return l[i].value
}

// ggufTypes are the codes of the tensor types that are read.
var ggufTypes = map[uint32]DType{
	0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0, 12: Q4_K, 13: Q5_K, 14: Q6_K, 30: BF16,
}

// ggufOtherTypes names types that exist but are not read, for the error.
var ggufOtherTypes = map[uint32]string{
	9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
	20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
	29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

// OpenGGUF opens the file at path and checks its header. A fault in it is a
// *FormatError.
func OpenGGUF(path string) (*GGUF, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	g, err := ReadGGUF(f, info.Size(), path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	g.close = f.Close
	return g, nil
}

// ReadGGUF reads the header of a GGUF file of size bytes; name is for error
// messages. Nothing is allocated by a count the file declares before that count is
// known to fit the file.
func ReadGGUF(src io.ReaderAt, size int64, name string) (*GGUF, error) {
	r := newGGUFReader(src, size, name)
	g := &GGUF{File: name, close: func() error { return nil }}
	if magic := r.u32(); r.err == nil && magic != 'G'|'G'<<8|'U'<<16|'F'<<24 {
		r.fault(0, "not a GGUF file: it does not begin with the letters GGUF")
	}
	if g.Version = r.u32(); r.err == nil && g.Version != 2 && g.Version != 3 {
		r.fault(4, "GGUF version %d (0x%x) is not supported, only 2 and 3, little endian", g.Version, g.Version)
	}
	tensors, values := r.u64(), r.u64()
	if r.fits(values, 13, "metadata values") {
		g.meta = r.values(int(values))
	}
	if r.fits(tensors, 32, "tensors") { // a name's length, a number of dimensions, one of them, a type, an offset
		g.tensors = r.tensors(int(tensors), &origin{name: name, src: src})
	}
	if r.err != nil {
		return nil, r.err
	}
	if err := g.place(r.pos, size); err != nil {
		return nil, err
	}
	return g, nil
}

// values reads n metadata values, and sorts them.
func (g *ggufReader) values(n int) ggufValues {
	all := make(ggufValues, n)
	for i := range all {
		if all[i] = (ggufValue{entry: g.pos, key: g.string()}); g.err == nil {
			all[i].value = g.value(g.u32())
		}
		if g.err != nil {
			return nil
		}
	}
	slices.SortStableFunc(all, func(a, b ggufValue) int { return strings.Compare(a.key, b.key) })
	for i := 1; i < n; i++ {
		if all[i].key == all[i-1].key {
			g.fault(all[i].entry, "metadata key %q occurs twice", all[i].key)
		}
	}
	return all
}

// tensors reads n entries of tensors, and sorts them.
func (g *ggufReader) tensors(n int, from *origin) tensorList {
	var block tensorBlock
	list := make(tensorList, n)
	for i := range list {
		list[i] = block.next()
		list[i].from = from
		g.tensorInfo(list[i])
		if g.err != nil {
			return nil
		}
	}
	list.sort()
	for i := 1; i < n; i++ {
		if list[i].Name == list[i-1].Name {
			g.fault(list[i].entry, "tensor %q occurs twice", list[i].Name)
		}
	}
	return list
}

// tensorInfo reads a tensor's entry; its offset is relative to the start of the
// data. GGUF lists dimensions innermost first.
func (g *ggufReader) tensorInfo(t *Tensor) {
	at := g.pos
	t.entry, t.Name = at, g.string()
	rank := g.u32()
	if g.err == nil && (rank < 1 || rank > 4) {
		g.fault(at, "tensor %q has %d dimensions, not 1 to 4", t.Name, rank)
	}
	if g.err != nil {
		return
	}
	t.Shape = make([]int, rank)
	for i := range t.Shape {
		d := g.u64()
		if g.err == nil && (d < 1 || d > 1<<48) {
			g.fault(at, "tensor %q has a dimension of %d", t.Name, d)
		}
		t.Shape[i] = int(d)
	}
	code, offset := g.u32(), g.u64()
	if g.err != nil {
		return
	}
	slices.Reverse(t.Shape)
	var known bool
	if t.DType, known = ggufTypes[code]; !known {
		g.fault(at, "tensor %q is stored as type %s, which is not supported, only %v", t.Name,
			cmp.Or(ggufOtherTypes[code], strconv.Itoa(int(code))), slices.Sorted(maps.Values(ggufTypes)))
		return
	}
	n, ok := elements(t.Shape)
	row := t.Shape[len(t.Shape)-1]
	if ok {
		t.size, ok = t.DType.size(n)
	}
	switch {
	case row%layouts[t.DType].elems != 0:
		g.fault(at, "tensor %q: rows of %d elements are no multiple of the %d of a %s block", t.Name, row, layouts[t.DType].elems, t.DType)
	case !ok || offset > 1<<62:
		g.fault(at, "tensor %q: %v elements at offset %d are too many", t.Name, t.Shape, offset)
	}
	t.offset = int64(offset)
}

// place checks that each tensor lies in the file, aligned and over no other, and
// makes offsets absolute. The data begins at the first aligned byte after header.
func (g *GGUF) place(header, size int64) error {
	alignment := int64(32)
	if v := g.meta.find("general.alignment"); v != nil {
		a, isInt := v.(int64)
		if !isInt || a < 8 || a > 1<<20 || a&(a-1) != 0 {
			return &FormatError{g.File, header, fmt.Sprintf("general.alignment %v is not a power of two from 8 to 2^20", v)}
		}
		alignment = a
	}
	start := (header + alignment - 1) / alignment * alignment
	next := int64(0)
	for _, t := range g.tensors.byPlace() {
		switch {
		case t.offset%alignment != 0:
			return &FormatError{g.File, start + t.offset, fmt.Sprintf("tensor %q is not aligned to %d bytes", t.Name, alignment)}
		case t.offset < next:
			return &FormatError{g.File, start + t.offset, fmt.Sprintf("tensor %q overlaps the one before it", t.Name)}
		case t.size > size-start-t.offset:
			return &FormatError{g.File, size, fmt.Sprintf("tensor %q is cut off: the file ends before its %d bytes from byte %d do", t.Name, t.size, start+t.offset)}
		}
		next = t.offset + t.size
		t.offset += start
	}
	return nil
}

// Names returns the tensors' names in the file, sorted.
func (g *GGUF) Names() []string { return g.tensors.names() }

// Tensor returns the tensor with this name in the file.
func (g *GGUF) Tensor(name string) (*Tensor, error) {
	if t := g.tensors.find(name); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%s: no tensor %q", g.File, name)
}

// Close closes the file; its tensors cannot be read afterwards.
func (g *GGUF) Close() error { return g.close() }

// metaValue looks up a metadata value that must have type T; ok is false when the key is
// absent.
func metaValue[T any](g *GGUF, key string) (value T, ok bool, err error) {
	v := g.meta.find(key)
	if v == nil {
		return value, false, nil
	}
	if value, ok = v.(T); !ok {
		return value, false, fmt.Errorf("metadata %s is a %T, not a %T", key, v, value)
	}
	return value, true, nil
}
