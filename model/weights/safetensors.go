package weights

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"qlora/internal/strictjson"
)

// maxHeader is the limit of a safetensors header that the format's own reader has.
const maxHeader = 100_000_000

// maxRank bounds the dimensions of a tensor.
const maxRank = 8

// A File is an open safetensors file: 8 bytes with the length of the header, little
// endian; the header, a JSON object of tensors; their bytes without gaps.
// Format: https://github.com/huggingface/safetensors#format
type File struct {
	Metadata map[string]string // of the header's __metadata__; nil when it has none
	name     string
	tensors  tensorList
	close    func() error
}

// OpenSafetensors opens the file at path and checks its header. A fault in it is
// a *FormatError.
func OpenSafetensors(path string) (*File, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	return openSafetensors(f, path)
}

// openRegular opens a file, and refuses a folder, pipe or device before opening it,
// which might wait.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return os.Open(path)
}

// openSafetensors takes over f, which it closes on error.
func openSafetensors(f *os.File, name string) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	file, err := ReadSafetensors(f, info.Size(), name)
	if err != nil {
		f.Close()
		return nil, err
	}
	file.close = f.Close
	return file, nil
}

// ReadSafetensors reads the header of a safetensors file of size bytes; name is
// for error messages. Nothing is allocated by a length the file declares before
// that length is known to fit the file.
func ReadSafetensors(src io.ReaderAt, size int64, name string) (*File, error) {
	fault := func(off int64, format string, args ...any) error {
		return &FormatError{name, off, fmt.Sprintf(format, args...)}
	}
	if size < 8 {
		return nil, fault(size, "%d bytes: too short for a safetensors file", size)
	}
	var length [8]byte
	if _, err := src.ReadAt(length[:], 0); err != nil {
		return nil, fmt.Errorf("%s: reading the header length: %w", name, err)
	}
	n := binary.LittleEndian.Uint64(length[:])
	switch {
	case n == 0:
		return nil, fault(0, "the header length is 0")
	case n > maxHeader:
		return nil, fault(0, "the header length %d is over the limit of %d", n, maxHeader)
	case int64(n) > size-8:
		return nil, fault(0, "the header length %d reaches past the end of the file of %d bytes", n, size)
	}
	header := make([]byte, n)
	if _, err := src.ReadAt(header, 8); err != nil {
		return nil, fmt.Errorf("%s: reading the header: %w", name, err)
	}
	if header[0] != '{' {
		return nil, fault(8, "the header begins with %q, not with {", header[0])
	}
	file := &File{name: name, close: func() error { return nil }}
	if err := file.parse(header, &origin{name: name, src: src}); err != nil {
		return nil, err
	}
	if err := file.place(int64(8+n), size); err != nil {
		return nil, err
	}
	return file, nil
}

// metadataKey is the one key of a header that is no tensor's name.
const metadataKey = "__metadata__"

// parse reads the header.
func (f *File) parse(header []byte, from *origin) error {
	top, err := strictjson.Parse(header, maxHeader)
	if err != nil {
		return headerFault(f.name, "", err)
	}
	f.tensors = make(tensorList, 0, min(top.Len(), len(header)/minEntry+1)) // where there are more keys, some are no tensors'
	var block tensorBlock
	err = top.Each(func(key []byte, v strictjson.Value) error {
		if string(key) == metadataKey {
			err := f.parseMetadata(v)
			return headerFault(f.name, metadataKey+": ", err)
		}
		t := block.next()
		if err := t.parse(v); err != nil {
			return headerFault(f.name, fmt.Sprintf("tensor %q: ", key), err)
		}
		t.Name, t.from, t.entry = string(key), from, int64(8+v.Offset)
		f.tensors = append(f.tensors, t)
		return nil
	})
	f.tensors.sort()
	return err
}

// minEntry is the length of the shortest entry of a tensor, with its comma.
const minEntry = len(`"":{"dtype":"U8","shape":[],"data_offsets":[0,1]},`)

// maxMetadata bounds the keys of the metadata.
const maxMetadata = 1 << 12

func (f *File) parseMetadata(v strictjson.Value) error {
	o, err := v.Object()
	if err != nil {
		return err
	}
	members, err := o.Members(maxMetadata)
	if err != nil {
		return err
	}
	f.Metadata = make(map[string]string, len(members))
	for _, m := range members {
		var text string
		if json.Unmarshal(m.Raw, &text) != nil {
			return m.Fault("%.40q is not text: %.40s", m.Key, m.Raw)
		}
		f.Metadata[m.Key] = text
	}
	return nil
}

// headerFault places an error of the header, which begins at byte 8 of the file.
func headerFault(name, what string, err error) error {
	var at *strictjson.Error
	if errors.As(err, &at) {
		return &FormatError{name, 8 + at.Offset, "header: " + what + at.Msg}
	}
	return err
}

// parse reads a tensor's entry of the header; its offset is relative to the end of
// the header.
func (t *Tensor) parse(entry strictjson.Value) error {
	var shapeRoom, offsetRoom [maxRank]int
	var offsets []int
	o, err := entry.Object()
	if err != nil {
		return err
	}
	err = o.Each(func(key []byte, v strictjson.Value) (err error) {
		switch string(key) {
		case "dtype":
			t.DType, err = dtype(v)
		case "shape":
			var shape []int
			if shape, err = counts(shapeRoom[:0], v); shape != nil {
				t.Shape = make([]int, len(shape))
				copy(t.Shape, shape)
			}
		case "data_offsets":
			offsets, err = counts(offsetRoom[:0], v)
		default:
			for _, known := range []string{"dtype", "shape", "data_offsets"} {
				if strings.EqualFold(known, string(key)) {
					return v.Fault("key %q must be spelled %q", key, known)
				}
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case t.DType == "":
		return entry.Fault("dtype is missing")
	case t.Shape == nil:
		return entry.Fault("shape is missing")
	case offsets == nil:
		return entry.Fault("data_offsets is missing")
	case len(offsets) != 2:
		return entry.Fault("data_offsets has %d numbers, not 2", len(offsets))
	}
	begin, end := int64(offsets[0]), int64(offsets[1])
	if begin > end {
		return entry.Fault("data_offsets [%d, %d] run backwards", begin, end)
	}
	n, ok := elements(t.Shape)
	if !ok {
		return entry.Fault("shape %v has too many elements", t.Shape)
	}
	size, ok := t.DType.size(n)
	switch {
	case !ok:
		return entry.Fault("%d elements of %s do not fill whole bytes, or too many", n, t.DType)
	case size != end-begin:
		return entry.Fault("data_offsets [%d, %d] hold %d bytes, but %s %v takes %d", begin, end, end-begin, t.DType, t.Shape, size)
	}
	t.offset, t.size = begin, size
	return nil
}

// place checks that the tensors fill the file from byte start to size without gap
// or overlap, and makes their offsets absolute.
func (f *File) place(start, size int64) error {
	next := int64(0)
	for _, t := range f.tensors.byPlace() {
		switch {
		case t.size > size-start-t.offset:
			return &FormatError{f.name, size, fmt.Sprintf("tensor %q is cut off: it ends %d bytes past the end of the file", t.Name, t.size-(size-start-t.offset))}
		case t.offset < next:
			return &FormatError{f.name, start + t.offset, fmt.Sprintf("tensor %q overlaps the one before it", t.Name)}
		case t.offset > next:
			return &FormatError{f.name, start + next, fmt.Sprintf("%d bytes before tensor %q belong to none", t.offset-next, t.Name)}
		}
		next += t.size
		t.offset += start
	}
	if start+next != size {
		return &FormatError{f.name, start + next, fmt.Sprintf("%d bytes follow the last tensor", size-start-next)}
	}
	return nil
}

// Names returns the names of the tensors, sorted.
func (f *File) Names() []string { return f.tensors.names() }

// Tensor returns the tensor called name.
func (f *File) Tensor(name string) (*Tensor, error) {
	if t := f.tensors.find(name); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%s: no tensor %q", f.name, name)
}

// Close closes the file; its tensors cannot be read afterwards.
func (f *File) Close() error { return f.close() }

// dtype reads a tensor's type; null is none.
func dtype(v strictjson.Value) (DType, error) {
	if v.Raw[0] != '"' {
		return "", null(v, "a type")
	}
	for _, t := range safetensorsTypes {
		if string(v.Raw[1:len(v.Raw)-1]) == string(t) {
			return t, nil
		}
	}
	return "", v.Fault("unknown dtype %.40s", v.Raw)
}

// counts appends a list of at most maxRank whole numbers, none negative, written
// without sign, fraction or exponent; null is nil.
func counts(dst []int, v strictjson.Value) ([]int, error) {
	if v.Raw[0] != '[' {
		return nil, null(v, "a list of numbers")
	}
	list := bytes.TrimSpace(v.Raw[1 : len(v.Raw)-1])
	if len(list) == 0 {
		return dst, nil
	}
	if bytes.Count(list, []byte(",")) >= maxRank {
		return nil, v.Fault("more than %d numbers", maxRank)
	}
	for text := range bytes.SplitSeq(list, []byte(",")) {
		text = bytes.TrimSpace(text)
		n, err := strconv.ParseUint(string(text), 10, 63)
		if err != nil {
			return nil, v.Fault("%.30q is not a whole number from 0 to 2^63-1", text)
		}
		dst = append(dst, int(n))
	}
	return dst, nil
}

// null is nil for a value that is as good as missing, and says what another is not.
func null(v strictjson.Value, what string) error {
	if v.Raw[0] == 'n' {
		return nil
	}
	return v.Fault("%.20q is not %s", v.Raw, what)
}
