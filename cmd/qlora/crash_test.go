package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	stdflag "flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"qlora/model/train"
)

var (
	kills      = stdflag.Int("kills", 12, "how often TestKilledAnywhere kills a run")
	killSeed   = stdflag.Uint64("kill_seed", 1, "of the moments at which TestKilledAnywhere kills")
	resultsDir = stdflag.String("results", "", "folder to keep a file of what the crash tests did in")
)

// keep adds what a test that passed did to the file of today and of this commit, where -results asks for one.
func keep(t *testing.T, figures map[string]any) {
	t.Helper()
	if *resultsDir == "" || t.Failed() {
		return
	}
	commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	path := filepath.Join(*resultsDir, now.Format("20060102")+"-"+strings.TrimSpace(string(commit))+".json")
	all := map[string]any{}
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
	}
	all["commit"], all["go"], all["platform"], all["ended"] = strings.TrimSpace(string(commit)), runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH, now.Format(time.RFC3339)
	all[t.Name()] = figures
	text, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = errors.Join(os.MkdirAll(*resultsDir, 0o777), os.WriteFile(path, append(text, '\n'), 0o666))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// crashRun is a short training run that writes as much as it can: a checkpoint and a line of the log a
// step, an evaluation every third, of which save_total_limit keeps some.
type crashRun struct {
	args []string
	dir  string        // where the reference was run
	took time.Duration // by the reference
	// checkpoints of the reference, by step: file name to content.
	checkpoints map[int]map[string]string
	log         []string // of the reference, without what differs from run to run
}

func newCrashRun(t *testing.T) *crashRun {
	t.Helper()
	data := filepath.Join(t.TempDir(), "train.jsonl")
	write(t, data, trainingData)
	c := &crashRun{dir: t.TempDir(), args: []string{"sft", "--model", miniModel(t), "--dataset", data, "--val_dataset", data,
		"--num_train_epochs", "3", "--gradient_accumulation_steps", "1", "--save_steps", "1", "--eval_steps", "3", "--logging_steps", "1",
		"--add_version", "false", "--lora_dropout", "0.1", "--neftune_noise_alpha", "5", "--output_dir", "out", "--report_to", "none"}}
	began := time.Now()
	ok(t, c.dir, "", c.args...)
	c.took = time.Since(began)
	c.checkpoints = c.read(t, c.dir)
	c.log = untimedLog(t, c.dir)
	if len(c.checkpoints) != 9 {
		t.Fatalf("the reference has %d checkpoints, not 9", len(c.checkpoints))
	}
	return c
}

// variant is the command, by turns with what more it can write and remove.
func (c *crashRun) variant(rng *rand.Rand) []string {
	args := slices.Clone(c.args)
	if rng.IntN(2) == 0 {
		args = append(args, "--save_total_limit", "2")
	}
	if rng.IntN(4) == 0 {
		args[len(c.args)-1] = "tensorboard"
	}
	return args
}

// perRun are a checkpoint's files that tell by which command it was made.
var perRun = []string{train.ArgsName, "SHA256SUMS"}

// read reads the checkpoints below dir, and holds each to its own checksums.
func (c *crashRun) read(t *testing.T, dir string) map[int]map[string]string {
	t.Helper()
	steps, err := train.Checkpoints(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]map[string]string{}
	for _, step := range steps {
		checkpoint := filepath.Join(dir, "out", fmt.Sprintf("checkpoint-%d", step))
		files := map[string]string{}
		var sums bytes.Buffer
		entries, err := os.ReadDir(checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			files[e.Name()] = read(t, filepath.Join(checkpoint, e.Name()))
			if e.Name() != "SHA256SUMS" {
				fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256([]byte(files[e.Name()])), e.Name())
			}
		}
		if files["SHA256SUMS"] != sums.String() {
			t.Errorf("%s: SHA256SUMS is not that of its files:\n%s\n%s", checkpoint, files["SHA256SUMS"], &sums)
		}
		for _, name := range perRun {
			delete(files, name)
		}
		all[step] = files
	}
	return all
}

// check holds every checkpoint below dir to the reference's of that step, and returns the newest: 0 for none.
func (c *crashRun) check(t *testing.T, what, dir string) int {
	t.Helper()
	newest := 0
	for step, files := range c.read(t, dir) {
		newest = max(newest, step)
		for name, want := range c.checkpoints[step] {
			switch {
			case files[name] == want:
			case name == "trainer_state.json": // names the best checkpoint there is, which a limit may have removed
			case name == "progress.json" && step%3 == 0 && !strings.Contains(files[name], fmt.Sprintf(`"evaluated": %d`, step)):
				// A signal has cut the evaluation short: who goes on from here begins with it.
			default:
				t.Errorf("%s: checkpoint-%d/%s is not the uninterrupted run's", what, step, name)
			}
		}
	}
	return newest
}

// finish runs what is left after an interruption, and holds it to the reference.
func (c *crashRun) finish(t *testing.T, what, dir string, args []string) {
	t.Helper()
	ok(t, dir, "", args...)
	if newest := c.check(t, what, dir); newest != 9 {
		t.Errorf("%s: ended with checkpoint-%d, not 9", what, newest)
	}
	if got := untimedLog(t, dir); !slices.Equal(got, c.log) {
		t.Errorf("%s: the log is\n%s\nnot\n%s", what, strings.Join(got, "\n"), strings.Join(c.log, "\n"))
	}
	if left, err := filepath.Glob(filepath.Join(dir, "out", ".tmp-checkpoint-*")); err != nil || len(left) > 0 {
		t.Errorf("%s: left %v, %v", what, left, err)
	}
}

// resuming is the command that goes on from what is below dir.
func (c *crashRun) resuming(args []string, newest int) []string {
	if newest == 0 {
		return args
	}
	return append(slices.Clone(args), "--resume_from_checkpoint", "out")
}

// untimedLog is the lines of logging.jsonl, less what is about time.
func untimedLog(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(read(t, filepath.Join(dir, "out", train.LogName))) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		maps.DeleteFunc(fields, func(key string, _ any) bool {
			return strings.Contains(key, "time") || strings.Contains(key, "speed") || strings.HasSuffix(key, "_per_second") || strings.HasSuffix(key, "_seconds")
		})
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(text))
	}
	return lines
}

// begin starts the program below dir.
func begin(t *testing.T, dir string, args []string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &stderr
}

// wait waits for the program, and returns how it ended.
func wait(t *testing.T, cmd *exec.Cmd) syscall.WaitStatus {
	t.Helper()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// TestKilledAnywhere kills runs, and runs that go on from killed ones, at random microseconds. Whatever
// is left, every checkpoint is the uninterrupted run's of that step to the byte, and going on from the
// newest ends as if nothing had happened: adapter, optimizer, position and log.
func TestKilledAnywhere(t *testing.T) {
	c := newCrashRun(t)
	rng := rand.New(rand.NewPCG(*killSeed, 0))
	var killed, early, saving, removing, late, again, fresh int
	for killed < *kills {
		dir, args := t.TempDir(), c.variant(rng)
		fresh++
		newest := 0
		for {
			cmd, _ := begin(t, dir, c.resuming(args, newest))
			time.Sleep(time.Duration(rng.Int64N(int64(c.took))))
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			if !wait(t, cmd).Signaled() { // it was done
				newest = c.check(t, "not killed", dir)
				break
			}
			killed++
			what := fmt.Sprintf("kill %d", killed)
			left, err := filepath.Glob(filepath.Join(dir, "out", ".tmp-checkpoint-*"))
			if err != nil {
				t.Fatal(err)
			}
			switch newest = c.check(t, what, dir); {
			case len(left) > 0 && strings.HasSuffix(left[0], fmt.Sprintf("-%d", newest+1)):
				saving++
			case len(left) > 0:
				removing++
			case newest == 0:
				early++
			case newest == 9:
				late++
			}
			if rng.IntN(2) == 0 {
				break
			}
			again++
		}
		c.finish(t, fmt.Sprintf("after kill %d", killed), dir, c.resuming(args, newest))
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("seed %d", *killSeed)
		}
	}
	t.Logf("%d kills of %d runs, %d of them of runs that went on: %d while a checkpoint was written, %d while one was removed, %d before the first, %d after the last",
		killed, fresh, again, saving, removing, early, late)
	keep(t, map[string]any{"kills": killed, "runs": fresh, "of runs that went on": again, "while a checkpoint was written": saving,
		"while one was removed": removing, "before the first": early, "after the last": late, "seed": *killSeed})
}

// TestSignals sends SIGTERM, SIGINT or SIGUSR1 at random moments, during a save or not: a run that has begun
// saves and leaves with status 75.
func TestSignals(t *testing.T) {
	c := newCrashRun(t)
	rng := rand.New(rand.NewPCG(2, 0))
	longest := time.Duration(0)
	for i, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGTERM, syscall.SIGTERM, syscall.SIGTERM} {
		dir := t.TempDir()
		cmd, stderr := begin(t, dir, c.args)
		for !exists(filepath.Join(dir, "out", "checkpoint-1")) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(rng.Int64N(int64(c.took / 4))))
		sent := time.Now()
		if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		status := wait(t, cmd)
		longest = max(longest, time.Since(sent))
		what := fmt.Sprintf("%d: %v", i, signal)
		if code := status.ExitStatus(); code != exitInterrupted && code != exitDone {
			t.Fatalf("%s: %v\n%s", what, status, stderr)
		}
		c.finish(t, what, dir, c.resuming(c.args, c.check(t, what, dir)))
	}
	if longest > 5*time.Second {
		t.Errorf("%v from a signal to the end", longest)
	}
	t.Logf("at most %v from a signal to the end", longest)
	keep(t, map[string]any{"signals": 6, "longest seconds from a signal to the end": longest.Seconds()})
}

// TestSignalDuringEvaluation sends SIGTERM into a long evaluation: the run saves the step before it and leaves,
// and what goes on from there evaluates that step.
func TestSignalDuringEvaluation(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), trainingData)
	write(t, filepath.Join(work, "val.jsonl"), strings.Repeat(trainingData, 400))
	args := []string{"sft", "--model", model, "--dataset", "train.jsonl", "--val_dataset", "val.jsonl", "--max_steps", "2", "--gradient_accumulation_steps", "1",
		"--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", "1", "--logging_steps", "1", "--add_version", "false", "--output_dir", "out", "--report_to", "none"}
	cmd, stderr := begin(t, work, args)
	for logged := ""; !strings.Contains(logged, "\n"); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(work, "out", train.LogName))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		logged = string(text)
	}
	sent := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	status, took := wait(t, cmd), time.Since(sent)
	if status.ExitStatus() != exitInterrupted || strings.Contains(stderr.String(), "eval_loss") || took > 5*time.Second {
		t.Fatalf("%v after %v\n%s", status, took, stderr)
	}
	o := ok(t, work, "", append(args, "--resume_from_checkpoint", "out")...)
	if !strings.Contains(o.stderr, "step 1  eval_loss ") || !strings.Contains(o.stderr, "step 2  eval_loss ") {
		t.Errorf("after the evaluation was cut short:\n%s", o.stderr)
	}
	t.Logf("%v from the signal to the end", took)
}

// TestSignalWhilePreparing sends SIGTERM into the reading of a large dataset: there is nothing to save.
func TestSignalWhilePreparing(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), strings.Repeat(trainingData, 200_000))
	cmd, stderr := begin(t, work, []string{"sft", "--model", model, "--dataset", "train.jsonl", "--output_dir", "out"})
	time.Sleep(200 * time.Millisecond)
	sent := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	status, took := wait(t, cmd), time.Since(sent)
	if status.ExitStatus() != exitInterrupted || !strings.Contains(stderr.String(), "before the first step: nothing to save") || took > time.Second {
		t.Errorf("%v after %v\n%s", status, took, stderr)
	}
	if exists(filepath.Join(work, "out")) {
		t.Error("the run's folder was made")
	}
}

// TestSecondSignal sends a signal, and more of them at once: the program ends by the second, and the last
// checkpoint is whole.
func TestSecondSignal(t *testing.T) {
	c := newCrashRun(t)
	for try := range 20 {
		dir := t.TempDir()
		cmd, stderr := begin(t, dir, c.args)
		for !exists(filepath.Join(dir, "out", "checkpoint-2")) {
			time.Sleep(time.Millisecond)
		}
		sent := time.Now()
		ended := make(chan syscall.WaitStatus)
		go func() { ended <- wait(t, cmd) }()
		var status syscall.WaitStatus
		for running := true; running; {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			select {
			case status = <-ended:
				running = false
			case <-time.After(100 * time.Microsecond):
			}
		}
		took := time.Since(sent)
		newest := c.check(t, "second signal", dir)
		if newest < 2 || took > time.Second {
			t.Errorf("checkpoint-%d is the last, %v after the first signal\n%s", newest, took, stderr)
		}
		if status.Signaled() {
			c.finish(t, "after a second signal", dir, c.resuming(c.args, newest))
			t.Logf("ended by %v in %v, in try %d", status.Signal(), took, try+1)
			return
		} // else the first was faster
	}
	t.Error("in 20 tries no second signal ended the program")
}
