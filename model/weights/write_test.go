package weights

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/internal/strictjson"
)

// entriesOf makes entries of everything a model or file holds.
func entriesOf(t *testing.T, names []string, tensor func(string) (*Tensor, error)) []Entry {
	t.Helper()
	var entries []Entry
	for _, name := range names {
		tn, err := tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		size, _ := tn.DType.size(int64(tn.Rows() * tn.RowLen()))
		raw := make([]byte, size)
		if err := tn.ReadRowsRaw(raw, 0, tn.Rows()); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, BytesEntry(name, tn.DType, tn.Shape, raw))
	}
	return entries
}

// A file of the Python package, read and written again, is the same file.
func TestWriteIsByteIdentical(t *testing.T) {
	files, err := filepath.Glob(goldenDir(t, "models") + "/*/model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../../testdata/safetensors/*.safetensors")
	if err != nil || len(files) < 3 || len(more) < 1 {
		t.Fatalf("%d golden files and %d of all types, %v", len(files), len(more), err)
	}
	for _, path := range append(files, more...) {
		f, err := OpenSafetensors(path)
		if err != nil {
			t.Fatal(err)
		}
		entries := entriesOf(t, f.Names(), f.Tensor)
		slices.Reverse(entries) // the order must not matter
		out := filepath.Join(t.TempDir(), "copy.safetensors")
		if err := WriteSafetensors(out, f.Metadata, entries); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readFile(t, out), readFile(t, path)) {
			t.Errorf("%s: the copy differs", path)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func copyFile(t testing.TB, to, from string) {
	t.Helper()
	if err := os.WriteFile(to, readFile(t, from), 0o644); err != nil {
		t.Fatal(err)
	}
}

// shardedCopy writes the shards of the golden sharded model beside its own config
// and index. Its tensors are those of mini_untied, so they are not kept twice.
func shardedCopy(t *testing.T) string {
	t.Helper()
	from := goldenDir(t, "models/mini_untied_sharded")
	dir := t.TempDir()
	for _, name := range []string{"config.json", "generation_config.json", indexName} {
		copyFile(t, filepath.Join(dir, name), filepath.Join(from, name))
	}
	var index struct {
		Metadata  map[string]any    `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := strictjson.Unmarshal(readFile(t, filepath.Join(from, indexName)), maxIndex, &index); err != nil {
		t.Fatal(err)
	}
	m := mustOpen(t, goldenDir(t, "models/mini_untied"))
	shards := make(map[string][]Entry)
	for _, e := range entriesOf(t, m.Names(), m.Tensor) {
		shards[index.WeightMap[e.Name]] = append(shards[index.WeightMap[e.Name]], e)
	}
	for name, entries := range shards {
		if err := WriteSafetensors(filepath.Join(dir, name), PTMetadata, entries); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSharded(t *testing.T) {
	single := mustOpen(t, goldenDir(t, "models/mini_untied"))
	sharded := mustOpen(t, shardedCopy(t))
	checkShapes(t, sharded)
	sameTensors(t, sharded, single)

	// Our own split, in the order of the names.
	dir := t.TempDir()
	entries := entriesOf(t, single.Names(), single.Tensor)
	if err := WriteModel(dir, PTMetadata, entries, 1_000_000); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(dir, "config.json"), filepath.Join(single.Dir, "config.json"))
	ours := mustOpen(t, dir)
	sameTensors(t, ours, single)
	files, _ := filepath.Glob(dir + "/model-*-of-*.safetensors")
	if len(files) < 6 {
		t.Errorf("%d shards of at most 1 MB for 5.2 MB", len(files))
	}
	for _, f := range files {
		if size := len(readFile(t, f)); size > 1_004_000 {
			t.Errorf("%s has %d bytes", f, size)
		}
	}
	for _, want := range []string{`"total_parameters": 1289472`, `"total_size": 5157888`, fmt.Sprintf("-of-%05d", len(files))} {
		if got := string(readFile(t, filepath.Join(dir, indexName))); !strings.Contains(got, want) {
			t.Errorf("index lacks %s", want)
		}
	}
	// Under the limit there is one file and no index.
	dir = t.TempDir()
	if err := WriteModel(dir, PTMetadata, entries, 5_000_000_000); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, filepath.Join(dir, "model.safetensors")), readFile(t, filepath.Join(single.Dir, "model.safetensors"))) {
		t.Error("one file: the copy differs")
	}
}

func sameTensors(t *testing.T, got, want *Model) {
	t.Helper()
	a, b := entriesOf(t, got.Names(), got.Tensor), entriesOf(t, want.Names(), want.Tensor)
	if len(a) != len(b) {
		t.Fatalf("%d tensors, want %d", len(a), len(b))
	}
	for i := range a {
		var x, y bytes.Buffer
		if a[i].Name != b[i].Name || a[i].Write(&x) != nil || b[i].Write(&y) != nil || !bytes.Equal(x.Bytes(), y.Bytes()) {
			t.Errorf("%s differs", a[i].Name)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	one := func(dtype DType, shape []int, n int) Entry { return BytesEntry("a", dtype, shape, make([]byte, n)) }
	cases := []struct {
		name    string
		entries []Entry
		msg     string
	}{
		{"name twice", []Entry{one(F32, nil, 4), one(F16, nil, 2)}, `"a" is taken`},
		{"metadata's name", []Entry{BytesEntry("__metadata__", F32, nil, make([]byte, 4))}, "is taken"},
		{"too few bytes", []Entry{one(F32, []int{2}, 7)}, "7 bytes written"},
		{"too many bytes", []Entry{one(F32, []int{2}, 9)}, "9 bytes written"},
		{"negative", []Entry{one(F32, []int{-1}, 0)}, "shape [-1]"},
		{"overflow", []Entry{one(F32, []int{1 << 62, 4}, 0)}, "too many"},
		{"half a byte", []Entry{one("F4", []int{3}, 2)}, "whole bytes"},
		{"name not UTF-8", []Entry{BytesEntry("\xff", F32, nil, make([]byte, 4))}, "is not UTF-8"},
		{"GGUF type", []Entry{one(Q4_0, []int{32}, 18)}, `no type "Q4_0"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := EncodeSafetensors(io.Discard, nil, c.entries); err == nil || !strings.Contains(err.Error(), c.msg) {
				t.Errorf("got %v, want %q", err, c.msg)
			}
		})
	}
}
