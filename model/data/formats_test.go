package data

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"qlora/internal/allocs"
	"qlora/internal/strictjson"
)

const formats = "../../testdata/data/formats"

// wanted reads a file of formats.py.
func wanted[T any](t *testing.T, name string, least int) []T {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(formats, name))
	if err != nil {
		t.Fatal(err)
	}
	return jsonLines[T](t, text, least)
}

// rowValues reads a row as one JSON value.
func rowValues(t *testing.T, tab table, i int) map[string]any {
	t.Helper()
	rec, err := tab.read(i)
	if err != nil {
		t.Fatal(err)
	}
	if rec.row != i+1 {
		t.Errorf("row %d is named %d", i+1, rec.row)
	}
	values := map[string]any{}
	for _, m := range rec.members {
		var v any
		if err := json.Unmarshal(m.Raw, &v); err != nil {
			t.Fatalf("%s: %s: %v", m.Key, m.Raw, err)
		}
		values[m.Key] = v
	}
	return values
}

// Parquet files of other writers' settings hold what pyarrow says, in any order of reading.
func TestParquet(t *testing.T) {
	want := wanted[map[string]any](t, "chats.jsonl", 150)
	for _, name := range []string{"snappy", "zstd_v2", "gzip_plain", "brotli"} {
		tab, err := openTable(filepath.Join(formats, name+".parquet"))
		if err != nil {
			t.Fatal(err)
		}
		defer tab.Close()
		if tab.Len() != len(want) {
			t.Fatalf("%s: %d rows, want %d", name, tab.Len(), len(want))
		}
		for i := range want {
			if diff := cmp.Diff(want[i], rowValues(t, tab, i)); diff != "" {
				t.Fatalf("%s, row %d: %s", name, i+1, diff)
			}
		}
		for i := range 2 * len(want) {
			j := i * 71 % len(want)
			if diff := cmp.Diff(want[j], rowValues(t, tab, j)); diff != "" {
				t.Fatalf("%s, row %d out of order: %s", name, j+1, diff)
			}
		}
	}
	if _, err := openTable(filepath.Join(formats, "lz4.parquet")); err == nil || !strings.Contains(err.Error(), "write it with snappy or zstd") {
		t.Errorf("LZ4: %v", err)
	}
	a, _, err := Load([]string{filepath.Join(formats, "snappy.parquet")}, chat(t, template(t, "qwen2_5")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := Load([]string{filepath.Join(formats, "chats.jsonl")}, chat(t, template(t, "qwen2_5")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != 75 || Fingerprint(a) != Fingerprint(b) { // every other answer is trained on
		t.Errorf("%d samples of parquet, %d of jsonl, or others", len(a), len(b))
	}
}

// A parquet file with any byte wrong, or cut off anywhere, is an error or other rows, and never
// a panic.
func TestParquetBroken(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(formats, "brotli.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	try := func(broken []byte) {
		tab, err := newTable("f.parquet", nopCloser{strings.NewReader(string(broken))}, int64(len(broken)))
		if err == nil {
			for i := 0; i < min(tab.Len(), 200) && err == nil; i += 40 {
				_, err = tab.read(i)
			}
		}
		if err != nil {
			refused++
			if !strings.HasPrefix(err.Error(), "f.parquet") {
				t.Fatalf("%v", err)
			}
		}
	}
	for i := 0; i < len(text); i += 5 {
		broken := slices.Clone(text)
		broken[i] ^= byte(1 << (i / 5 % 8))
		try(broken)
		if i%20 == 0 {
			try(text[:i])
		}
	}
	if refused < 300 {
		t.Errorf("only %d of the broken files are refused", refused)
	}
}

// Text tables hold what pandas reads with na_filter=False, every cell as text.
func TestCSV(t *testing.T) {
	for _, name := range []string{"plain.csv", "quoted.csv", "crlf_bom.csv", "history.csv", "index.csv"} {
		tab, err := openTable(filepath.Join(formats, name))
		if err != nil {
			t.Fatal(err)
		}
		defer tab.Close()
		want := wanted[map[string]any](t, name+".jsonl", 1)
		if tab.Len() != len(want) {
			t.Fatalf("%s: %d rows, want %d", name, tab.Len(), len(want))
		}
		for i := range want {
			if diff := cmp.Diff(want[i], rowValues(t, tab, i)); diff != "" {
				t.Errorf("%s, row %d: %s", name, i+1, diff)
			}
		}
	}
	for ex, err := range Rows(filepath.Join(formats, "history.csv"), Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(turns("a", "b", "c's", "d", "q", "r"), ex.Conversation.Messages); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTextTablesRefuse(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a.csv", "", "a.csv: the file is empty"},
		{"a.csv", "query,response\n", "a.csv: the file holds no rows"},
		{"a.csv", "a,b\n1,2\n1,2,3\n", "a.csv, row 2: line 3, column 1: wrong number of fields"},
		{"a.csv", "a,b\n1\n", "a.csv, row 1: line 2"},
		{"a.csv", "a,b\n\"1,2\n", "row 1: line 2, column"},
		{"a.csv", "a,b\n1,x\"y\"\n", "each quote in it doubled"},
		{"a.csv", "a,a\n1,2\n", `two columns are named "a"`},
		{"a.csv", "a\r1\r2\r", "CR alone"},
		{"a.csv", "a\xff\n1\n", "header is not UTF-8"},
		{"a.csv", "text\n1\n\xff\n", "a.csv, row 2: column \"text\": invalid UTF-8"},
		{"a.csv", "\xff\xfea\x00", "UTF-16"},
		{"a.txt", "\n\n", "a.txt: the file holds no rows"},
		{"a.txt", "ok\n\xc3(\n", "a.txt, row 2: invalid UTF-8"},
	} {
		var err error
		for _, e := range Rows(write(t, c.name, c.text), Options{}) {
			if e != nil && err == nil {
				err = e
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

// A line of a txt file is a response; blank lines are none.
func TestTxt(t *testing.T) {
	var got []string
	for ex, err := range Rows(write(t, "a.txt", "\ufeffone\r\n\n  two \nthree"), Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(ex.Conversation.Messages) != 1 || ex.Conversation.Messages[0].Role != Assistant {
			t.Fatalf("%+v", ex)
		}
		got = append(got, fmt.Sprint(ex.Row, ex.Conversation.Messages[0].Content))
	}
	if want := []string{"1one", "3  two ", "4three"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// Literals mean what ast.literal_eval says.
func TestLiterals(t *testing.T) {
	for _, c := range wanted[struct {
		Text string
		JSON *string
	}](t, "literals.jsonl", 30) {
		got, err := literalJSON(c.Text)
		if (err == nil) != (c.JSON != nil) {
			t.Errorf("%s: %s, %v", c.Text, got, err)
		}
		if err != nil || c.JSON == nil {
			continue
		}
		var a, b any
		if err := json.Unmarshal(got, &a); err != nil {
			t.Errorf("%s: %s: %v", c.Text, got, err)
		}
		if err := json.Unmarshal([]byte(*c.JSON), &b); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b, a); diff != "" {
			t.Errorf("%s: %s", c.Text, diff)
		}
	}
	if _, err := literalJSON(strings.Repeat("[", 1<<20)); err == nil {
		t.Error("a deep literal was read")
	}
}

// FuzzParquetLevels writes rows of any values with any levels as JSON. What reads them from a file is a library, which
// allocates what a file declares: TestParquetBroken has files that are broken.
func FuzzParquetLevels(f *testing.F) {
	schema := parquet.NewSchema("row", parquet.Group{
		"messages": parquet.List(parquet.Group{"content": parquet.Optional(parquet.String()), "role": parquet.String()}),
		"query":    parquet.Optional(parquet.String()),
		"tags":     parquet.Repeated(parquet.Leaf(parquet.DoubleType)),
		"turns":    parquet.Optional(parquet.List(parquet.List(parquet.String()))),
	})
	leaves := len(schema.Columns())
	for _, levels := range []string{"", "\x00\x03\x04", "\x00\x03\x00\x10\x03\x00\x01\x02\x00\x11\x02\x00\x02\x01\x00\x03\x00\x01\x04\x05\x00\x24\x05\x00", "\x01\x00\x00\x00\x00\x00"} {
		f.Add([]byte(levels))
	}
	f.Fuzz(func(t *testing.T, levels []byte) {
		var row parquet.Row
		for ; len(levels) >= 3; levels = levels[3:] {
			value := parquet.ValueOf([]any{"text", "\xff\x00", 1.5, math.NaN(), int64(1) << 60, nil, true}[levels[2]%7])
			row = append(row, value.Level(int(levels[0]>>4), int(levels[1]), int(levels[0]&15)%leaves))
		}
		var members []strictjson.Member
		var err error
		allocs.Bound(t, 64*len(row), func() { members, err = parquetMembers(schema, row) })
		if err != nil {
			return
		}
		if len(members) != len(schema.Fields()) {
			t.Errorf("%d columns, want %d", len(members), len(schema.Fields()))
		}
		for _, m := range members {
			if !json.Valid(m.Raw) {
				t.Errorf("%s is no JSON: %s", m.Key, m.Raw)
			}
		}
	})
}

// FuzzFront reads any front matter of a README: subsets by name, or an error.
func FuzzFront(f *testing.F) {
	for _, text := range []string{"configs:\n- config_name: en\n  data_files: en.json", "configs:\n- config_name: zh\n  default: true\n  data_files:\n  - split: train\n    path:\n    - zh.json\n    - more/*.json",
		"a: &a [x, x]\nconfigs: [*a, *a]", "configs: 3", "license: mit\n---", "configs:\n- data_dir: d\n  data_files: ['**/zh*']"} {
		f.Add([]byte(text))
	}
	all := []string{"en.json", "zh.json", "d/train.json", "more/a.json"}
	f.Fuzz(func(t *testing.T, text []byte) {
		var found configs
		var err error
		allocs.Within(t, 1000*len(text)+1<<20, func() { found, err = parseFront(text) })
		if err != nil {
			return
		}
		for _, c := range found {
			files, err := c.match(all)
			if (err == nil) != (len(files) > 0) {
				t.Errorf("%+v: %v, %v", c, files, err)
			}
		}
	})
}

func FuzzLiteral(f *testing.F) {
	for _, seed := range []string{"[['a', None]]", `{"a": (1, -2.5e3), 'b': r'\x'}`, `'\x41\u00e9\N{X}'`, "('a' \"b\",)", "[1_0, 0x1, True]", `'''a'''`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got json.RawMessage
		var err error
		allocs.Within(t, 32*len(text)+1<<20, func() { got, err = literalJSON(text) })
		if err == nil && !json.Valid(got) {
			t.Fatalf("%q became %q", text, got)
		}
	})
}
