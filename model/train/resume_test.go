package train_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"qlora/internal/allocs"
	"qlora/model/lora"
	"qlora/model/train"
)

// checkpointAt4 is a checkpoint of the run of options, stopped after step 4.
func checkpointAt4(t *testing.T) string {
	t.Helper()
	return stopAfter(t, newRun(t, t.TempDir(), options()), "", 4)
}

// sum makes SHA256SUMS anew, as somebody would who means the change.
func sum(t *testing.T, checkpoint string) {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cd "$0" && rm SHA256SUMS && sha256sum -- * > SHA256SUMS`, checkpoint).CombinedOutput()
	if err != nil {
		t.Fatalf("sha256sum: %v: %s", err, out)
	}
}

// A checkpoint lists its files so that sha256sum agrees, and nothing else is in it.
func TestChecksums(t *testing.T) {
	dir := checkpointAt4(t)
	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = dir
	out, err := check.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out, []byte(": OK\n")); n != len(entries)-1 {
		t.Errorf("%d files of %d are listed:\n%s", n, len(entries)-1, out)
	}
}

// A checkpoint of which anything that resuming reads has changed is refused with the file's name; so is
// one that was changed and summed anew, where what it says cannot be.
func TestResumeRefusesDamage(t *testing.T) {
	edit := func(name, old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(text, []byte(old)) {
				t.Fatalf("no %s in %s", old, text)
			}
			if err := os.WriteFile(path, bytes.Replace(text, []byte(old), []byte(new), 1), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	summed := func(damage func(*testing.T, string)) func(*testing.T, string) {
		return func(t *testing.T, dir string) { damage(t, dir); sum(t, dir) }
	}
	position := func(old, new string) func(*testing.T, string) { return summed(edit("progress.json", old, new)) }
	flip := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text[len(text)-7] ^= 1
			if err := os.WriteFile(path, text, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, name), 300); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(name string, make func(path string) error) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.Remove(path), make(path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(*testing.T, string) {
		return replace(name, func(string) error { return nil })
	}
	original := checkpointAt4(t)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		err    string
	}{
		{"a bit of the adapter", flip(lora.WeightsFile), lora.WeightsFile + " is not the file that SHA256SUMS lists"},
		{"a bit of the moments", flip("optimizer.safetensors"), "optimizer.safetensors is not the file"},
		{"a figure of the position", edit("progress.json", `"last_loss": `, `"last_loss": 1`), "progress.json is not the file"},
		{"adapter_config.json", edit(lora.ConfigFile, `"r": 4`, `"r":  4`), "adapter_config.json is not the file"},
		{"adapter cut off", cut(lora.WeightsFile), "adapter_model.safetensors is not the file"},
		{"moments cut off", summed(cut("optimizer.safetensors")), "optimizer.safetensors: byte 0: the header length"},
		{"progress cut off", cut("progress.json"), "progress.json: byte 300: unexpected end"},
		{"no sums", remove("SHA256SUMS"), "SHA256SUMS: no such file"},
		{"no progress", remove("progress.json"), "not a checkpoint to go on from"},
		{"no moments", remove("optimizer.safetensors"), "optimizer.safetensors: no such file"},
		{"no adapter", remove(lora.WeightsFile), lora.WeightsFile + ": no such file"},
		{"progress a pipe", replace("progress.json", func(p string) error { return syscall.Mkfifo(p, 0o644) }), "progress.json: not a regular file"},
		{"progress a device", replace("progress.json", func(p string) error { return os.Symlink("/dev/zero", p) }), "links out of a model's folder"},
		{"adapter a pipe", replace(lora.WeightsFile, func(p string) error { return syscall.Mkfifo(p, 0o644) }), "not a regular file"},
		{"moments a chain of links out", replace("optimizer.safetensors", func(p string) error {
			return errors.Join(os.Symlink("b", p), os.Symlink("/etc/hostname", filepath.Join(filepath.Dir(p), "b")))
		}), "links out of a model's folder"},
		{"progress null", summed(replace("progress.json", func(p string) error { return os.WriteFile(p, []byte("null"), 0o666) })), "the document is null"},
		{"progress empty", summed(replace("progress.json", func(p string) error { return os.WriteFile(p, []byte("{}"), 0o666) })), "was unset"},
		{"key twice", position(`"step": 4`, `"step": 4, "step": 4`), `key "step" occurs twice`},
		{"step negative", position(`"step": 4`, `"step": -4`), "step -4 of a run of 20"},
		{"step 0", position(`"step": 4`, `"step": 0`), "step 0 of a run of 20"},
		{"step past the end", position(`"step": 4`, `"step": 21`), "step 21 of a run of 20"},
		{"step with a fraction", position(`"step": 4`, `"step": 4.5`), "step: a JSON number 4.5"},
		{"another step", position(`"step": 4`, `"step": 5`), "is not where step 5 ends"},
		{"cursor negative", position(`"index": 8`, `"index": -2`), "is not where step 4 ends"},
		{"cursor past the end", position(`"index": 8`, `"index": 19`), "is not where step 4 ends"},
		{"cursor between steps", position(`"index": 8`, `"index": 9`), "is not where step 4 ends"},
		{"epoch of 10^18", position(`"epoch": 0`, `"epoch": 1000000000000000000`), "is not where step 4 ends"},
		{"logged later", position(`"logged": 3`, `"logged": 5`), "steps_since_last_log is 1"},
		{"steps since", position(`"steps_since_last_log": 1`, `"steps_since_last_log": 0`), "steps_since_last_log is 0"},
		{"evaluated later", position(`"evaluated": 0`, `"evaluated": 5`), "evaluated 5"},
		{"labels negative", position(`"labels": `, `"labels": -1`), "a negative count"},
		{"history out of order", position("\"history\": [\n      {\n        \"step\": 1", "\"history\": [\n      {\n        \"step\": 4"), "history[1] is of step 3, between steps 4 and 4"},
		{"another dataset", position(`"dataset": "`, `"dataset": "x`), "the dataset was x"},
		{"moments of another adapter", summed(func(t *testing.T, dir string) {
			text, err := os.ReadFile(filepath.Join(dir, lora.WeightsFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "optimizer.safetensors"), text, 0o666); err != nil {
				t.Fatal(err)
			}
		}), `optimizer.safetensors: `},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "checkpoint-4")
			if err := os.CopyFS(dir, os.DirFS(original)); err != nil {
				t.Fatal(err)
			}
			c.damage(t, dir)
			_, err := newRun(t, filepath.Dir(dir), options()).Start(t.Context(), dir)
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want an error with %q", err, c.err)
			}
		})
	}
}

// What a process that was killed left of a checkpoint goes when the run goes on; what is not of that kind stays.
func TestUnfinishedCheckpointsAreRemoved(t *testing.T) {
	checkpoint := checkpointAt4(t)
	dir := filepath.Dir(checkpoint)
	for _, name := range []string{".tmp-checkpoint-5", ".tmp-checkpoint-3", ".tmp-mine"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "x"), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newRun(t, dir, options()).Start(t.Context(), checkpoint); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".tmp*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != ".tmp-mine" {
		t.Errorf("left %v, %v", left, err)
	}
}

// A disk that will not hold the checkpoints is foreseen: nothing is written, and the error is the system's
// for a full disk.
func TestFullDiskIsForeseen(t *testing.T) {
	dir := t.TempDir()
	o := options()
	o.MaxSteps, o.SaveSteps = 2_000_000_000_000, 1
	_, err := newRun(t, dir, o).Start(t.Context(), "")
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir+": 2000000000000 checkpoints of ") {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	o.SaveTotalLimit = 2
	stopAfter(t, newRun(t, dir, o), "", 1) // begins
}

// The estimate of a checkpoint's size is at least what it takes, and not much more.
func TestCheckpointSize(t *testing.T) {
	checkpoint := checkpointAt4(t)
	var sum int64
	entries, err := os.ReadDir(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	o := options()
	if got := train.CheckpointBytes(newRun(t, t.TempDir(), o)); got < sum || got > sum+sum/4+128<<10 {
		t.Errorf("about %d bytes, but it has %d", got, sum)
	}
}

func FuzzProgress(f *testing.F) {
	for _, seed := range []string{`{}`, `{"position":{"step":4,"cursor":{"epoch":0,"index":8},"logged":3,"steps_since_last_log":1},"settings":{"a":"b"}}`,
		`{"position":{"step":20,"cursor":{"epoch":2,"index":0},"logged":20,"history":[{"step":1,"loss":1},{"step":20,"eval_loss":2}]}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var at any
		var err error
		allocs.Bound(t, len(text), func() { at, err = train.ParseProgress(text) })
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Fatal("an error without words")
			}
			return
		}
		// What is accepted is written again as it was read.
		again, err := json.Marshal(at)
		if err != nil {
			t.Fatal(err)
		}
		second, err := train.ParseProgress(again)
		if err != nil {
			t.Fatalf("%s, written as %s: %v", text, again, err)
		}
		third, err := json.Marshal(second)
		if err != nil || !bytes.Equal(third, again) {
			t.Fatalf("%s, then %s, %v", again, third, err)
		}
	})
}
