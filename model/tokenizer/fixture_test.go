package tokenizer

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"qlora/internal/golden"
)

const fixtures = "../../testdata/tokenizer"

// readRows reads a .jsonl.gz file, which must hold at least min rows.
func readRows[T any](t testing.TB, path string, min int) []T {
	t.Helper()
	text, err := golden.Gunzip(path)
	if err != nil {
		t.Fatal(err)
	}
	var rows []T
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var row T
		if err := dec.Decode(&row); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(path, err)
		}
		rows = append(rows, row)
	}
	if len(rows) < min {
		t.Fatalf("%s holds %d rows, expected at least %d", path, len(rows), min)
	}
	return rows
}

var qwenJSON = sync.OnceValues(func() ([]byte, error) {
	return golden.Gunzip(filepath.Join(fixtures, "qwen2.5", "tokenizer.json.gz"))
})

var qwenOnce = sync.OnceValues(func() (*Tokenizer, error) {
	model, err := qwenJSON()
	if err != nil {
		return nil, err
	}
	config, err := os.ReadFile(filepath.Join(fixtures, "qwen2.5", "tokenizer_config.json"))
	if err != nil {
		return nil, err
	}
	return Load(model, config)
})

var smollmVocab = sync.OnceValues(func() (Vocab, error) {
	var v Vocab
	data, err := golden.Gunzip(filepath.Join(fixtures, "smollm2", "vocab.json.gz"))
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(data, &v)
})

var smollmOnce = sync.OnceValues(func() (*Tokenizer, error) {
	v, err := smollmVocab()
	if err != nil {
		return nil, err
	}
	return FromVocab(v)
})

func must[T any](t testing.TB, get func() (T, error)) T {
	t.Helper()
	v, err := get()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func qwen(t testing.TB) *Tokenizer   { t.Helper(); return must(t, qwenOnce) }
func smolLM(t testing.TB) *Tokenizer { t.Helper(); return must(t, smollmOnce) }
