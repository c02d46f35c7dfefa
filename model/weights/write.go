package weights

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"qlora/internal/atomicfile"
)

// PTMetadata is the metadata with which PyTorch's tools write, and expect,
// safetensors files.
var PTMetadata = map[string]string{"format": "pt"}

// An Entry is a tensor to be written.
type Entry struct {
	Name  string
	DType DType // one of safetensors
	Shape []int
	// Write writes the elements, little endian, row by row. It is called once, when
	// their turn comes, so that a model need not be in memory whole.
	Write func(w io.Writer) error
}

// BytesEntry is an Entry of elements that are bytes already, little endian.
func BytesEntry(name string, dtype DType, shape []int, data []byte) Entry {
	return Entry{name, dtype, shape, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}}
}

// F32Entry is an Entry of float32 values.
func F32Entry(name string, shape []int, values []float32) Entry {
	return Entry{name, F32, shape, func(w io.Writer) error {
		var buf [1 << 14]byte
		for len(values) > 0 {
			n := min(len(values), len(buf)/4)
			for i, v := range values[:n] {
				binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
			}
			if _, err := w.Write(buf[:4*n]); err != nil {
				return err
			}
			values = values[n:]
		}
		return nil
	}}
}

// WriteSafetensors writes a safetensors file at path, whole or not at all. The
// bytes depend on the entries alone, not on their order, and are those the
// format's own Python package writes.
func WriteSafetensors(path string, metadata map[string]string, entries []Entry) error {
	err := atomicfile.WriteFile(path, func(w io.Writer) error { return EncodeSafetensors(w, metadata, entries) })
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// EncodeSafetensors writes a safetensors file to w: the tensors by alignment of
// their type, the widest first, then by name, and the header padded with spaces to
// a multiple of 8, which keeps every tensor aligned.
func EncodeSafetensors(w io.Writer, metadata map[string]string, entries []Entry) error {
	sorted := slices.SortedFunc(slices.Values(entries), func(a, b Entry) int {
		return cmp.Or(
			cmp.Compare(slices.Index(safetensorsTypes, b.DType), slices.Index(safetensorsTypes, a.DType)),
			cmp.Compare(a.Name, b.Name))
	})
	header, sizes, err := encodeHeader(metadata, sorted)
	if err != nil {
		return err
	}
	var length [8]byte
	binary.LittleEndian.PutUint64(length[:], uint64(len(header)))
	if _, err := w.Write(append(length[:], header...)); err != nil {
		return err
	}
	for i, e := range sorted {
		counted := &countingWriter{w: w}
		if err := e.Write(counted); err != nil {
			return err
		}
		if counted.n != sizes[i] {
			return fmt.Errorf("tensor %q: %d bytes written, but %s %v takes %d", e.Name, counted.n, e.DType, e.Shape, sizes[i])
		}
	}
	return nil
}

// encodeHeader returns the padded header and the bytes each tensor takes.
func encodeHeader(metadata map[string]string, sorted []Entry) ([]byte, []int64, error) {
	header, comma := []byte{'{'}, ""
	if metadata != nil {
		header = append(header, `"__metadata__":{`...)
		for _, key := range slices.Sorted(maps.Keys(metadata)) {
			if !utf8.ValidString(key) || !utf8.ValidString(metadata[key]) {
				return nil, nil, fmt.Errorf("metadata %q: %q is not UTF-8", key, metadata[key])
			}
			header = appendQuoted(append(header, comma...), key)
			header = appendQuoted(append(header, ':'), metadata[key])
			comma = ","
		}
		header, comma = append(header, '}'), ","
	}
	sizes, offset, names := make([]int64, len(sorted)), int64(0), map[string]bool{"__metadata__": true}
	for i, e := range sorted {
		size, err := e.size()
		switch {
		case err != nil:
			return nil, nil, err
		case names[e.Name]:
			return nil, nil, fmt.Errorf("tensor name %q is taken", e.Name)
		case !utf8.ValidString(e.Name):
			return nil, nil, fmt.Errorf("tensor name %q is not UTF-8", e.Name)
		}
		names[e.Name] = true
		shape := strings.ReplaceAll(strings.Trim(fmt.Sprint(e.Shape), "[]"), " ", ",")
		header = appendQuoted(append(header, comma...), e.Name)
		header = fmt.Appendf(header, `:{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}`, e.DType, shape, offset, offset+size)
		comma = ","
		sizes[i] = size
		offset += size
	}
	header = append(header, '}')
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	if len(header) > maxHeader {
		return nil, nil, fmt.Errorf("a header of %d bytes is over the format's limit of %d", len(header), maxHeader)
	}
	return header, sizes, nil
}

// appendQuoted appends s as JSON text with the escapes of Rust's serde_json, which
// the format's own writer uses; encoding/json also escapes U+2028 and U+2029.
func appendQuoted(dst []byte, s string) []byte {
	const short = "\b\f\n\r\t\"\\"
	dst = append(dst, '"')
	for i := range len(s) {
		c := s[i]
		if k := strings.IndexByte(short, c); k >= 0 {
			dst = append(dst, '\\', `bfnrt"\`[k])
		} else if c < 0x20 {
			dst = fmt.Appendf(dst, `\u%04x`, c)
		} else {
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// size returns the bytes the entry takes.
func (e Entry) size() (int64, error) {
	if !slices.Contains(safetensorsTypes, e.DType) {
		return 0, fmt.Errorf("tensor %q: safetensors has no type %q", e.Name, e.DType)
	}
	if len(e.Shape) > maxRank {
		return 0, fmt.Errorf("tensor %q: more than %d dimensions", e.Name, maxRank)
	}
	for _, d := range e.Shape {
		if d < 0 {
			return 0, fmt.Errorf("tensor %q: shape %v", e.Name, e.Shape)
		}
	}
	n, ok := elements(e.Shape)
	if ok {
		n, ok = e.DType.size(n)
	}
	if !ok {
		return 0, fmt.Errorf("tensor %q: %s %v does not fill whole bytes, or too many", e.Name, e.DType, e.Shape)
	}
	return n, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// WriteModel writes the tensors of a model into the folder dir: one
// model.safetensors where they take at most maxShard bytes, else
// model-0000i-of-0000n.safetensors, filled in the order of entries, and
// model.safetensors.index.json. maxShard is 5 GB where transformers chooses.
func WriteModel(dir string, metadata map[string]string, entries []Entry, maxShard int64) error {
	var shards [][]Entry
	var room, total, parameters int64
	for _, e := range entries {
		size, err := e.size()
		if err != nil {
			return err
		}
		if len(shards) == 0 || size > room {
			shards, room = append(shards, nil), maxShard
		}
		last := len(shards) - 1
		shards[last] = append(shards[last], e)
		n, _ := elements(e.Shape)
		room, total, parameters = room-size, total+size, parameters+n
	}
	if len(shards) <= 1 {
		return WriteSafetensors(filepath.Join(dir, "model.safetensors"), metadata, entries)
	}
	placed := make(map[string]string, len(entries))
	for i, shard := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		for _, e := range shard {
			if placed[e.Name] != "" {
				return fmt.Errorf("tensor name %q is taken", e.Name)
			}
			placed[e.Name] = name
		}
		if err := WriteSafetensors(filepath.Join(dir, name), metadata, shard); err != nil {
			return err
		}
	}
	index, err := json.MarshalIndent(map[string]any{
		"metadata":   map[string]any{"total_size": total, "total_parameters": parameters},
		"weight_map": placed,
	}, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(dir, indexName), append(index, '\n'))
}
