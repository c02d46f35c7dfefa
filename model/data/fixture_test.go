package data

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"qlora/internal/golden"
	"qlora/model/tokenizer"
)

var qwenOnce = sync.OnceValues(func() (*tokenizer.Tokenizer, error) {
	const dir = "../../testdata/tokenizer/qwen2.5"
	model, err := golden.Gunzip(filepath.Join(dir, "tokenizer.json.gz"))
	if err != nil {
		return nil, err
	}
	return tokenizer.Load(model, nil)
})

func qwen(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := qwenOnce()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// jsonLines decodes a file of one JSON value a line, which must hold at least least.
func jsonLines[T any](t *testing.T, text []byte, least int) []T {
	t.Helper()
	var rows []T
	in := bufio.NewScanner(strings.NewReader(string(text)))
	in.Buffer(nil, 1<<24)
	for in.Scan() {
		var row T
		if err := json.Unmarshal(in.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	if len(rows) < least {
		t.Fatalf("%d rows, expected at least %d", len(rows), least)
	}
	return rows
}

func template(t testing.TB, name string) Template {
	t.Helper()
	tmpl, err := TemplateNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

func chat(t testing.TB, tmpl Template) *Chat {
	t.Helper()
	c, err := NewChat(tmpl, qwen(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// write puts a dataset into a file of the test.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// parse reads one row.
func parse(t testing.TB, row string) (Example, error) {
	t.Helper()
	for ex, err := range Rows(write(t, "row.jsonl", row), Options{}) {
		return ex, err
	}
	t.Fatal("no row in", row)
	return Example{}, nil
}

func ptr(s string) *string { return &s }
