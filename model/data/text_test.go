package data

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"qlora/internal/allocs"
)

// readAll returns the rows that have columns, and the first error.
func readAll(file string, r io.ReaderAt, size int64) (rows []int, err error) {
	t, err := newText(file, nopCloser{r}, size, 1<<20)
	if err != nil {
		return nil, err
	}
	for i := range t.Len() {
		rec, err := t.read(i)
		if err != nil {
			return rows, err
		}
		rows = append(rows, rec.row)
	}
	return rows, nil
}

func TestRecords(t *testing.T) {
	const row = `{"query":"q","response":"r"}`
	for _, c := range []struct {
		name, text string
		rows       []int
		err        string
	}{
		{"one line", row + "\n", []int{1}, ""},
		{"no line end at the end", row + "\n" + row, []int{1, 2}, ""},
		{"CRLF", row + "\r\n" + row + "\r\n", []int{1, 2}, ""},
		{"byte order mark", "\ufeff" + row + "\n" + row, []int{1, 2}, ""},
		{"byte order mark, array", "\ufeff[" + row + "]", []int{1}, ""},
		{"blank lines count", "\n" + row + "\n \t\n" + row + "\n\n", []int{2, 4}, ""},
		{"array", " [" + row + ",\n" + row + "]\n", []int{1, 2}, ""},
		{"escaped NUL is a character", `{"a":"\u0000"}`, []int{1}, ""},
		{"surrogate pair", `{"a":"\ud83d\ude00 \\ud83d"}`, []int{1}, ""},

		{"empty file", "", nil, "f: the file is empty"},
		{"white space only", " \n\t\n", nil, "f: the file holds no rows"},
		{"much white space", strings.Repeat(" ", 1<<17), nil, "white space"},
		{"empty array", "[]", nil, "f: the file holds no rows"},
		{"UTF-16", "\xff\xfe{\x00", nil, "UTF-16"},
		{"UTF-16 big-endian", "\xfe\xff\x00{", nil, "UTF-16"},
		{"not JSON", row + "\nhello\n", []int{1}, "f, row 2: "},
		{"cut off line", row + "\n" + row[:10], []int{1}, "f, row 2: "},
		{"two objects on a line", row + row, nil, "f, row 1: "},
		{"object over several lines", "{\n\"query\": \"q\"\n}\n", nil, "f, row 1: byte 1: unexpected end of JSON input; a file is one JSON object a line, or one array of them"},
		{"line that is no object", row + "\n[1]\n", []int{1}, "f, row 2: byte 0: the document is not an object"},
		{"null", "null", nil, "f, row 1: "},
		{"cut off array", "[" + row + "," + row[:5], nil, "f, row 2: the file ends before its array does"},
		{"open array", "[" + row, nil, "f, row 2: the file ends before its array does"},
		{"missing comma", "[" + row + row + "]", nil, "f, row 2: "},
		{"comma at the end", "[" + row + ",]", nil, "f, row 2: "},
		{"element that is no object", "[" + row + ",3]", []int{1}, "f, row 2: byte 0: the document is not an object"},
		{"text after the array", "[" + row + "]x", nil, "f: there is text after the end of the array"},
		{"second array", "[" + row + "][]", nil, "f: there is text after the end of the array"},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", nil, "f, row 1: byte 6: invalid UTF-8"},
		{"invalid UTF-8 in an array", "[{\"a\":\"\xc3\"}]", nil, "f, row 1: byte 6: invalid UTF-8"},
		{"raw NUL", "{\"a\":\"\x00\"}", nil, "f, row 1: "},
		{"lone high surrogate", `{"a":"x\ud83d"}`, nil, `f, row 1: byte 7: \ud83d is half of a surrogate pair`},
		{"lone low surrogate", `{"a":"\uDE00"}`, nil, `\uDE00 is half`},
		{"two high surrogates", `{"a":"\uD83D\uD83D\uDE00"}`, nil, `byte 6: \uD83D is half`},
		{"key twice", `{"a":1,"a":2}`, nil, `f, row 1: byte 7: key "a" occurs twice`},
		{"key twice, deep", `{"a":[{"b":1,"b":2}]}`, nil, `key "b" occurs twice`},
		{"deep", `{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}", nil, "nested deeper"},
		{"very deep", `{"a":` + strings.Repeat("[", 10001) + strings.Repeat("]", 10001) + "}", nil, "f, row 1: "},
	} {
		rows, err := readAll("f", strings.NewReader(c.text), int64(len(c.text)))
		if fmt.Sprint(rows) != fmt.Sprint(c.rows) {
			t.Errorf("%s: rows %v, want %v", c.name, rows, c.rows)
		}
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.err)
		}
	}
}

// endless is a file that says text over and over after its start.
type endless struct {
	start, text string
	read        int // bytes
}

func (e *endless) ReadAt(p []byte, at int64) (int, error) {
	for i := range p {
		if j := int(at) + i; j < len(e.start) {
			p[i] = e.start[j]
		} else {
			p[i] = e.text[(j-len(e.start))%len(e.text)]
		}
	}
	e.read += len(p)
	return len(p), nil
}

// A row without an end is given up on at the limit, not read whole; the limit is a row's, not
// the file's.
func TestRowTooLong(t *testing.T) {
	for _, c := range []struct{ file, start, text, place string }{
		{"f.jsonl", `{"a":"`, "a", "row 1"}, {"f.json", `[{"a":"`, "a", "row 1"}, {"f.json", `[{},{"a":"`, "a", "row 2"},
		{"f.csv", "a\n1\n\"", "aaaaaaa\n", "row 2"}, {"f.csv", "", "a", "f.csv: "}, {"f.txt", "a\n", "a", "row 2"},
	} {
		source := &endless{start: c.start, text: c.text}
		_, err := readAll(c.file, source, 1<<30)
		if !errors.Is(err, errRowTooLong) || !strings.Contains(err.Error(), c.place) {
			t.Errorf("%q: %v", c.start, err)
		}
		if source.read > 4<<20 {
			t.Errorf("%q: %d bytes were read", c.start, source.read)
		}
	}
	row := `{"a":"` + strings.Repeat("a", 1<<18) + `"}`
	for _, text := range []string{strings.Repeat(row+"\n", 20), "[" + strings.Repeat(row+",", 19) + row + "]"} {
		rows, err := readAll("f", strings.NewReader(text), int64(len(text)))
		if err != nil || len(rows) != 20 {
			t.Errorf("%.1q: %d rows, %v", text, len(rows), err)
		}
	}
}

var errDisk = errors.New("disk on fire")

// failing is a file whose end cannot be read.
type failing struct{ text string }

func (f failing) ReadAt(p []byte, at int64) (int, error) {
	n := 0
	if at < int64(len(f.text)) {
		n = copy(p, f.text[at:])
	}
	if n < len(p) {
		return n, errDisk
	}
	return n, nil
}

// A failed read is reported as itself, wherever in the file it happens.
func TestReadError(t *testing.T) {
	for _, text := range []string{"", "{", `{"a":1}`, `{"a":1}` + "\n", "[", `[{"a":1}`, `[{"a":1},`, `[{"a":1}]`} {
		for _, file := range []string{"f.json", "f.csv", "f.txt"} {
			if file == "f.csv" { // where quotes mean something else
				text = strings.ReplaceAll(text, `"`, "'")
			}
			_, err := readAll(file, failing{text}, 1<<20)
			if !errors.Is(err, errDisk) {
				t.Errorf("%s after %q: %v", file, text, err)
			}
		}
	}
	const text = "{}\n{}\n"
	table, err := newText("f", nopCloser{strings.NewReader(text)}, int64(len(text)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	table.in = nopCloser{strings.NewReader(text[:4])} // cut off meanwhile
	if _, err := table.read(1); err == nil || !strings.Contains(err.Error(), "row 2 is no longer there") {
		t.Error(err)
	}
}

func FuzzRecords(f *testing.F) {
	for _, seed := range []string{
		`{"query":"q","response":"r"}` + "\n", "\ufeff[{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}]",
		`{"input_ids":[1,null],"labels":[1,2]}`, `{"a":"\ud83d"}`, "[", "[{}", "{}\r\n\r\n{}", "\xff\xfe", `[{"a":1}]x`,
		`{"history":[["a"]],"response":"r"}`, `{"messages":"[{\"from\":\"gpt\",\"value\":\"x\"}]"}`,
		`{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1e9}"}}]}]}`,
		`{"tools":["{\"name\":\"f\"}"],"query":"q","response":["a","b"]}`, `{"":"","instruction":"","input":""}`,
	} {
		f.Add([]byte(seed))
	}
	tmpl := template(f, "qwen2_5")
	c := &Chat{Template: tmpl, enc: byteEncoder{}, control: map[string]int32{imStart: 256, imEnd: 257}}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, file := range []string{"f.jsonl", "f.csv", "f.txt"} {
			fuzzTable(t, c, file, text)
		}
	})
}

// What reading a dataset allocates, garbage counted. Its rows are found in one pass, which keeps 16 bytes of each: 8 for
// each byte of a file of one letter a line; encoding/json makes 50 of garbage for each of an array of digits. Then one row is read
// at a time. An element of it becomes an object of its own, is decoded, and is written as the template wants it, at the
// worst the `{}` of a tool: some thousand bytes for three.
const (
	indexFactor = 64
	rowFactor   = 1300
	rowBase     = 16 << 10
)

// fuzzTable holds a file to what every file gives: rows in order, or errors that name them.
func fuzzTable(t *testing.T, c *Chat, file string, text []byte) {
	var tab *textTable
	var err error
	allocs.Within(t, indexFactor*len(text)+1<<20, func() {
		tab, err = newText(file, nopCloser{bytes.NewReader(text)}, int64(len(text)), 1<<20)
	})
	var fault *FileError
	if err != nil {
		if !errors.As(err, &fault) {
			t.Fatalf("%T: %v", err, err)
		}
		return
	}
	d := &dataset{files: []source{{file: file}}, tables: []table{tab}, ends: []int{tab.Len()}}
	last := 0
	for i := range d.Len() {
		var out outcome
		allocs.Within(t, rowFactor*int(tab.rows.at(i).n)+rowBase, func() { out = encoder{c, Options{}}.encode(d, i) })
		if out.err != nil && !errors.As(out.err, &fault) {
			t.Fatalf("%T: %v", out.err, out.err)
		}
		if out.row <= last {
			t.Fatalf("row %d after row %d: %+v", out.row, last, out)
		}
		if (out.fate != whole) != (out.detail != "") {
			t.Fatalf("%+v", out)
		}
		last = out.row
	}
}

// The densest files and rows stay within the bounds.
func TestAllocationBound(t *testing.T) {
	for name, text := range map[string]string{
		"f.jsonl": strings.Repeat("1\n", 500_000), "f.json": "[" + strings.Repeat("1,", 500_000) + "1]",
		"f.csv": "a,b\n" + strings.Repeat(",\n", 300_000), "f.txt": strings.Repeat("a\n", 500_000),
	} {
		allocs.Within(t, indexFactor*len(text)+1<<20, func() {
			if _, err := newText(name, nopCloser{strings.NewReader(text)}, int64(len(text)), 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	c := &Chat{Template: template(t, "qwen2_5"), enc: byteEncoder{}, control: map[string]int32{imStart: 256, imEnd: 257}}
	list := func(n int, head, element, tail string) string {
		return head + strings.Repeat(element+",", n-1) + element + tail
	}
	columns := make([]string, maxColumns)
	for i := range columns {
		columns[i] = fmt.Sprintf(`"%x":1`, i)
	}
	for name, row := range map[string]string{
		"a short row": `{"text":"a"}`, "no columns": "{}",
		"messages":  list(50_000, `{"messages":[`, `{"role":"user","content":""}`, "]}"),
		"history":   list(50_000, `{"history":[`, `["",""]`, `],"query":"","response":""}`),
		"responses": list(300_000, `{"response":[`, `""`, `],"query":""}`),
		"parts":     list(50_000, `{"messages":[{"role":"user","content":[`, `{"type":"text","text":""}`, `]}]}`),
		"calls":     list(30_000, `{"messages":[{"role":"assistant","tool_calls":[`, `{"name":"","arguments":1}`, `]}]}`),
		"tools":     list(50_000, `{"tools":[`, `{}`, `],"query":"","response":""}`),
		"a result":  list(300_000, `{"messages":[{"role":"tool","content":[`, `1`, `]}]}`),
		"ids":       list(500_000, `{"labels":[],"input_ids":[`, `1`, `]}`),
		"literals":  list(300_000, `{"messages":"[`, `1`, `]"}`),
		"columns":   "{" + strings.Join(columns, ",") + "}",
		"too many":  list(300_000, `{"a":1,`, `"a":1`, `}`),
	} {
		t.Run(name, func(t *testing.T) {
			tab, err := newText("f.jsonl", nopCloser{strings.NewReader(row)}, int64(len(row)), maxRowBytes)
			if err != nil {
				t.Fatal(err)
			}
			d := &dataset{files: []source{{file: "f.jsonl"}}, tables: []table{tab}, ends: []int{1}}
			allocs.Within(t, rowFactor*len(row)+rowBase, func() { _ = encoder{c, Options{}}.encode(d, 0) })
		})
	}
}

// byteEncoder is a tokenizer of bytes: 256 and 257 are its control tokens.
type byteEncoder struct{}

func (byteEncoder) AppendEncode(dst []int32, text string) []int32 {
	for i := range len(text) {
		dst = append(dst, int32(text[i]))
	}
	return dst
}

func (byteEncoder) ID(token string) (int32, bool) {
	i := map[string]int32{imStart: 256, imEnd: 257}
	id, ok := i[token]
	return id, ok
}
