package data

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"qlora/internal/strictjson"
)

// table is a file's rows, which are read in any order and from several goroutines.
type table interface {
	Len() int

	// read returns row i, from 0. The error is a *FileError; it names a row where the row's text
	// is at fault, and none where the file could not be read.
	read(i int) (record, error)

	// digest is the sha256 of the file.
	digest() string

	io.Closer
}

// record is one row as it stands in the file.
type record struct {
	row     int // as Example.Row
	members []strictjson.Member
}

//go:embed self_cognition.json
var selfCognition []byte

//go:embed general.json
var general []byte

// builtin are the datasets that are part of the program.
var builtin = map[string][]byte{SelfCognition: selfCognition, General: general}

// openTable finds the rows of a file.
func openTable(file string) (table, error) {
	own := builtin[file]
	var in readCloserAt = nopCloser{bytes.NewReader(own)}
	size := int64(len(own))
	if own == nil {
		f, err := os.Open(file)
		if err != nil {
			return nil, &FileError{file, 0, err}
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, &FileError{file, 0, err}
		}
		in, size = f, info.Size()
	}
	t, err := newTable(file, in, size)
	if err != nil {
		in.Close()
	}
	return t, err
}

type readCloserAt interface {
	io.ReaderAt
	io.Closer
}

type nopCloser struct{ io.ReaderAt }

func (nopCloser) Close() error { return nil }

// newTable finds the rows of a file that is open, by the type in its name.
func newTable(file string, in readCloserAt, size int64) (table, error) {
	switch extension(file) {
	case ".parquet":
		return newParquet(file, in, size)
	case ".json", ".jsonl", ".csv", ".txt", "":
		if builtin[file] != nil || extension(file) != "" {
			return newText(file, in, size, maxRowBytes)
		}
	}
	return nil, &FileError{file, 0, fmt.Errorf("files of type %q are not supported: convert it to .jsonl, one JSON object a line", extension(file))}
}

// textTable is a file of text: an index of where its rows stand.
type textTable struct {
	file  string
	in    readCloserAt
	rows  places
	parse func(text []byte) ([]strictjson.Member, error)
	sum   string
}

// place is where a row stands: n bytes from at.
type place struct {
	at     int64
	n, row int32
}

// places are those of a file, in blocks: a slice that grows takes twice the memory, and more while it does.
type places struct {
	blocks [][]place
	n      int
}

const placeBlock = 1024

func (p *places) add(one place) {
	if p.n%placeBlock == 0 {
		p.blocks = append(p.blocks, make([]place, 0, placeBlock))
	}
	last := &p.blocks[len(p.blocks)-1]
	*last = append(*last, one)
	p.n++
}

func (p *places) at(i int) place { return p.blocks[i/placeBlock][i%placeBlock] }

// maxRows bounds what a file's rows are counted in.
const maxRows = 1<<31 - 1

// newText goes through a file once, a row of at most limit bytes at a time.
func newText(file string, in readCloserAt, size int64, limit int) (*textTable, error) {
	sum := sha256.New()
	source := bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(in, 0, size), sum), int(min(max(size, lookAhead), 1<<20)))
	t := &textTable{file: file, in: in}
	at, first, err := startOfText(source)
	if err != nil {
		return nil, &FileError{file, 0, err}
	}
	row := 0
	switch extension(file) {
	case ".csv":
		row, err = t.indexCSV(source, at, limit)
	case ".txt":
		t.parse = parseLine
		row, err = t.indexLines(source, at, limit)
	default:
		t.parse = parseRecord
		if first == '[' {
			row, err = t.indexArray(source, at, limit)
		} else {
			row, err = t.indexLines(source, at, limit)
		}
	}
	if err == nil && t.rows.n == 0 {
		row, err = 0, errNoRows
	}
	if err != nil {
		return nil, &FileError{file, row, err}
	}
	if _, err := io.Copy(io.Discard, source); err != nil {
		return nil, &FileError{file, 0, err}
	}
	t.sum = hex.EncodeToString(sum.Sum(nil))
	return t, nil
}

func (t *textTable) Len() int       { return t.rows.n }
func (t *textTable) digest() string { return t.sum }
func (t *textTable) Close() error   { return t.in.Close() }

func (t *textTable) read(i int) (record, error) {
	at := t.rows.at(i)
	text := make([]byte, at.n)
	if n, err := t.in.ReadAt(text, at.at); n < len(text) {
		if err == io.EOF {
			err = fmt.Errorf("row %d is no longer there: the file has changed", at.row)
		}
		return record{}, &FileError{t.file, 0, err}
	}
	members, err := t.parse(text)
	if err != nil {
		return record{}, &FileError{t.file, int(at.row), err}
	}
	return record{int(at.row), members}, nil
}

// add notes a row, numbered from 1.
func (t *textTable) add(at int64, n, row int) error {
	if row > maxRows {
		return fmt.Errorf("more than %d rows", maxRows)
	}
	t.rows.add(place{at, int32(n), int32(row)})
	return nil
}
