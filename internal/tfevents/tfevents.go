// Package tfevents writes the event files that TensorBoard reads: scalars by tag and step.
//
// A file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h), each an Event message
// (tensorflow/core/util/event.proto), the first of which gives the version of the format. Messages
// are encoded by hand, field by field in ascending order as protocol buffers' own writers do: three
// small ones are not worth a runtime and generated code.
//
// Checked with TensorBoard 2.21: testdata/golden.tfevents are the bytes that its record writer and
// its messages give for the same events, and its EventAccumulator reads the files of a run, resumed
// ones included.
package tfevents

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"qlora/internal/atomicfile"
)

// Scalar is one value of a tag. The format holds it as a float32.
type Scalar struct {
	Tag   string
	Value float64
}

// Writer appends events to one file. Events are in the file when a method returns.
type Writer struct {
	file atomicfile.File
	now  func() time.Time
}

// Create makes dir, if it is not there, and in it a new event file, by the name that TensorBoard
// looks for: events.out.tfevents.SECONDS.HOST.PID.0.
//
// Readers take the files of a folder in the order of their names. So SECONDS is the present, but at
// least one more than that of the newest file there.
func Create(dir string) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	newest, err := newestStamp(dir)
	if err != nil {
		return nil, err
	}
	stamp := max(time.Now().Unix(), newest+1)
	path := filepath.Join(dir, fmt.Sprintf("events.out.tfevents.%010d.%s.%d.0", stamp, host, os.Getpid()))
	file, err := atomicfile.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, err
	}
	w := &Writer{file, time.Now}
	if err := w.write(event{version: formatVersion}); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return w, nil
}

var namePattern = regexp.MustCompile(`^events\.out\.tfevents\.(\d+)\.`)

// newestStamp returns the largest SECONDS of the event files of a folder, 0 where there are none.
func newestStamp(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	newest := int64(0)
	for _, e := range entries {
		if m := namePattern.FindStringSubmatch(e.Name()); m != nil {
			if n, err := strconv.ParseInt(m[1], 10, 64); err == nil {
				newest = max(newest, n)
			}
		}
	}
	return newest, nil
}

// Purge tells readers to forget the scalars from step on, of this file and of older ones in its
// folder: what follows was computed anew.
func (w *Writer) Purge(step int) error {
	return w.write(event{step: step, session: sessionStart})
}

// Scalars writes the values of a step.
func (w *Writer) Scalars(step int, values []Scalar) error {
	if len(values) == 0 {
		return nil
	}
	return w.write(event{step: step, scalars: values})
}

func (w *Writer) write(e event) error {
	e.wallTime = float64(w.now().UnixMicro()) / 1e6
	if _, err := w.file.Write(appendRecord(nil, e.append(nil))); err != nil {
		return fmt.Errorf("writing %s: %w", w.file.Name(), err)
	}
	return nil
}

// Close ends the file.
func (w *Writer) Close() error { return w.file.Close() }
