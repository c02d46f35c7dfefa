package data

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"unicode"

	"qlora/internal/strictjson"
)

// maxRowBytes is the largest row that is read. A conversation that fills a context of 131072
// tokens is under 1 MB; without a limit a file without line ends would be read whole.
const maxRowBytes = 64 << 20

// record is one row as it stands in the file.
type record struct {
	row     int
	members []strictjson.Member
}

// A FileError is a fault after which the rest of a dataset cannot be trusted: broken JSON,
// broken text, a failed read.
type FileError struct {
	File string
	Row  int // 0 where no row is at fault
	Err  error
}

func (e *FileError) Error() string {
	if e.Row == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s, row %d: %v", e.File, e.Row, e.Err)
}

func (e *FileError) Unwrap() error { return e.Err }

var errRowTooLong = errors.New("the row is too long to be one: is a line end missing?")

// records streams the rows of a json or jsonl file: a JSON array of objects, or one object a
// line. It holds one row at a time, of at most limit bytes. The sequence ends after the first
// error, a *FileError.
func records(r io.Reader, file string, limit int) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		in := bufio.NewReaderSize(r, 1<<16)
		first, err := startOfText(in)
		if err != nil {
			yield(record{}, &FileError{file, 0, err})
			return
		}
		rows := lines(in, limit)
		if first == '[' {
			rows = elements(in, limit)
		}
		for row, next := range rows {
			rec := record{row: row}
			if err := next.err; err == nil {
				rec.members, err = parseRecord(next.json)
				next.err = err
			}
			if next.err != nil {
				yield(record{}, &FileError{file, row, next.err})
				return
			}
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// startOfText steps over a UTF-8 byte order mark and white space other than line ends, and
// returns the first byte of the text. An empty file is an error.
func startOfText(in *bufio.Reader) (byte, error) {
	head, err := in.Peek(3)
	switch {
	case bytes.Equal(head, []byte("\xef\xbb\xbf")):
		in.Discard(3)
	case bytes.HasPrefix(head, []byte("\xff\xfe")), bytes.HasPrefix(head, []byte("\xfe\xff")):
		return 0, errors.New("the file is UTF-16: convert it to UTF-8")
	case len(head) == 0 && err == io.EOF:
		return 0, errors.New("the file is empty")
	case len(head) == 0:
		return 0, err
	}
	// The format shows in the first byte that is not white space; look ahead for it without
	// consuming the lines before it, which count.
	for n := 1; n <= in.Size(); n++ {
		head, err := in.Peek(n)
		if len(head) < n {
			if err == io.EOF {
				return 0, errors.New("the file holds no rows")
			}
			return 0, err
		}
		if !unicode.IsSpace(rune(head[n-1])) {
			return head[n-1], nil
		}
	}
	return 0, fmt.Errorf("the file starts with %d bytes of white space", in.Size())
}

// rawRow is a row's JSON text or the error in its place.
type rawRow struct {
	json []byte
	err  error
}

// lines yields the lines of in that are not blank, numbered from 1. A line's bytes are valid
// until the next.
func lines(in *bufio.Reader, limit int) iter.Seq2[int, rawRow] {
	return func(yield func(int, rawRow) bool) {
		var line []byte
		for row := 1; ; row++ {
			line = line[:0]
			for {
				chunk, err := in.ReadSlice('\n')
				line = append(line, chunk...)
				if len(line) > limit {
					yield(row, rawRow{err: errRowTooLong})
					return
				}
				if err == bufio.ErrBufferFull {
					continue
				}
				text := bytes.TrimSpace(line)
				if len(text) > 0 && (err == nil || err == io.EOF) && !yield(row, rawRow{json: text}) {
					return
				}
				if err != nil {
					if err != io.EOF {
						yield(row, rawRow{err: err})
					}
					return
				}
				break
			}
		}
	}
}

// elements yields the elements of the JSON array in in, numbered from 1.
func elements(in *bufio.Reader, limit int) iter.Seq2[int, rawRow] {
	return func(yield func(int, rawRow) bool) {
		source := &budgetReader{r: in, left: limit}
		dec := json.NewDecoder(source)
		fail := func(row int, err error) {
			if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("the file ends before its array does")
			}
			yield(row, rawRow{err: err})
		}
		if _, err := dec.Token(); err != nil { // [
			fail(1, err)
			return
		}
		row := 1
		for ; dec.More(); row++ {
			source.left = limit
			var raw json.RawMessage
			if err := dec.Decode(&raw); err != nil {
				fail(row, err)
				return
			}
			if !yield(row, rawRow{json: raw}) {
				return
			}
		}
		if _, err := dec.Token(); err != nil { // ]
			fail(row, err)
			return
		}
		if row == 1 {
			yield(0, rawRow{err: errors.New("the file holds no rows")})
			return
		}
		source.left = limit
		var syntax *json.SyntaxError
		switch _, err := dec.Token(); {
		case err == nil, errors.As(err, &syntax):
			yield(0, rawRow{err: errors.New("there is text after the end of the array")})
		case err != io.EOF:
			yield(0, rawRow{err: err})
		}
	}
}

// budgetReader fails once a row has taken more than its share of bytes, so that a JSON
// decoder cannot be made to buffer a whole file.
type budgetReader struct {
	r    io.Reader
	left int
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errRowTooLong
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// parseRecord splits a row into its columns.
func parseRecord(raw []byte) ([]strictjson.Member, error) {
	members, err := strictjson.Members(raw, maxRowBytes)
	if err != nil {
		return nil, err
	}
	if at := loneSurrogate(raw); at >= 0 {
		return nil, fmt.Errorf("byte %d: %s is half of a surrogate pair, which is no character", at, raw[at:at+6])
	}
	return members, nil
}

// loneSurrogate returns the place of the first \u escape that is half of a UTF-16 pair, or -1.
// encoding/json would read it as U+FFFD. The JSON must be valid.
func loneSurrogate(raw []byte) int {
	for i := 0; ; {
		next := bytes.IndexByte(raw[i:], '\\')
		if next < 0 {
			return -1
		}
		i += next
		switch {
		case !isSurrogate(raw[i:], "89abAB") && !isSurrogate(raw[i:], "cdefCDEF"):
			i += 2
		case isSurrogate(raw[i:], "89abAB") && isSurrogate(raw[i+6:], "cdefCDEF"):
			i += 12
		default:
			return i
		}
	}
}

// isSurrogate reports whether text starts with \uDxyy where x is one of kinds.
func isSurrogate(text []byte, kinds string) bool {
	return len(text) >= 6 && text[0] == '\\' && text[1] == 'u' && text[2]|0x20 == 'd' && bytes.IndexByte([]byte(kinds), text[3]) >= 0
}
