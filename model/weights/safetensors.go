package weights

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"qlora/internal/strictjson"
)

// maxHeader is the limit of a safetensors header that the format's own reader has.
const maxHeader = 100_000_000

// maxRank bounds the dimensions of a tensor.
const maxRank = 16

// A File is an open safetensors file: 8 bytes with the length of the header, little
// endian; the header, a JSON object of tensors; their bytes without gaps.
// Format: https://github.com/huggingface/safetensors#format
type File struct {
	Metadata map[string]string // of the header's __metadata__; nil when it has none
	name     string
	tensors  map[string]*Tensor
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
	members, err := strictjson.Members(header, maxHeader)
	if err != nil {
		return nil, headerFault(name, 8, "", err)
	}
	file := &File{name: name, tensors: make(map[string]*Tensor, len(members)), close: func() error { return nil }}
	for _, m := range members {
		at := int64(8 + m.Offset)
		if m.Key == "__metadata__" {
			if err := strictjson.Unmarshal(m.Value, maxHeader, &file.Metadata); err != nil {
				return nil, headerFault(name, at, "__metadata__: ", err)
			}
			continue
		}
		t, err := tensorInfo(m.Value)
		if err != nil {
			return nil, headerFault(name, at, fmt.Sprintf("tensor %q: ", m.Key), err)
		}
		t.Name, t.file, t.src = m.Key, name, src
		file.tensors[m.Key] = t
	}
	if err := placeTensors(file.tensors, name, int64(8+n), size); err != nil {
		return nil, err
	}
	return file, nil
}

// headerFault places an error in the file: base is where the JSON that was read
// begins, what names it.
func headerFault(name string, base int64, what string, err error) error {
	fault := &FormatError{name, base, "header: " + what + err.Error()}
	var at *strictjson.Error
	if errors.As(err, &at) {
		fault.Offset += at.Offset
		fault.Msg = "header: " + what + at.Msg
	}
	return fault
}

// tensorInfo reads a tensor's entry of the header; its offset is relative to the
// end of the header.
func tensorInfo(value json.RawMessage) (*Tensor, error) {
	var info struct {
		DType   *DType  `json:"dtype"`
		Shape   *counts `json:"shape"`
		Offsets *counts `json:"data_offsets"`
	}
	if err := strictjson.Unmarshal(value, maxHeader, &info); err != nil {
		return nil, err
	}
	switch {
	case info.DType == nil:
		return nil, errors.New("dtype is missing")
	case info.Shape == nil:
		return nil, errors.New("shape is missing")
	case info.Offsets == nil:
		return nil, errors.New("data_offsets is missing")
	case !slices.Contains(safetensorsTypes, *info.DType):
		return nil, fmt.Errorf("unknown dtype %q", *info.DType)
	case len(*info.Offsets) != 2:
		return nil, fmt.Errorf("data_offsets has %d numbers, not 2", len(*info.Offsets))
	}
	begin, end := int64((*info.Offsets)[0]), int64((*info.Offsets)[1])
	if begin > end {
		return nil, fmt.Errorf("data_offsets [%d, %d] run backwards", begin, end)
	}
	n, ok := elements(*info.Shape)
	if !ok {
		return nil, fmt.Errorf("shape %v has too many elements", *info.Shape)
	}
	size, ok := info.DType.size(n)
	switch {
	case !ok:
		return nil, fmt.Errorf("%d elements of %s do not fill whole bytes, or too many", n, *info.DType)
	case size != end-begin:
		return nil, fmt.Errorf("data_offsets [%d, %d] hold %d bytes, but %s %v takes %d", begin, end, end-begin, *info.DType, *info.Shape, size)
	}
	return &Tensor{DType: *info.DType, Shape: *info.Shape, offset: begin, size: size}, nil
}

// placeTensors checks that the tensors fill the file from byte start to size
// without gap or overlap, and makes their offsets absolute.
func placeTensors(tensors map[string]*Tensor, name string, start, size int64) error {
	sorted := slices.SortedFunc(maps.Values(tensors), func(a, b *Tensor) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.size, b.size), cmp.Compare(a.Name, b.Name))
	})
	next := int64(0)
	for _, t := range sorted {
		switch {
		case t.size > size-start-t.offset:
			return &FormatError{name, size, fmt.Sprintf("tensor %q is cut off: it ends %d bytes past the end of the file", t.Name, t.size-(size-start-t.offset))}
		case t.offset < next:
			return &FormatError{name, start + t.offset, fmt.Sprintf("tensor %q overlaps the one before it", t.Name)}
		case t.offset > next:
			return &FormatError{name, start + next, fmt.Sprintf("%d bytes before tensor %q belong to none", t.offset-next, t.Name)}
		}
		next += t.size
		t.offset += start
	}
	if start+next != size {
		return &FormatError{name, start + next, fmt.Sprintf("%d bytes follow the last tensor", size-start-next)}
	}
	return nil
}

// Names returns the names of the tensors, sorted.
func (f *File) Names() []string { return slices.Sorted(maps.Keys(f.tensors)) }

// Tensor returns the tensor called name.
func (f *File) Tensor(name string) (*Tensor, error) {
	if t, ok := f.tensors[name]; ok {
		return t, nil
	}
	return nil, fmt.Errorf("%s: no tensor %q", f.name, name)
}

// Close closes the file; its tensors cannot be read afterwards.
func (f *File) Close() error { return f.close() }

// counts is a list of at most maxRank whole numbers, none negative, written
// without sign, fraction or exponent.
type counts []int

func (c *counts) UnmarshalJSON(data []byte) error {
	list, ok := strings.CutPrefix(string(data[:min(len(data), 32*maxRank)]), "[")
	if !ok {
		return fmt.Errorf("%.20q is not a list of numbers", data)
	}
	*c = counts{}
	if list, ok = strings.CutSuffix(list, "]"); !ok {
		return fmt.Errorf("%.20q… has more than %d numbers", data, maxRank)
	}
	if strings.TrimSpace(list) == "" {
		return nil
	}
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 63)
		if err != nil || n > 1<<63-1 {
			return fmt.Errorf("%.30q is not a whole number from 0 to 2^63-1", text)
		}
		if len(*c) == maxRank {
			return fmt.Errorf("more than %d numbers", maxRank)
		}
		*c = append(*c, int(n))
	}
	return nil
}
