// Package atomicfile writes files and folders so that a reader, or the machine
// after a loss of power, finds the old content or the new, never a part: all is
// written beside the target, flushed to the disk, renamed, and the rename flushed.
// A failed write removes what it wrote and leaves the target as it was. A failed
// flush is never tried again, as the system may have dropped the data.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// WriteFile replaces the file at path by what write writes, with the permissions
// 0o644 less the umask. The errors of write are returned as they are.
func WriteFile(path string, write func(io.Writer) error) (err error) {
	// A fixed place for the temporary file: renameio would try $TMPDIR first.
	pending, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644))
	if err != nil {
		return err
	}
	defer func() {
		if cleanupErr := pending.Cleanup(); cleanupErr != nil && err == nil {
			err = cleanupErr
		}
	}()
	buffered := bufio.NewWriterSize(pending, 1<<20)
	if err := write(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if err := pending.CloseAtomicallyReplace(); err != nil { // flushes the file
		return err
	}
	return syncPath(filepath.Dir(path))
}

// WriteBytes is WriteFile of data.
func WriteBytes(path string, data []byte) error {
	return WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteDir makes the folder at path, which must not exist, with what fill puts
// into the folder it is given. That one lies beside path under the name .tmp-BASE;
// one left by a process that was killed is removed first. The errors of fill are
// returned as they are.
func WriteDir(path string, fill func(dir string) error) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create folder", Path: path, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp := TempDir(path)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := fill(tmp); err != nil {
		return err
	}
	if err := syncTree(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

// TempDir returns where WriteDir builds the folder for path.
func TempDir(path string) string {
	return filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
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

// syncPath flushes one file or folder to the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
