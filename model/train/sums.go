package train

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"qlora/model/weights"
)

// sumsName is a checkpoint's list of its other files with their sha256, as sha256sum -c reads it.
const sumsName = "SHA256SUMS"

// maxSums bounds the size of SHA256SUMS.
const maxSums = 1 << 20

// writeSums lists the files of a checkpoint.
func writeSums(dir string) error {
	folder, err := weights.OpenFolder(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var list bytes.Buffer
	for _, e := range entries {
		sum, err := sumOf(folder, e.Name())
		if err != nil {
			return err
		}
		fmt.Fprintf(&list, "%s  %s\n", sum, e.Name())
	}
	return writeFile(dir, sumsName, list.Bytes())
}

// checkSums holds files of a checkpoint to its list: not a bit may have changed since it was saved.
func checkSums(folder *weights.Folder, names ...string) error {
	list, err := folder.ReadFile(sumsName, maxSums)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--resume_from_checkpoint: not a checkpoint to go on from: %w", err)
	} else if err != nil {
		return err
	}
	for _, name := range names {
		sum, err := sumOf(folder, name)
		if err != nil {
			return err
		}
		if !hasLine(list, sum+"  "+name+"\n") {
			return fmt.Errorf("%s is not the file that %s lists: it has changed since it was saved; go on from another checkpoint", folder.Path(name), sumsName)
		}
	}
	return nil
}

// hasLine reports whether a line, with its end, is one of text.
func hasLine(text []byte, line string) bool {
	for one := range bytes.Lines(text) {
		if string(one) == line {
			return true
		}
	}
	return false
}

func sumOf(folder *weights.Folder, name string) (string, error) {
	f, err := folder.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", fmt.Errorf("%s: %w", folder.Path(name), err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
