package atomicfile

import (
	"os"

	"golang.org/x/sys/unix"
)

// Free returns how many bytes a process without privileges can still write to the file system of path,
// which must exist.
func Free(path string) (int64, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(path, &disk); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(disk.Bavail) * int64(disk.Bsize), nil
}
