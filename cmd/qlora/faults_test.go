package main

import (
	"bytes"
	stdflag "flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"qlora/internal/atomicfile"
)

var everyResume = stdflag.Bool("every_resume", false, "TestEveryWriteFails goes on after every call that failed, not one of five and all renames and removals")

// saysRoom matches a failed save that tells what it needs and what there is.
var saysRoom = regexp.MustCompile(`saving \S+/checkpoint-\d, which takes \d+ kB \([\d.]+ [kMG]B are free\): `)

// scratch is a folder in memory where there is such a file system: ten thousand flushes to a disk take long.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "qlora-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestEveryWriteFails trains while the N-th call that writes fails, for N = 1, 2, 3... until a run passes untouched.
// Each of these runs ends with status 4 and says where and how much room it wanted; the checkpoints before are whole and
// the uninterrupted run's, nothing half written is left, and the run goes on from there to the same end.
func TestEveryWriteFails(t *testing.T) {
	faults := []error{syscall.ENOSPC, syscall.EIO, syscall.EDQUOT, syscall.EROFS}
	c := newCrashRun(t)
	args := append(slices.Clone(c.args), "--max_steps", "2", "--save_total_limit", "1", "--eval_strategy", "no")
	out := slices.Index(args, "--output_dir") + 1
	if *everyResume { // event files and images too, each of which is drawn again in every run
		args[slices.Index(args, "--report_to")+1] = "tensorboard"
	}
	train := func(dir string, more ...string) (code int, stderr string) {
		var log bytes.Buffer
		args := append(slices.Clone(args), more...)
		args[out] = filepath.Join(dir, "out")
		return run(args, &env{ctx: t.Context(), in: strings.NewReader(""), out: io.Discard, err: &log}), log.String()
	}
	whole := scratch(t)
	if code, stderr := train(whole); code != exitDone {
		t.Fatalf("%d: %s", code, stderr)
	}
	c.checkpoints = c.read(t, whole)
	if len(c.checkpoints) != 1 || c.checkpoints[2] == nil {
		t.Fatal("save_total_limit 1 kept another than checkpoint-2")
	}
	seen := map[string]int{}
	for n := 1; ; n++ {
		dir := scratch(t)
		calls, failed := 0, ""
		atomicfile.Intercept = func(op, path string) error {
			if calls++; calls != n {
				return nil
			}
			failed = op + " " + path
			return faults[n%len(faults)]
		}
		code, stderr := train(dir)
		atomicfile.Intercept = nil
		if calls < n {
			if code != exitDone || n < 50 {
				t.Errorf("untouched after %d calls: %d, %s", calls, code, stderr)
			}
			break
		}
		op, path, _ := strings.Cut(failed, " ")
		seen[op]++
		if code != exitStorage || !strings.Contains(stderr, path) {
			t.Errorf("call %d, %s: status %d\n%s", n, failed, code, stderr)
		}
		if strings.Contains(path, ".tmp-checkpoint-") && op != "remove" && !strings.Contains(path, "-1") && !saysRoom.MatchString(stderr) {
			t.Errorf("call %d, %s: does not say how much room a checkpoint needs\n%s", n, failed, stderr)
		}
		left, err := filepath.Glob(filepath.Join(dir, "out", ".tmp-*"))
		if err != nil || len(left) > 0 && op != "remove" && op != "sync" {
			t.Errorf("call %d, %s: left %v, %v", n, failed, left, err)
		}
		newest := c.check(t, failed, dir)
		if *everyResume || n%5 == 0 || op == "rename" || op == "remove" {
			var more []string
			if newest > 0 {
				more = []string{"--resume_from_checkpoint", filepath.Join(dir, "out")}
			}
			if code, stderr := train(dir, more...); code != exitDone {
				t.Errorf("after call %d, %s: %d, %s", n, failed, code, stderr)
			}
			if got := c.read(t, dir); !reflect.DeepEqual(got, c.checkpoints) {
				t.Errorf("after call %d, %s: the run that goes on ends elsewhere", n, failed)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("calls that failed: %v", seen)
	keep(t, map[string]any{"calls that failed, one a run": seen, "went on after every one": *everyResume})
	for _, op := range []string{"remove", "mkdir", "create", "write", "sync", "close", "rename"} {
		if seen[op] == 0 {
			t.Errorf("no %s failed", op)
		}
	}
}
