package result

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qlora/internal/atomicfile"
)

// Folder is the place of a file below root: <device>/<date>-<commit>.
func (f *File) Folder(root string) string {
	commit := cmp.Or(f.Environment.Program.Commit, "unknown")
	if f.Environment.Program.Dirty && !strings.HasSuffix(commit, "-dirty") {
		commit += "-dirty"
	}
	return filepath.Join(root, f.Environment.Slug(), f.Time.UTC().Format("20060102")+"-"+commit)
}

// Add writes the file to its folder below root as <kind>.json, and never over another: a second one becomes <kind>-2.json.
func (f *File) Add(root string) (path string, err error) {
	dir := f.Folder(root)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		name := string(f.Kind)
		if n > 1 {
			name = fmt.Sprintf("%s-%d", name, n)
		}
		path = filepath.Join(dir, name+".json")
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, f.WriteFile(path)
		} else if err != nil {
			return "", err
		}
	}
}

// WriteFile writes the document to path, whole or not at all.
func (f *File) WriteFile(path string) error {
	return atomicfile.WriteFile(path, func(w io.Writer) error { return f.Encode(w) })
}

// Walk reads all results below root, oldest first. Files that are none are passed over; one that is broken is an error.
func Walk(root string) ([]*File, error) {
	var all []*File
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ext := filepath.Ext(path)
		if !d.Type().IsRegular() || ext != ".json" && ext != ".jsonl" {
			return nil
		}
		f, err := Read(path)
		if isOther(err) {
			return nil
		}
		if err == nil {
			all = append(all, f)
		}
		return err
	})
	slices.SortStableFunc(all, func(a, b *File) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Path, b.Path)) })
	return all, err
}

// ReadAll reads what paths name: files, or folders with all below them.
func ReadAll(paths []string) ([]*File, error) {
	var all []*File
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, err
		case info.IsDir():
			below, err := Walk(path)
			if err != nil {
				return nil, err
			}
			all = append(all, below...)
		default:
			f, err := Read(path)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		}
	}
	return all, nil
}
