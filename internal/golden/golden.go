// Package golden finds the golden data: what transformers, PEFT, tokenizers and bitsandbytes computed, which tests
// compare with. It lies in testdata/golden; QLORA_GOLDEN names another set of the same layout, whose shapes, models and
// adapters may differ.
package golden

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// Path is a file or folder of the golden data.
func Path(t testing.TB, parts ...string) string {
	t.Helper()
	root := os.Getenv("QLORA_GOLDEN")
	if root == "" {
		root = filepath.Join(module(t), "testdata", "golden")
	}
	return filepath.Join(append([]string{root}, parts...)...)
}

// Dirs are the folders in a folder of the golden data, by name. There must be one.
func Dirs(t testing.TB, parts ...string) []string {
	t.Helper()
	path := Path(t, parts...)
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		t.Fatalf("%s holds no folders", path)
	}
	return names
}

// Has reports whether the set has a file: a set may hold part of the layout.
func Has(t testing.TB, parts ...string) bool {
	t.Helper()
	_, err := os.Stat(Path(t, parts...))
	return err == nil
}

// Gunzip reads a file that gzip has packed.
func Gunzip(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// module is the folder of go.mod, above the package under test.
func module(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = up
	}
}
