package data

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
)

// SelfCognition names the dataset that is part of the program: eight questions about who
// the model is, and the answers of a model that has been told.
const SelfCognition = "builtin:self-cognition"

//go:embed self_cognition.json
var selfCognition []byte

// Rows streams the rows of a dataset: the path of a .json or .jsonl file, or SelfCognition.
// A *RowError stands for a row that cannot be used, and the rows after it follow; any other
// error, a *FileError, is the last of the sequence.
func Rows(dataset string) iter.Seq2[Example, error] {
	return func(yield func(Example, error) bool) {
		file, err := open(dataset)
		if err != nil {
			yield(Example{}, &FileError{dataset, 0, err})
			return
		}
		defer file.Close()
		for rec, err := range records(file, dataset, maxRowBytes) {
			ex := Example{File: dataset, Row: rec.row}
			if err == nil {
				err = rec.example(&ex)
			}
			if !yield(ex, err) {
				return
			}
		}
	}
}

// example reads a record by its columns. The error is a *RowError.
func (r record) example(ex *Example) error {
	cols, err := newColumns(r.members)
	if err == nil {
		err = cols.example(ex)
	}
	if err != nil {
		return &RowError{ex.File, ex.Row, err.Error()}
	}
	return nil
}

// open finds a dataset.
func open(dataset string) (io.ReadCloser, error) {
	if dataset == SelfCognition {
		return io.NopCloser(bytes.NewReader(selfCognition)), nil
	}
	if strings.HasPrefix(dataset, "builtin:") {
		return nil, fmt.Errorf("no such dataset: there is only %s", SelfCognition)
	}
	info, err := os.Stat(dataset)
	switch {
	case errors.Is(err, os.ErrNotExist) && strings.Contains(dataset, "#"):
		return nil, errors.New("no such file; sampling a dataset with #N is not supported")
	case errors.Is(err, os.ErrNotExist):
		return nil, errors.New("no such file; datasets are not fetched from a hub: give the path of a .json or .jsonl file")
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a file: give the path of a .json or .jsonl file")
	}
	switch ext := strings.ToLower(filepath.Ext(dataset)); ext {
	case ".json", ".jsonl":
		return os.Open(dataset)
	default:
		return nil, fmt.Errorf("files of type %q are not supported: convert it to .jsonl, one JSON object a line", ext)
	}
}
