package tfevents

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"
	"time"

	"qlora/internal/tfevents/tfeventstest"
)

// golden is the events of testdata/golden.tfevents, which TensorBoard's own writer made.
var golden = []event{
	{wallTime: 1700000000.5, version: formatVersion},
	{wallTime: 1700000001.5, step: 1, scalars: []Scalar{{"train/loss", 3.25}, {"train/learning_rate", 1e-4}}},
	{wallTime: 1700000002.5, step: 300, scalars: []Scalar{{"train/loss", 0}, {"eval/loss", -1.5}, {"train/memory(GiB)", 1e30}}},
	{wallTime: 1700000003.5, step: 301, session: sessionStart},
}

func TestBytesAreTensorBoards(t *testing.T) {
	want, err := os.ReadFile("testdata/golden.tfevents")
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, e := range golden {
		got = appendRecord(got, e.append(nil))
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n% x\nwant\n% x", got, want)
	}
}

func TestFileIsReadBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	w, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1700000000, 250e6)
	w.now = func() time.Time { return now }
	for _, err := range []error{w.Scalars(1, []Scalar{{"a", 1}, {"b", 2}}), w.Scalars(2, nil), w.Scalars(5, []Scalar{{"a", 3}}), w.Purge(5), w.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Scalars(6, []Scalar{{"a", 1}}); err == nil {
		t.Error("a closed file takes scalars")
	}
	path := w.file.Name()
	if !regexp.MustCompile(`^events\.out\.tfevents\.\d{10}\..+\.\d+\.0$`).MatchString(filepath.Base(path)) {
		t.Errorf("the file is called %s", path)
	}
	got, err := tfeventstest.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got[0].Version != formatVersion {
		t.Fatalf("events %+v", got)
	}
	none := map[string]float32{}
	want := []tfeventstest.Event{
		{WallTime: 1700000000.25, Step: 1, Scalars: map[string]float32{"a": 1, "b": 2}},
		{WallTime: 1700000000.25, Step: 5, Scalars: map[string]float32{"a": 3}},
		{WallTime: 1700000000.25, Step: 5, Scalars: none, Start: true},
	}
	if !reflect.DeepEqual(got[1:], want) {
		t.Errorf("events %+v, want %+v", got[1:], want)
	}
}

// A folder's files are read in the order they were made, whatever process made them.
func TestNamesAscend(t *testing.T) {
	dir := t.TempDir()
	last := ""
	for i := range 3 {
		w, err := Create(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(w.file.Name()); name <= last {
			t.Errorf("file %d is called %s, after %s", i, name, last)
		} else {
			last = name
		}
	}
}
