package atomicfile

import (
	"errors"
	"io/fs"
	"os"
)

// Intercept, where set, is asked before every call that changes a disk, and its error is the call's; a
// write then fails after half of its bytes. Only tests set it, to see what a disk that is full or failing
// does. op is remove, mkdir, create, symlink, write, sync, close or rename.
var Intercept func(op, path string) error

func intercepted(op, path string) error {
	if Intercept == nil {
		return nil
	}
	if err := Intercept(op, path); err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

func removeAll(path string) error {
	if err := intercepted("remove", path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func mkdir(path string) error {
	if err := intercepted("mkdir", path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o755)
}

func symlink(target, path string) error {
	if err := intercepted("symlink", path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

func rename(from, to string) error {
	if err := intercepted("rename", from); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// syncPath flushes one file or folder to the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(File{f}.Sync(), f.Close())
}

// create makes a file, which must not exist.
func create(path string) (File, error) {
	return OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
}

// OpenFile is os.OpenFile of what is written in place, and is a part while it grows: a log.
func OpenFile(path string, flag int, perm fs.FileMode) (File, error) {
	if err := intercepted("create", path); err != nil {
		return File{}, err
	}
	f, err := os.OpenFile(path, flag, perm)
	return File{f}, err
}

// File is a file being written.
type File struct{ *os.File }

func (f File) Write(p []byte) (int, error) {
	if err := intercepted("write", f.Name()); err != nil {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, err
	}
	return f.File.Write(p)
}

func (f File) Sync() error {
	if err := intercepted("sync", f.Name()); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f File) Close() error {
	return errors.Join(intercepted("close", f.Name()), f.File.Close())
}
