package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"qlora/internal/golden"
)

// goldenAdapters makes folders of the golden adapters of the mini model, without a word of their base.
func goldenAdapters(t *testing.T, names ...string) []string {
	t.Helper()
	var dirs []string
	for _, name := range names {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.CopyFS(dir, os.DirFS(golden.Path(t, "lora", "mini", "adapter_"+name))); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// What is in use of the adapters changes in a conversation as it does by flags.
func TestAdaptersInAConversation(t *testing.T) {
	model, dirs := miniModel(t), goldenAdapters(t, "a", "b")
	say := func(lines []string, flags ...string) string {
		t.Helper()
		o := ok(t, t.TempDir(), strings.Join(lines, "\n"), append([]string{"infer", "--model", model, "--temperature", "0", "--repetition_penalty", "1.5", "--max_new_tokens", "16", "--stream", "false"}, flags...)...)
		return o.stdout
	}
	hi := []string{"hi"}
	base, a, b := say(hi), say(hi, "--adapters", dirs[0]), say(hi, "--adapters", dirs[1])
	both := []string{"--adapters", "x=" + dirs[0] + "," + dirs[1], "--adapter_weights", "0.7,0.3"}
	sum := say(hi, both...)
	if base == a || a == b || sum == a || sum == base {
		t.Fatalf("adapters make no difference: base %q, a %q, b %q, sum %q", base, a, b, sum)
	}
	if got := say(hi, "--adapters", dirs[0], dirs[1], "--adapter_weights", "0", "0"); got != base {
		t.Errorf("weights 0: %q, the base says %q", got, base)
	}
	lines := []string{"hi", "/reset", "/adapter x", "hi", "/clear", "/adapter b=1, x=0", "hi", "/reset", "/base", "hi", "/reset", "/adapter x=0.7 2=0.3", "hi", "/adapters"}
	if got, want := say(lines, both...), sum+a+b+base+sum; got != want {
		t.Errorf("switched in a conversation: %q, want %q", got, want)
	}
	one := ok(t, t.TempDir(), "/adapters\n/adapter b=0.25\n/adapters", append([]string{"infer", "--model", model}, both...)...)
	for _, want := range []string{"adapters: x=0.7 b=0.3\n", "1  x  weight 0.7, rank 8, 14 modules", "adapters: b=0.25 (", "2  b  weight 0.25"} {
		if !strings.Contains(one.stderr, want) {
			t.Errorf("standard error lacks %q:\n%s", want, one.stderr)
		}
	}
	for _, c := range []struct {
		stdin string
		flags []string
		want  string
	}{
		{"hi", []string{"--adapters", dirs[0], dirs[1]}, "--adapters names 2 adapters (a, b), so say how much of each to use: --adapter_weights 0.5 0.5 adds them up"},
		{"hi", []string{"--adapters", dirs[0], dirs[1], "--adapter_weights", "1"}, "--adapter_weights has 1 numbers for 2 adapters (a, b)"},
		{"hi", []string{"--adapter_weights", "1"}, "there are no --adapters"},
		{"hi", []string{"--adapters", dirs[0], "--adapter_weights", "nan"}, "finite number"},
		{"hi", []string{"--adapters", "a=" + dirs[0], "a=" + dirs[1], "--adapter_weights", "1", "0"}, `two are called "a"`},
		{"/adapter c=1", both, `no adapter is called "c": there are x, b`},
		{"/adapter x=lots", both, `"lots" is not a number`},
		{"/adapter a", nil, "start with --adapters"},
		{"/nonsense", nil, "/nonsense is no command"},
	} {
		o := qlora(t, t.TempDir(), c.stdin, append([]string{"infer", "--model", model, "--max_new_tokens", "2"}, c.flags...)...)
		if o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%q %v: exit status %d, want %q in\n%s", c.stdin, c.flags, o.code, c.want, o.stderr)
		}
	}
}

func TestSystemAndSlashes(t *testing.T) {
	model := miniModel(t)
	talk := func(lines ...string) outcome {
		return ok(t, t.TempDir(), strings.Join(lines, "\n"), "infer", "--model", model, "--temperature", "0", "--max_new_tokens", "4", "--stream", "false")
	}
	if kind, reset := talk("/system Be kind.", "hi"), talk("hi", "reset-system", "Be kind.", "clear", "hi"); !strings.HasSuffix(reset.stdout, kind.stdout) || kind.stdout == talk("hi").stdout {
		t.Errorf("/system: %q, reset-system: %q", kind.stdout, reset.stdout)
	}
	if o := talk("/system Be kind.", "/system"); !strings.Contains(o.stderr, "system: Be kind.\n") {
		t.Errorf("/system alone: %s", o.stderr)
	}
	if got, want := talk("/multi", "a", "/b#", "/single", "/reset", "hi").stdout, talk("/multi", "a", "/b#").stdout+talk("hi").stdout; got != want {
		t.Errorf("commands between questions of several lines: %q, want %q", got, want)
	}
	if a, b := talk(" /etc", "/exit", "hi"), talk(" /etc"); a.stdout != b.stdout || a.stdout == "" {
		t.Errorf("a question that begins with a slash: %q, %q", a.stdout, b.stdout)
	}
}

// The end of the context is said, and the conversation goes on after /reset.
func TestContextIsFull(t *testing.T) {
	model := miniModel(t)
	flags := []string{"infer", "--model", model, "--temperature", "0", "--max_length", "140", "--system", ""}
	o := ok(t, t.TempDir(), "hi\n/reset\nhi", flags...)
	if n := strings.Count(o.stderr, "the context of 140 tokens is full"); n != 2 {
		t.Errorf("said %d times:\n%s", n, o.stderr)
	}
	long := qlora(t, t.TempDir(), strings.Repeat("x", 200), flags...)
	if long.code != exitUsage || !strings.Contains(long.stderr, "leaves no room in a context of 140: shorten it, /reset") {
		t.Errorf("exit status %d\n%s", long.code, long.stderr)
	}
}

// A stop word ends the answer, whatever tokens it lies in, and does not show.
func TestStopWords(t *testing.T) {
	model := miniModel(t)
	whole := ok(t, t.TempDir(), "hi", "infer", "--model", model, "--temperature", "0", "--max_new_tokens", "40").stdout
	middle := []rune(whole)[5:7]
	stop := string(middle)
	want, _, _ := strings.Cut(whole, stop)
	for _, stream := range []string{"true", "false"} {
		o := ok(t, t.TempDir(), "hi", "infer", "--model", model, "--temperature", "0", "--max_new_tokens", "40", "--stop_words", stop, "--stream", stream)
		if o.stdout != want+"\n" {
			t.Errorf("stream %s: %q, want what stands before %q in %q", stream, o.stdout, stop, whole)
		}
	}
}

// A batch that is interrupted and gone on with leaves the bytes of one that was not.
func TestBatchResumes(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	var data strings.Builder
	for i := range 40 {
		data.WriteString(`{"query": "question ` + strings.Repeat("?", i) + `", "response": "r"}` + "\n")
	}
	write(t, filepath.Join(work, "q.jsonl"), data.String())
	args := []string{"infer", "--model", model, "--val_dataset", "q.jsonl", "--temperature", "1", "--top_k", "20", "--max_new_tokens", "60", "--max_batch_size", "3"}
	ok(t, work, "", append(args, "--result_path", "whole.jsonl")...)
	whole := read(t, filepath.Join(work, "whole.jsonl"))

	cmd := exec.Command(binary, append(args, "--stream", "true", "--result_path", "parts.jsonl")...)
	cmd.Dir = work
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for buf := make([]byte, 64); ; {
		n, err := stdout.Read(buf)
		if seen += n; seen > 100 {
			cmd.Process.Signal(syscall.SIGTERM)
			seen = -1 << 40
		}
		if err != nil {
			break
		}
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(stderr.String(), "--resume true --result_path parts.jsonl goes on") {
		t.Fatalf("exit status %d after SIGTERM:\n%s", code, stderr.String())
	}
	parts := filepath.Join(work, "parts.jsonl")
	if n := strings.Count(read(t, parts), "\n"); n == 0 || n == 40 {
		t.Fatalf("%d rows were answered before the signal: this test says nothing", n)
	}
	write(t, parts, read(t, parts)+`{"response": "cut o`) // as a kill leaves it
	o := ok(t, work, "", append(args, "--result_path", "parts.jsonl", "--resume", "--max_batch_size", "2")...)
	if read(t, parts) != whole || !strings.Contains(o.stderr, "going on behind row") {
		t.Errorf("resumed answers differ from those of one run\n%s", o.stderr)
	}
	again := ok(t, work, "", append(args, "--result_path", "parts.jsonl", "--resume")...)
	if read(t, parts) != whole {
		t.Errorf("resuming what is complete changed it\n%s", again.stderr)
	}
	for _, c := range []struct {
		flags []string
		want  string
	}{
		{[]string{"--result_path", "parts.jsonl"}, "is there already: choose another, or go on with it by --resume true"},
		{[]string{"--resume"}, "say which file by --result_path"},
		{[]string{"--result_path", "parts.jsonl", "--resume", "--val_dataset_sample", "4"}, "has more lines than there are rows to answer (4)"},
	} {
		if o := qlora(t, work, "", append(args, c.flags...)...); o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%v: exit status %d\n%s", c.flags, o.code, o.stderr)
		}
	}
	write(t, filepath.Join(work, "q.jsonl"), strings.ReplaceAll(data.String(), "question", "matter"))
	if o := qlora(t, work, "", append(args, "--result_path", "parts.jsonl", "--resume")...); o.code != exitUsage || !strings.Contains(o.stderr, "line 1 answers another question than q.jsonl, row 1") {
		t.Errorf("another dataset: exit status %d\n%s", o.code, o.stderr)
	}
	if read(t, parts) != whole {
		t.Error("a refused run changed the results")
	}
}
