package data

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// readAll returns the rows that have columns, and the first error.
func readAll(r io.Reader) (rows []int, err error) {
	for rec, err := range records(r, "f", 1<<20) {
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
		{"object over several lines", "{\n\"query\": \"q\"\n}\n", nil, "f, row 1: "},
		{"line that is no object", row + "\n[1]\n", []int{1}, "f, row 2: byte 0: the document is not an object"},
		{"null", "null", nil, "f, row 1: "},
		{"cut off array", "[" + row + "," + row[:5], []int{1}, "f, row 2: the file ends before its array does"},
		{"open array", "[" + row, []int{1}, "f, row 2: the file ends before its array does"},
		{"missing comma", "[" + row + row + "]", []int{1}, "f, row 2: "},
		{"comma at the end", "[" + row + ",]", []int{1}, "f, row 2: "},
		{"element that is no object", "[" + row + ",3]", []int{1}, "f, row 2: byte 0: the document is not an object"},
		{"text after the array", "[" + row + "]x", []int{1}, "f: there is text after the end of the array"},
		{"second array", "[" + row + "][]", []int{1}, "f: there is text after the end of the array"},
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
		rows, err := readAll(strings.NewReader(c.text))
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

// repeat is a file of n bytes that says text over and over.
type repeat struct {
	text    string
	n, read int
}

func (r *repeat) Read(p []byte) (int, error) {
	if r.read >= r.n {
		return 0, io.EOF
	}
	n := copy(p, r.text[r.read%len(r.text):])
	r.read += n
	return n, nil
}

// A row without an end is given up on at the limit, not read whole; the limit is a row's, not
// the file's.
func TestRowTooLong(t *testing.T) {
	for _, start := range []string{`{"a":"`, `[{"a":"`, `[{},{"a":"`} {
		source := &repeat{strings.Repeat("a", 1<<12), 1 << 30, 0}
		_, err := readAll(io.MultiReader(strings.NewReader(start), source))
		if !errors.Is(err, errRowTooLong) || !strings.Contains(err.Error(), fmt.Sprintf("f, row %d: ", strings.Count(start, "{"))) {
			t.Errorf("%q: %v", start, err)
		}
		if source.read > 3<<20 {
			t.Errorf("%q: %d bytes were read", start, source.read)
		}
	}
	row := `{"a":"` + strings.Repeat("a", 1<<18) + `"}`
	for _, c := range []struct{ start, sep, end string }{{"", "\n", ""}, {"[" + row, ",", "]"}} {
		rows, err := readAll(io.MultiReader(strings.NewReader(c.start), &repeat{c.sep + row, 20 * (1 + len(row)), 0}, strings.NewReader(c.end)))
		if err != nil || len(rows) < 20 {
			t.Errorf("%.1q: %d rows, %v", c.start, len(rows), err)
		}
	}
}

type failing struct{}

var errDisk = errors.New("disk on fire")

func (failing) Read([]byte) (int, error) { return 0, errDisk }

// A failed read is reported as itself, wherever in the file it happens.
func TestReadError(t *testing.T) {
	for _, text := range []string{"", "{", `{"a":1}`, `{"a":1}` + "\n", "[", `[{"a":1}`, `[{"a":1},`, `[{"a":1}]`} {
		_, err := readAll(io.MultiReader(strings.NewReader(text), failing{}))
		if !errors.Is(err, errDisk) {
			t.Errorf("after %q: %v", text, err)
		}
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
		last := 0
		for rec, err := range records(strings.NewReader(string(text)), "f", 1<<20) {
			if err != nil {
				var fault *FileError
				if !errors.As(err, &fault) {
					t.Fatalf("%T: %v", err, err)
				}
				continue
			}
			if rec.row <= last {
				t.Fatalf("row %d after row %d", rec.row, last)
			}
			last = rec.row
			ex := Example{File: "f", Row: rec.row}
			err := rec.example(&ex)
			if err == nil {
				_, err = c.sample(ex, Options{})
			}
			var fault *RowError
			if err != nil && (!errors.As(err, &fault) || fault.Row != rec.row || fault.Msg == "") {
				t.Fatalf("%T: %v", err, err)
			}
		}
	})
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
