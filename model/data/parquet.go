package data

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"

	"qlora/internal/strictjson"
)

// parquetTable is a parquet file. Rows are decoded a run at a time, for a page of values is
// compressed as a whole, and the runs used last are kept.
type parquetTable struct {
	file   string
	in     readCloserAt
	groups []parquet.RowGroup
	ends   []int // row after the last of each group
	sum    string

	mu   sync.Mutex
	runs []run // used last comes last
}

// run is some rows that follow each other.
type run struct {
	first int
	rows  [][]strictjson.Member
}

const (
	runRows  = 64
	keptRuns = 8
)

func newParquet(file string, in readCloserAt, size int64) (t *parquetTable, err error) {
	defer recoverParquet(file, &err)
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(in, 0, size)); err != nil {
		return nil, &FileError{file, 0, err}
	}
	if err := checkFooter(in, size); err != nil {
		return nil, &FileError{file, 0, err}
	}
	f, err := parquet.OpenFile(in, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return nil, &FileError{file, 0, err}
	}
	for _, group := range f.Metadata().RowGroups {
		for _, column := range group.Columns { // the reader's LZ4 doubles its buffer for ever on a broken page
			if codec := column.MetaData.Codec; codec == format.Lz4Raw {
				return nil, &FileError{file, 0, fmt.Errorf("compressed by %s, which is not read: write it with snappy or zstd", codec)}
			}
		}
	}
	t = &parquetTable{file: file, in: in, sum: hex.EncodeToString(sum.Sum(nil))}
	n := int64(0)
	for _, group := range f.RowGroups() {
		if rows := group.NumRows(); rows > 0 {
			n += rows
			t.groups, t.ends = append(t.groups, group), append(t.ends, int(n))
		}
		if n > maxRows {
			return nil, &FileError{file, 0, fmt.Errorf("more than %d rows", maxRows)}
		}
	}
	if n == 0 {
		return nil, &FileError{file, 0, errNoRows}
	}
	return t, nil
}

// checkFooter holds the footer's length to the file's, which the reader of the format would
// allocate.
func checkFooter(in io.ReaderAt, size int64) error {
	var tail [8]byte
	if size < 12 {
		return fmt.Errorf("%d bytes are no parquet file", size)
	}
	if _, err := in.ReadAt(tail[:], size-8); err != nil {
		return err
	}
	if n := int64(binary.LittleEndian.Uint32(tail[:])); string(tail[4:]) != "PAR1" || n > size-12 {
		return errors.New("no parquet file, or cut off: it does not end in a footer")
	}
	return nil
}

// recoverParquet turns a panic of the reader of the format, which a broken file can cause, into
// an error.
func recoverParquet(file string, err *error) {
	if fault := recover(); fault != nil {
		*err = &FileError{file, 0, fmt.Errorf("broken parquet file: %v", fault)}
	}
}

func (t *parquetTable) Len() int       { return t.ends[len(t.ends)-1] }
func (t *parquetTable) digest() string { return t.sum }
func (t *parquetTable) Close() error   { return t.in.Close() }

func (t *parquetTable) read(i int) (record, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.IndexFunc(t.runs, func(r run) bool { return r.first <= i && i < r.first+len(r.rows) })
	if at < 0 {
		next, err := t.decode(i)
		if err != nil {
			return record{}, err
		}
		if len(t.runs) == keptRuns {
			t.runs = slices.Delete(t.runs, 0, 1)
		}
		t.runs, at = append(t.runs, next), len(t.runs)
	} else if last := len(t.runs) - 1; at != last {
		used := t.runs[at]
		t.runs, at = append(slices.Delete(t.runs, at, at+1), used), last
	}
	r := t.runs[at]
	return record{i + 1, r.rows[i-r.first]}, nil
}

// decode reads the run of rows that holds row i.
func (t *parquetTable) decode(i int) (out run, err error) {
	defer recoverParquet(t.file, &err)
	g, _ := slices.BinarySearch(t.ends, i+1)
	start := 0
	if g > 0 {
		start = t.ends[g-1]
	}
	out.first = start + (i-start)/runRows*runRows
	rows := t.groups[g].Rows()
	defer rows.Close()
	if err := rows.SeekToRow(int64(out.first - start)); err != nil {
		return out, &FileError{t.file, 0, err}
	}
	want := min(runRows, t.ends[g]-out.first)
	buf := make([]parquet.Row, want)
	for len(out.rows) < want {
		n, err := rows.ReadRows(buf[:want-len(out.rows)])
		for _, row := range buf[:n] {
			members, err := parquetMembers(rows.Schema(), row)
			if err != nil {
				return out, &FileError{t.file, out.first + len(out.rows) + 1, err}
			}
			out.rows = append(out.rows, members)
		}
		if len(out.rows) < want && (err != nil || n == 0) {
			return out, &FileError{t.file, 0, fmt.Errorf("row %d cannot be read: %w", out.first+len(out.rows)+1, err)}
		}
	}
	return out, nil
}

// parquetMembers writes the columns of a row as JSON.
func parquetMembers(schema *parquet.Schema, row parquet.Row) ([]strictjson.Member, error) {
	var leaves [][]parquet.Value
	row.Range(func(_ int, values []parquet.Value) bool {
		leaves = append(leaves, values)
		return true
	})
	var members []strictjson.Member
	for _, field := range schema.Fields() {
		n := countLeaves(field)
		if n > len(leaves) {
			return nil, errors.New("a column has no value")
		}
		value, err := appendParquet(nil, field, leaves[:n], level{})
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", field.Name(), err)
		}
		members = append(members, strictjson.Member{Key: field.Name(), Value: strictjson.Value{Raw: value}})
		leaves = leaves[n:]
	}
	return members, nil
}

func countLeaves(node parquet.Node) int {
	if node.Leaf() {
		return 1
	}
	n := 0
	for _, field := range node.Fields() {
		n += countLeaves(field)
	}
	return n
}

// level counts the optional and the repeated nodes on the way to a value, as Dremel does.
type level struct{ definition, repetition int }

// appendParquet writes a node's value. leaves are the values of the columns below it. They say
// by their definition level how far down the tree there is something, and by their repetition
// level which list they go on with (Melnik et al., Dremel, 2010).
func appendParquet(dst []byte, node parquet.Node, leaves [][]parquet.Value, at level) ([]byte, error) {
	for _, values := range leaves {
		if len(values) == 0 {
			return nil, errors.New("a column has no value")
		}
	}
	switch {
	case node.Optional():
		at.definition++
		if leaves[0][0].DefinitionLevel() < at.definition {
			return append(dst, "null"...), nil
		}
		return appendPresent(dst, node, leaves, at)
	case !node.Repeated():
		return appendPresent(dst, node, leaves, at)
	}
	at.definition++
	at.repetition++
	dst = append(dst, '[')
	if leaves[0][0].DefinitionLevel() < at.definition {
		return append(dst, ']'), nil
	}
	rest := slices.Clone(leaves)
	for first := true; len(rest[0]) > 0; first = false {
		element := make([][]parquet.Value, len(rest))
		for i, values := range rest {
			if len(values) == 0 {
				return nil, errors.New("columns of a list differ in length")
			}
			n := 1
			for n < len(values) && values[n].RepetitionLevel() > at.repetition {
				n++
			}
			element[i], rest[i] = values[:n], values[n:]
		}
		if !first {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = appendPresent(dst, node, element, at); err != nil {
			return nil, err
		}
	}
	return append(dst, ']'), nil
}

// appendPresent writes a node's value that is there: a list of the format's three levels as a
// list, another group as an object, its fields in the order of the schema.
func appendPresent(dst []byte, node parquet.Node, leaves [][]parquet.Value, at level) ([]byte, error) {
	if node.Leaf() {
		return appendLeaf(dst, leaves[0][0])
	}
	fields := node.Fields()
	if len(fields) == 1 && (isList(node) || node.Repeated() && isElement(fields[0].Name())) {
		return appendParquet(dst, fields[0], leaves, at)
	}
	dst = append(dst, '{')
	for i, field := range fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		name, err := jsonString(field.Name())
		if err != nil {
			return nil, err
		}
		dst = append(append(dst, name...), ':')
		n := countLeaves(field)
		if dst, err = appendParquet(dst, field, leaves[:n], at); err != nil {
			return nil, err
		}
		leaves = leaves[n:]
	}
	return append(dst, '}'), nil
}

func isList(node parquet.Node) bool {
	logical, converted := node.Type().LogicalType(), node.Type().ConvertedType()
	return logical != nil && logical.String() == "LIST" || converted != nil && *converted == deprecated.List
}

// isElement reports whether a field is the element of a list's repeated group, by the names that
// writers have for it.
func isElement(name string) bool {
	return name == "element" || name == "item" || name == "array_element"
}

func appendLeaf(dst []byte, v parquet.Value) ([]byte, error) {
	switch v.Kind() {
	case parquet.Boolean:
		return strconv.AppendBool(dst, v.Boolean()), nil
	case parquet.Int32:
		return strconv.AppendInt(dst, int64(v.Int32()), 10), nil
	case parquet.Int64:
		return strconv.AppendInt(dst, v.Int64(), 10), nil
	case parquet.Float:
		return appendFloat(dst, float64(v.Float()), 32), nil
	case parquet.Double:
		return appendFloat(dst, v.Double(), 64), nil
	case parquet.ByteArray, parquet.FixedLenByteArray:
		text := v.ByteArray()
		if !utf8.Valid(text) { // an object, which no column of text accepts
			return fmt.Appendf(dst, `{"bytes":%d}`, len(text)), nil
		}
		quoted, err := json.Marshal(string(text))
		return append(dst, quoted...), err
	}
	return fmt.Appendf(dst, `{"kind":%q}`, v.Kind().String()), nil
}

// appendFloat writes a number; what is none, as pandas marks a missing one, is null.
func appendFloat(dst []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(dst, "null"...)
	}
	return strconv.AppendFloat(dst, f, 'g', -1, bits)
}
