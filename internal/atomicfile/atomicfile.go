// Package atomicfile writes files and folders so that a reader, or the machine
// after a loss of power, finds the old content or the new, never a part: all is
// written beside the target, flushed to the disk, renamed, and the rename flushed.
// A failed write removes what it wrote and leaves the target as it was. A failed
// flush is never tried again, as the system may have dropped the data. One process
// at a time may write a target.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// TempPath returns where the content of path is written before it is renamed. What
// a process that was killed has left there is replaced by the next write of path.
func TempPath(path string) string {
	return filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
}

// WriteFile replaces the file at path by what write writes, with the permissions
// 0o644 less the umask. The errors of write are returned as they are.
func WriteFile(path string, write func(io.Writer) error) error {
	return replace(path, func(tmp string) error {
		f, err := create(tmp)
		if err != nil {
			return err
		}
		buffered := bufio.NewWriterSize(f, 1<<20)
		if err := write(buffered); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := buffered.Flush(); err != nil {
			return errors.Join(err, f.Close())
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// WriteBytes is WriteFile of data.
func WriteBytes(path string, data []byte) error {
	return WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteDir makes the folder at path, which must not exist, with what fill puts into
// the folder it is given. The errors of fill are returned as they are.
func WriteDir(path string, fill func(dir string) error) error {
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create folder", Path: path, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return replace(path, func(tmp string) error {
		if err := mkdir(tmp); err != nil {
			return err
		}
		if err := fill(tmp); err != nil {
			return err
		}
		return syncTree(tmp)
	})
}

// Symlink makes the link at path lead to target.
func Symlink(target, path string) error {
	return replace(path, func(tmp string) error { return symlink(target, tmp) })
}

// RemoveDir removes the folder at path, which a reader finds whole or not at all.
func RemoveDir(path string) error {
	tmp := TempPath(path)
	if err := removeAll(tmp); err != nil {
		return err
	}
	if err := rename(path, tmp); err != nil {
		return err
	}
	return errors.Join(syncPath(filepath.Dir(path)), removeAll(tmp))
}

// replace puts what make makes at TempPath(path) at path.
func replace(path string, make func(tmp string) error) (err error) {
	tmp := TempPath(path)
	if err := removeAll(tmp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(tmp))
		}
	}()
	if err := make(tmp); err != nil {
		return err
	}
	if err := rename(tmp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

// syncTree flushes every file and folder below dir, and dir itself.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() || d.Type().IsRegular():
			return syncPath(path)
		}
		return fmt.Errorf("%s: neither a file nor a folder", path)
	})
}
