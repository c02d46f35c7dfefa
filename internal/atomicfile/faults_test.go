package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// faults makes the disk fail from call first to call last, counted from 1, and lists all calls.
type faults struct {
	first, last int
	err         error
	calls       []string // "op path"
}

func (f *faults) intercept(op, path string) error {
	f.calls = append(f.calls, op+" "+path)
	if n := len(f.calls); n >= f.first && n <= f.last {
		return f.err
	}
	return nil
}

// during runs action on a disk with faults.
func (f *faults) during(t *testing.T, action func() error) error {
	t.Helper()
	if Intercept != nil {
		t.Fatal("faults within faults")
	}
	Intercept = f.intercept
	defer func() { Intercept = nil }()
	return action()
}

// tree is every file and folder below dir, by path, with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all[path] = "a folder"
		if d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			all[path] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// writeBig writes more than a buffer holds, so that there are several calls.
func writeBig(w io.Writer) error {
	for _, text := range []string{strings.Repeat("a", 1<<20), "b"} {
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

// actions are all that this package does, on a folder that holds a.json and old.
var actions = []struct {
	name string
	do   func(dir string) error
}{
	{"file", func(dir string) error { return WriteFile(filepath.Join(dir, "a.json"), writeBig) }},
	{"folder", func(dir string) error {
		return WriteDir(filepath.Join(dir, "new"), func(tmp string) error {
			if err := WriteFile(filepath.Join(tmp, "big"), writeBig); err != nil {
				return err
			}
			if err := mkdir(filepath.Join(tmp, "sub")); err != nil {
				return err
			}
			return WriteBytes(filepath.Join(tmp, "sub", "small"), []byte("x"))
		})
	}},
	{"removal", func(dir string) error { return RemoveDir(filepath.Join(dir, "old")) }},
	{"link", func(dir string) error { return Symlink("old", filepath.Join(dir, "link")) }},
}

// folder makes what the actions are done on, in memory where there is such a file system: a thousand
// flushes to a disk take long.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "atomicfile-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "a.json"), []byte("before"), 0o644),
		os.Mkdir(filepath.Join(dir, "old"), 0o755), os.WriteFile(filepath.Join(dir, "old", "f"), []byte("f"), 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// under gives tree with paths from dir on.
func under(t *testing.T, dir string) map[string]string {
	all := map[string]string{}
	for path, text := range tree(t, dir) {
		all[strings.TrimPrefix(path, dir)] = text
	}
	return all
}

// Every call fails in turn, with every error, until the action passes untouched; once alone, and once
// with all calls after it, as on a disk that died. What was there stays, or all of the new is there; what
// is left behind after the one is nothing, and after the other goes with the next attempt. A flush that
// failed is not tried again.
func TestEveryCallFails(t *testing.T) {
	for _, a := range actions {
		clean := folder(t)
		before := under(t, clean)
		if err := a.do(clean); err != nil {
			t.Fatal(err)
		}
		after := under(t, clean)
		for _, fault := range []error{syscall.ENOSPC, syscall.EIO, syscall.EDQUOT, syscall.EROFS} {
			for _, dead := range []bool{false, true} {
				passed := false
				for n := 1; !passed; n++ {
					name := fmt.Sprintf("%s, call %d: %v, dead %v", a.name, n, fault, dead)
					f := &faults{first: n, last: n, err: fault}
					if dead {
						f.last = 1 << 30
					}
					dir := folder(t)
					err := f.during(t, func() error { return a.do(dir) })
					if passed = len(f.calls) < n; passed {
						if err != nil || n < 5 {
							t.Errorf("%s: %v", name, err)
						}
						break
					}
					failed := f.calls[n-1]
					if !errors.Is(err, fault) || !strings.Contains(err.Error(), strings.Fields(failed)[1]) {
						t.Errorf("%s (%s): %v", name, failed, err)
					}
					if op, _, _ := strings.Cut(failed, " "); op == "sync" && slices.Contains(f.calls[n:], failed) {
						t.Errorf("%s: %s was tried again", name, failed)
					}
					checkWhole(t, name+", "+failed, under(t, dir), before, after, dead || strings.HasPrefix(failed, "remove "))
					err = a.do(dir)
					if got := under(t, dir); !maps.Equal(got, after) {
						t.Errorf("%s (%s): a second attempt gives %v and leaves %v", name, failed, err, slices.Sorted(maps.Keys(got)))
					}
				}
			}
		}
	}
}

// checkWhole holds that a folder has the state before or after, and beside it temporary things at most.
func checkWhole(t *testing.T, name string, got, before, after map[string]string, mayLeave bool) {
	t.Helper()
	for path := range got {
		if strings.HasPrefix(path, "/.tmp-") {
			if !mayLeave {
				t.Errorf("%s: left %s", name, path)
			}
			delete(got, path)
		}
	}
	if !maps.Equal(got, before) && !maps.Equal(got, after) {
		t.Errorf("%s: neither the old state nor the new: %v", name, slices.Sorted(maps.Keys(got)))
	}
}

// A rename comes after the flush of all that it shows, and is flushed itself.
func TestOrderOfCalls(t *testing.T) {
	for _, a := range actions {
		dir := folder(t)
		f := &faults{}
		if err := f.during(t, func() error { return a.do(dir) }); err != nil {
			t.Fatal(err)
		}
		if why := unsafeOrder(f.calls, dir); why != "" {
			t.Errorf("%s: %s in\n%s", a.name, why, strings.Join(f.calls, "\n"))
		}
		for _, c := range f.calls { // without the flush of any one file or folder, whatever its name then, it is not safe
			final := func(call string) string { return strings.Replace(call, "/.tmp-", "/", 2) }
			without := slices.DeleteFunc(slices.Clone(f.calls), func(other string) bool { return final(other) == final(c) })
			if strings.HasPrefix(c, "sync ") && unsafeOrder(without, dir) == "" {
				t.Errorf("%s: the test does not miss %q", a.name, c)
			}
		}
	}
}

// unsafeOrder says what a loss of power could tear: "" for nothing.
func unsafeOrder(calls []string, top string) string {
	dirty := map[string]bool{} // files and folders changed and not flushed
	for _, c := range calls {
		op, path, _ := strings.Cut(c, " ")
		parent := filepath.Dir(path)
		switch op {
		case "mkdir", "create":
			dirty[path], dirty[parent] = true, true
		case "write":
			dirty[path] = true
		case "sync":
			delete(dirty, path)
		case "rename":
			for d := range dirty {
				if d == path || strings.HasPrefix(d, path+"/") {
					return fmt.Sprintf("%s is renamed before %s is flushed", path, d)
				}
			}
			dirty[parent] = true
		case "remove":
			// What RemoveDir renamed must be gone from its old name before it loses files.
			if dirty[parent] && slices.Contains(calls, "rename "+strings.Replace(path, ".tmp-", "", 1)) {
				return fmt.Sprintf("%s is removed before the rename is flushed", path)
			}
		}
	}
	if dirty[top] {
		return "the last rename is not flushed"
	}
	return ""
}
