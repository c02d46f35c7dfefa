package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var errFull = errors.New("disk full")

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	for _, text := range []string{"old", "new and longer"} {
		if err := WriteBytes(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o400 == 0 || info.Mode().Perm()&^0o644 != 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	seen := ""
	err = WriteFile(path, func(w io.Writer) error {
		// More than any buffer, so that a part is on the disk when it fails.
		if _, err := w.Write(make([]byte, 3<<20)); err != nil {
			return err
		}
		seen = content(t, path)
		return errFull
	})
	if !errors.Is(err, errFull) {
		t.Errorf("got %v, want %v", err, errFull)
	}
	if seen != "new and longer" || content(t, path) != seen {
		t.Error("a failed write changed the target")
	}
	if got := names(t, dir); !slices.Equal(got, []string{"a.json"}) {
		t.Errorf("left behind: %v", got)
	}
	if err := WriteBytes(filepath.Join(dir, "none", "a"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a missing folder: %v", err)
	}
}

func TestWriteDir(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "checkpoint-10")
	// What a killed process may have left.
	if err := os.MkdirAll(filepath.Join(TempPath(path), "stale"), 0o755); err != nil {
		t.Fatal(err)
	}
	fill := func(tmp string) error {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the target is there before it is whole: %v", err)
		}
		if err := os.Mkdir(filepath.Join(tmp, "sub"), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(tmp, "sub", "f"), []byte("x"), 0o644)
	}
	failing := func(tmp string) error { return errors.Join(fill(tmp), errFull) }
	if err := WriteDir(path, failing); !errors.Is(err, errFull) {
		t.Errorf("got %v, want %v", err, errFull)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	if err := WriteDir(path, fill); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(path, "sub", "f")); got != "x" {
		t.Errorf("got %q", got)
	}
	if got := names(t, path); !slices.Equal(got, []string{"sub"}) {
		t.Errorf("holds %v", got)
	}
	if err := WriteDir(path, fill); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing folder: %v", err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"checkpoint-10"}) {
		t.Errorf("left behind: %v", got)
	}
}
