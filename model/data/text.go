package data

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"qlora/internal/strictjson"
)

// maxRowBytes is the largest row that is read. A conversation that fills a context of 131072
// tokens is under 1 MB; without a limit a file without line ends would be read whole.
const maxRowBytes = 16 << 20

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

var (
	errRowTooLong = errors.New("the row is too long to be one: is a line end, or a quote, missing?")
	errNoRows     = errors.New("the file holds no rows")
)

// lookAhead is how much white space a file may start with.
const lookAhead = 1 << 16

// startOfText steps over a UTF-8 byte order mark, and returns where it ends and the first byte
// of the text that is not white space. An empty file is an error.
func startOfText(in *bufio.Reader) (at int64, first byte, err error) {
	head, err := in.Peek(3)
	switch {
	case bytes.Equal(head, []byte("\xef\xbb\xbf")):
		in.Discard(3)
		at = 3
	case bytes.HasPrefix(head, []byte("\xff\xfe")), bytes.HasPrefix(head, []byte("\xfe\xff")):
		return 0, 0, errors.New("the file is UTF-16: convert it to UTF-8")
	case len(head) == 0 && err == io.EOF:
		return 0, 0, errors.New("the file is empty")
	case len(head) == 0:
		return 0, 0, err
	}
	// The format shows in the first byte that is not white space; look ahead for it without
	// consuming the lines before it, which count.
	for n := 1; n <= lookAhead; n++ {
		head, err := in.Peek(n)
		if len(head) < n {
			if err == io.EOF {
				return 0, 0, errNoRows
			}
			return 0, 0, err
		}
		if !unicode.IsSpace(rune(head[n-1])) {
			return at, head[n-1], nil
		}
	}
	return 0, 0, fmt.Errorf("the file starts with %d bytes of white space", lookAhead)
}

// indexLines notes the lines that are not blank. It returns the row at fault.
func (t *textTable) indexLines(in *bufio.Reader, at int64, limit int) (row int, err error) {
	for row = 1; ; row++ {
		n, blank := 0, true
		for {
			chunk, err := in.ReadSlice('\n')
			n += len(chunk)
			blank = blank && len(bytes.TrimSpace(chunk)) == 0
			if n > limit {
				return row, errRowTooLong
			}
			if err == bufio.ErrBufferFull {
				continue
			}
			if !blank && (err == nil || err == io.EOF) {
				if err := t.add(at, n, row); err != nil {
					return row, err
				}
			}
			if err == io.EOF {
				return 0, nil
			}
			if err != nil {
				return 0, err
			}
			break
		}
		at += int64(n)
	}
}

// indexArray notes the elements of a JSON array.
func (t *textTable) indexArray(in *bufio.Reader, at int64, limit int) (row int, err error) {
	source := &budgetReader{r: in, left: limit}
	dec := json.NewDecoder(source)
	fault := func(row int, err error) (int, error) {
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the file ends before its array does")
		}
		return row, err
	}
	if _, err := dec.Token(); err != nil { // [
		return fault(1, err)
	}
	var raw json.RawMessage // used again
	for row = 1; dec.More(); row++ {
		source.left = limit
		if err := dec.Decode(&raw); err != nil {
			return fault(row, err)
		}
		if err := t.add(at+dec.InputOffset()-int64(len(raw)), len(raw), row); err != nil {
			return row, err
		}
	}
	if _, err := dec.Token(); err != nil { // ]
		return fault(row, err)
	}
	source.left = limit
	var syntax *json.SyntaxError
	switch _, err := dec.Token(); {
	case err == nil, errors.As(err, &syntax):
		return 0, errors.New("there is text after the end of the array")
	case err != io.EOF:
		return 0, err
	}
	return 0, nil
}

// budgetReader fails once a row has taken more than its share of bytes, so that a decoder
// cannot be made to buffer a whole file.
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

// indexCSV notes the records of a csv file after its header. A cell is text, whatever it looks
// like, and an empty one is the empty string, as pandas reads with na_filter=False and
// dtype=str; it may span lines.
func (t *textTable) indexCSV(in *bufio.Reader, at int64, limit int) (row int, err error) {
	source := &budgetReader{r: in, left: limit}
	r := csv.NewReader(source)
	r.ReuseRecord = true
	header, err := r.Read()
	if err != nil {
		return 0, csvFault(err)
	}
	names, err := csvHeader(header)
	if err != nil {
		return 0, err
	}
	t.parse = func(text []byte) ([]strictjson.Member, error) { return parseCSV(names, text) }
	for row = 1; ; row++ {
		start := r.InputOffset()
		source.left = limit
		_, err := r.Read()
		if err == io.EOF {
			return 0, nil
		}
		if err != nil {
			return row, csvFault(err)
		}
		if err := t.add(at+start, int(r.InputOffset()-start), row); err != nil {
			return row, err
		}
	}
}

// csvFault says what is wrong with a record and how to mend it.
func csvFault(err error) error {
	var fault *csv.ParseError
	if !errors.As(err, &fault) {
		return err
	}
	return fmt.Errorf("line %d, column %d: %w; a cell that holds commas, quotes or line ends stands in quotes, each quote in it doubled", fault.Line, fault.Column, fault.Err)
}

// csvHeader names the columns; one without a name gets pandas' name for it.
func csvHeader(header []string) ([]string, error) {
	seen := map[string]bool{}
	names := make([]string, len(header))
	for i, name := range header {
		if !utf8.ValidString(name) {
			return nil, fmt.Errorf("the header is not UTF-8: convert the file")
		}
		if strings.ContainsRune(name, '\r') {
			return nil, errors.New("lines end with CR alone: convert them to LF")
		}
		if name == "" {
			name = fmt.Sprintf("Unnamed: %d", i)
		}
		if seen[name] {
			return nil, fmt.Errorf("two columns are named %q", name)
		}
		seen[name], names[i] = true, name
	}
	return names, nil
}

func parseCSV(names []string, text []byte) ([]strictjson.Member, error) {
	r := csv.NewReader(bytes.NewReader(text))
	r.FieldsPerRecord = len(names)
	cells, err := r.Read()
	if err != nil {
		return nil, csvFault(err)
	}
	members := make([]strictjson.Member, len(names))
	for i, cell := range cells {
		value, err := jsonString(cell)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", names[i], err)
		}
		members[i] = strictjson.Member{Key: names[i], Value: strictjson.Value{Raw: value}}
	}
	return members, nil
}

// parseLine makes a line of a txt file the column "text", which is a response without a query.
func parseLine(line []byte) ([]strictjson.Member, error) {
	value, err := jsonString(string(bytes.TrimRight(line, "\r\n")))
	return []strictjson.Member{{Key: "text", Value: strictjson.Value{Raw: value}}}, err
}

// jsonString writes a text as JSON.
func jsonString(text string) (json.RawMessage, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("invalid UTF-8")
	}
	return json.Marshal(text)
}

// parseRecord splits a row of JSON into its columns.
func parseRecord(raw []byte) ([]strictjson.Member, error) {
	raw = bytes.TrimSpace(raw)
	members, err := object(raw)
	if err != nil {
		if !json.Valid(raw) {
			err = fmt.Errorf("%w; a file is one JSON object a line, or one array of them", err)
		}
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
