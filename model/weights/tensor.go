package weights

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"qlora/internal/random"
)

// A Tensor is a named array in a file. It holds no values: they are read, row by
// row, when asked for. Its methods may be called from many goroutines.
type Tensor struct {
	Name  string
	DType DType // as stored
	Shape []int // outermost first: a linear weight is [out, in]

	// Random is the stream its values are, rounded to bfloat16, row by row; nil for a tensor of a file.
	Random *random.Normal

	from     *origin
	entry    int64 // byte of the file's header that it is declared at
	offset   int64 // in the file, of the first byte
	size     int64 // in bytes
	permuted int   // head size D of rows stored for interleaved rope; 0: rows lie in order
}

// An origin is what tensors are read from.
type origin struct {
	name      string // for error messages
	src       io.ReaderAt
	quantized *quantized // of an NF4 tensor, which has an origin of its own: src holds its codes
}

// A tensorBlock is where tensors of a file are made, 64 at a time.
type tensorBlock []Tensor

func (b *tensorBlock) next() *Tensor {
	if len(*b) == cap(*b) {
		*b = make(tensorBlock, 0, 64)
	}
	*b = (*b)[:len(*b)+1]
	return &(*b)[len(*b)-1]
}

// A tensorList is sorted by name. A map would take three times the memory, of files
// that declare millions of tensors in as few bytes as can be.
type tensorList []*Tensor

func (l tensorList) sort() {
	slices.SortStableFunc(l, func(a, b *Tensor) int { return strings.Compare(a.Name, b.Name) })
}

// find returns the tensor called name, nil where there is none.
func (l tensorList) find(name string) *Tensor {
	i, ok := slices.BinarySearchFunc(l, name, func(t *Tensor, name string) int { return strings.Compare(t.Name, name) })
	if !ok {
		return nil
	}
	return l[i]
}

func (l tensorList) names() []string {
	names := make([]string, len(l))
	for i, t := range l {
		names[i] = t.Name
	}
	return names
}

func (l tensorList) byName() map[string]*Tensor {
	m := make(map[string]*Tensor, len(l))
	for _, t := range l {
		m[t.Name] = t
	}
	return m
}

// byPlace returns the tensors in the order of their bytes.
func (l tensorList) byPlace() []*Tensor {
	sorted := slices.Clone(l)
	slices.SortFunc(sorted, func(a, b *Tensor) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.size, b.size), strings.Compare(a.Name, b.Name))
	})
	return sorted
}

// Rows returns the number of rows, Shape[0] of a tensor of two or more dimensions;
// a tensor of one dimension is one row.
func (t *Tensor) Rows() int {
	if len(t.Shape) < 2 {
		return 1
	}
	return t.Shape[0]
}

// RowLen returns the number of elements of a row.
func (t *Tensor) RowLen() int {
	n, dims := 1, t.Shape
	if len(dims) >= 2 {
		dims = dims[1:]
	}
	for _, d := range dims {
		n *= d
	}
	return n
}

// ReadRowsRaw fills dst with the stored bytes, little endian, of rows
// [row, row+n). dst must have exactly their size, and the type must not be a
// blocked one.
func (t *Tensor) ReadRowsRaw(dst []byte, row, n int) error {
	rowBytes, ok := t.DType.size(int64(t.RowLen()))
	switch {
	case t.DType.Blocked() || t.permuted != 0 || !ok:
		return fmt.Errorf("%s: %s is stored as %s, whose rows have no bytes of their own: read it as float32", t.from.name, t.Name, t.DType)
	case len(dst) != n*int(rowBytes):
		return fmt.Errorf("%s: %d bytes asked for %d rows of %d bytes", t.Name, len(dst), n, rowBytes)
	}
	if err := t.checkRows(row, n); err != nil {
		return err
	}
	return t.readAt(dst, int64(row)*rowBytes)
}

// ReadRowsF32 fills dst with rows [row, row+n) as float32: F16 and BF16 widened,
// which is exact, the blocked types dequantised as their format defines. What a
// run computes with NF4 weights is these values rounded to bfloat16. dst must have
// n*RowLen elements.
func (t *Tensor) ReadRowsF32(dst []float32, row, n int) error {
	widen := decoders[t.DType]
	width := t.RowLen()
	switch {
	case widen == nil && t.from.quantized == nil:
		return fmt.Errorf("%s: %s is stored as %s, which does not read as float32", t.from.name, t.Name, t.DType)
	case len(dst) != n*width:
		return fmt.Errorf("%s: %d elements asked for %d rows of %d", t.Name, len(dst), n, width)
	}
	if err := t.checkRows(row, n); err != nil || n == 0 {
		return err
	}
	if t.permuted != 0 {
		return t.readPermuted(dst, row, n)
	}
	start := int64(row) * int64(width)
	if t.from.quantized != nil {
		return t.readNF4(dst, start)
	}
	return t.readElements(dst, start)
}

func (t *Tensor) checkRows(row, n int) error {
	if row < 0 || n < 0 || row > t.Rows()-n {
		return fmt.Errorf("%s: rows [%d, %d) of %d", t.Name, row, row+n, t.Rows())
	}
	return nil
}

// chunkElems is how many elements are read and widened at a time: a multiple of
// every block, small enough that the bytes stay in the processor's cache.
const chunkElems = 1 << 15

var chunks = sync.Pool{New: func() any { return new([4 * chunkElems]byte) }}

// readElements fills dst with the elements from start on, which lies on a block
// border, as do rows.
func (t *Tensor) readElements(dst []float32, start int64) error {
	widen, l := decoders[t.DType], layouts[t.DType]
	buf := chunks.Get().(*[4 * chunkElems]byte)
	defer chunks.Put(buf)
	for len(dst) > 0 {
		n := min(len(dst), chunkElems)
		raw := buf[:n/l.elems*l.bytes]
		if err := t.readAt(raw, start/int64(l.elems)*int64(l.bytes)); err != nil {
			return err
		}
		widen(dst[:n], raw)
		dst, start = dst[n:], start+int64(n)
	}
	return nil
}

// readAt reads stored bytes from off, counted from the start of the tensor.
func (t *Tensor) readAt(p []byte, off int64) error {
	n, err := t.from.src.ReadAt(p, t.offset+off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return &FormatError{t.from.name, t.offset + off + int64(n), fmt.Sprintf("the file ends inside %s: it has become shorter since it was opened", t.Name)}
	}
	return fmt.Errorf("%s: byte %d: reading %s: %w", t.from.name, t.offset+off, t.Name, err)
}

// readPermuted is ReadRowsF32 for rows that the llama converter of GGUF has
// reordered for rope on neighbouring pairs: of each head of D rows, stored row
// 2i+j is row j*D/2+i of the model. A tensor of one dimension (a bias) is
// reordered by element.
func (t *Tensor) readPermuted(dst []float32, row, n int) error {
	d, width := t.permuted, t.RowLen()
	if len(t.Shape) == 1 {
		row, n, width = 0, t.Shape[0], 1
	}
	head := make([]float32, d*width)
	for r := row; r < row+n; {
		first := r - r%d
		if err := t.readElements(head, int64(first)*int64(width)); err != nil {
			return err
		}
		for ; r < min(first+d, row+n); r++ {
			j, i := (r-first)/(d/2), (r-first)%(d/2)
			copy(dst[(r-row)*width:][:width], head[(2*i+j)*width:])
		}
	}
	return nil
}

// A FormatError is a fault in a model file.
type FormatError struct {
	File   string
	Offset int64 // bytes from the start of the file
	Msg    string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s: byte %d: %s", e.File, e.Offset, e.Msg)
}

// NonFinite is a NaN or an infinity in a file, which its format allows and no model or adapter has.
type NonFinite struct {
	Tensor string
	Place  string // of the value in the tensor
	Value  float32
}

func (e *NonFinite) Error() string {
	return fmt.Sprintf("%s: %s is %v: the file is damaged", e.Tensor, e.Place, e.Value)
}
