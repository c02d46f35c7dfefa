package result

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/perf/benchfmt"
)

// whole is a file that lacks nothing.
func whole() *File {
	times := Samples{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	return &File{Schema: Schema, Kind: Kernels, Time: time.Date(2026, 11, 27, 3, 4, 5, 0, time.UTC),
		Environment: Environment{Backend: "cuda", Kernels: "sm_80 sm_90a",
			Card: &Card{Name: "NVIDIA H200", ID: "0123", Driver: "580.1", Memory: 150 << 30, PowerLimit: 700, SMClockMax: 1980, MemClockMax: 3201},
			Host: Host{CPU: "AMD EPYC", Cores: 16, Threads: 16, Memory: 128 << 30, System: "Linux 6.1 x86_64"}, Program: Program{Commit: "0123abc", Go: "go1.26", Args: []string{"kernels"}}},
		Watch: Watch{Readings: 3, SMClock: Range{1500, 1600, 1700}},
		Roofs: []Roof{{Name: CopyRoof, Unit: "B/s", Row: Row{Name: CopyRoof, Seconds: Samples{0.5, 0.5}, Bytes: 1e12}}},
		Rows: []Row{
			{Name: "Linear/7B T2048", Params: map[string]string{"cache": "cold", "variant": "auto"}, Seconds: times, MHz: slices.Clone(times), FLOPs: 1e9, Bytes: 1e6, Proof: &Proof{Cases: 3}},
			{Name: "step", Params: map[string]string{"model": "qwen2.5-7b"}, Seconds: times, Tokens: 2048, Joules: 5, Proof: &Proof{},
				Ops: []Op{{Name: "Linear", Phase: "forward", Calls: 2, Seconds: 0.5}}, Memory: []Memory{{MemoryArena, 1 << 30, 1 << 30}}},
		}}
}

func TestRoundTrip(t *testing.T) {
	var text bytes.Buffer
	if err := whole().Encode(&text); err != nil {
		t.Fatal(err)
	}
	back, err := Parse(text.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(whole(), back); d != "" {
		t.Error(d)
	}
	if lacks := back.Incomplete(); len(lacks) > 0 {
		t.Errorf("a whole file lacks %q", lacks)
	}
	if roof, ok := back.Find(CopyRoof); !ok || roof.Rate() != 2e12 {
		t.Errorf("roof %v %v", roof, ok)
	}
}

func TestIncomplete(t *testing.T) {
	for _, c := range []struct {
		spoil func(*File)
		want  string
	}{
		{func(f *File) { f.Environment.Card.ID = "" }, "id"},
		{func(f *File) { f.Environment.Card = nil }, "the card"},
		{func(f *File) { f.Environment.Card.PowerLimit = 0 }, "power limit"},
		{func(f *File) { f.Environment.Program.Dirty = true }, "as it is"},
		{func(f *File) { f.Environment.Program.Commit = "unknown" }, "commit"},
		{func(f *File) { f.Watch.Readings = 0 }, "readings"},
		{func(f *File) { f.Watch.Others = []string{"python3, 4 GiB"} }, "other processes"},
		{func(f *File) { f.Rows[0].Seconds = f.Rows[0].Seconds[:9] }, "10 samples of Linear"},
		{func(f *File) { f.Rows[0].Proof = nil }, "proof"},
		{func(f *File) { f.Rows = nil }, "rows"},
		{func(f *File) { f.Schema = 1 }, "kind"},
	} {
		f := whole()
		c.spoil(f)
		if lacks := strings.Join(f.Incomplete(), "; "); !strings.Contains(lacks, c.want) {
			t.Errorf("lacks %q, want %q", lacks, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{"stage": "timings"}`: ErrOther.Error(),
		`{"schema": 3}`:        "newer than this program",
		`{"schema": 1}`:        "no documents of schema 1",
		`{"schema": 2, "rows": [{"name": "a", "seconds": [1]}, {"name": "a", "seconds": [1]}]}`: `two rows "a"`,
		`{"schema": 2, "rows": [{"name": "a"}]}`:                                                `row "a": it has neither`,
		`{"schema": 2, "rows": [{"seconds": [1]}]}`:                                             "no name",
		`{"schema": 2, "rows": [{"name": "a", "seconds": [0]}]}`:                                "sample 0 is 0 seconds",
		`{"schema": 2, "rows": [{"name": "a", "seconds": [1, -1]}]}`:                            "sample 1",
		`{"schema": 2, "rows": [{"name": "a", "seconds": [1], "mhz": [1, 2]}]}`:                 "1 samples and 2 clocks",
		`{"schema": 2, "rows": [{"name": "a", "seconds": [1], "flops": -1}]}`:                   "its work",
		`{"schema": 2, "schema": 2}`:                                                            "twice",
		`{"schema": 2`:                                                                          "byte",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestSchema1 migrates what programs wrote before the harness.
func TestSchema1(t *testing.T) {
	all, err := Walk("testdata/results")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 {
		t.Fatalf("%d files", len(all))
	}
	for _, f := range all {
		if f.Schema != 1 || f.Environment.Card.Name != "NVIDIA H100 80GB HBM3" || f.Environment.Slug() != "nvidia-h100-80gb-hbm3" ||
			f.Environment.Program.Commit != "first" || !f.Time.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("%s: %+v %v", f.Path, f.Environment.Program, f.Time)
		}
		if len(f.Incomplete()) == 0 {
			t.Errorf("%s passes for complete", f.Path)
		}
	}
	kernels, step := all[0], all[1]
	if kernels.Kind != Kernels || step.Kind != Step {
		t.Fatalf("%s, %s", kernels.Kind, step.Kind)
	}
	var keys []string
	for _, r := range kernels.Rows {
		keys = append(keys, r.Key())
	}
	if want := "linear K=3584 M=2048 N=3584 R=8 back=0 kernel=sm90 fused name=o state=alone"; !slices.Contains(keys, want) {
		t.Errorf("no %q in %q", want, keys)
	}
	r := kernels.Rows[slices.Index(keys, "linear K=3584 M=2048 N=3584 R=0 back=0 kernel=sm90 name=o state=alone")]
	// 2·2048·3584·3584 FLOPs; the line has 749.5 TFLOP/s at 70.2 us, and 82.3 us and 1436 MHz alone.
	if d := r.FLOPs/(2*2048*3584*3584) - 1; d < -1e-3 || d > 1e-3 || r.Seconds[0] != 82.3e-6 || r.MHz[0] != 1436 {
		t.Errorf("%+v", r)
	}
	s := step.Rows[0]
	if s.Key() != "step model=qwen2.5-7b run=7b" || len(s.Seconds) != 3 || s.Seconds[0] != 0.118102776 || s.Tokens != 2048 || s.Labels != 2047 ||
		s.Memory[0].Planned != 22263187968 {
		t.Errorf("%+v", s)
	}
}

// TestHistory reads all that is committed.
func TestHistory(t *testing.T) {
	all, err := Walk("../../results")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Errorf("%d files below results", len(all))
	}
	for _, f := range all {
		if f.Environment.Device() == "" || f.Time.IsZero() || len(f.Rows) == 0 {
			t.Errorf("%s: of %q at %v, %d rows", f.Path, f.Environment.Device(), f.Time, len(f.Rows))
		}
	}
}

// TestAdd: files are added, and none is changed.
func TestAdd(t *testing.T) {
	root := t.TempDir()
	var paths []string
	for i := range 3 {
		f := whole()
		f.Notes = []string{fmt.Sprint(i)}
		path, err := f.Add(root)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	dir := filepath.Join(root, "nvidia-h200", "20261127-0123abc")
	if want := []string{filepath.Join(dir, "kernels.json"), filepath.Join(dir, "kernels-2.json"), filepath.Join(dir, "kernels-3.json")}; !slices.Equal(paths, want) {
		t.Errorf("%q", paths)
	}
	for i, path := range paths {
		f, err := Read(path)
		if err != nil || f.Notes[0] != fmt.Sprint(i) || f.Path != path {
			t.Errorf("%s: %v, %v", path, f, err)
		}
	}
	dirty := whole()
	dirty.Environment.Program.Dirty = true
	dirty.Environment.Card = nil
	if got := dirty.Folder("r"); got != "r/amd-epyc-16-threads/20261127-0123abc-dirty" {
		t.Error(got)
	}
	if err := os.WriteFile(filepath.Join(dir, "machine.json"), []byte(`{"can_train": true}`), 0o666); err != nil {
		t.Fatal(err)
	}
	all, err := ReadAll([]string{paths[0], root})
	if err != nil || len(all) != 4 {
		t.Errorf("%d files, %v", len(all), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.json"), []byte(`{"schema": 2, "rows": [{}]}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Walk(root); err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("a broken file: %v", err)
	}
	if _, err := Read(filepath.Join(root, "none.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestGoBench reads the Go format back with Go's own package.
func TestGoBench(t *testing.T) {
	var text bytes.Buffer
	if err := WriteGoBench(&text, []*File{whole()}); err != nil {
		t.Fatal(err)
	}
	names := map[string]int{}
	for r := benchfmt.NewReader(&text, "test"); r.Scan(); {
		switch rec := r.Result().(type) {
		case *benchfmt.Result:
			names[rec.Name.String()]++
			if v, ok := rec.Value("sec/op"); !ok || v < 1 || v > 10 {
				t.Errorf("%s: %v sec/op", rec.Name, v)
			}
			if rec.GetConfig("device") != "NVIDIA H200" || rec.GetConfig("commit") != "0123abc" {
				t.Errorf("%s: device %q", rec.Name, rec.GetConfig("device"))
			}
		case *benchfmt.SyntaxError:
			t.Error(rec)
		}
	}
	for _, want := range []string{"Linear/7B_T2048/cache=cold/variant=auto", "Step/model=qwen2.5-7b"} {
		if names[want] != 10 {
			t.Errorf("%d lines of %s in %v", names[want], want, names)
		}
	}
}

func FuzzParse(f *testing.F) {
	var text bytes.Buffer
	if err := whole().Encode(&text); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add([]byte(`{"schema": 2, "rows": [{"name": "a", "seconds": [1e-5], "yardstick": {"library": "x", "seconds": [1]}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse(text)
		if err != nil {
			return
		}
		for _, r := range file.Rows { // what a reader does
			if len(r.Seconds) > 0 {
				r.Summary()
			}
		}
		file.Incomplete()
		if err := WriteGoBench(&bytes.Buffer{}, []*File{file}); err != nil {
			t.Fatal(err)
		}
	})
}
