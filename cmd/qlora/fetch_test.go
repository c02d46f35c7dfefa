package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"qlora/internal/fetch/fetchtest"
)

// A model is fetched from a hub on this machine, and then found by its name without one.
func TestFetchAndUse(t *testing.T) {
	files := map[string][]byte{"pytorch_model.bin": []byte("a pickle"), "onnx/model.safetensors": []byte("another form"), "README.md": []byte("# hello")}
	mini := miniModel(t)
	entries, err := os.ReadDir(mini)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		files[entry.Name()] = []byte(read(t, filepath.Join(mini, entry.Name())))
	}
	hub := fetchtest.New(t, "Org/Mini-0.5B", files)
	cache := t.TempDir()
	for name, value := range map[string]string{"HF_ENDPOINT": hub.URL, "MODELSCOPE_DOMAIN": hub.URL, "HF_HOME": cache, "HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "", "MODELSCOPE_CACHE": filepath.Join(cache, "ms"), "HF_TOKEN": "", "HF_HUB_OFFLINE": ""} {
		t.Setenv(name, value)
	}
	work := t.TempDir()
	if o := qlora(t, work, "hi", "infer", "--model", "Org/Mini-0.5B"); o.code != exitUsage || !strings.Contains(o.stderr, "qlora fetch Org/Mini-0.5B") {
		t.Errorf("before: exit status %d\n%s", o.code, o.stderr)
	}
	o := ok(t, work, "", "fetch", "Org/Mini-0.5B")
	dir := strings.TrimSpace(o.stdout)
	if !strings.HasSuffix(dir, filepath.Join("models--Org--Mini-0.5B", "snapshots", fetchtest.Commit)) || strings.Contains(o.stderr, "does not run") {
		t.Errorf("standard output %q, standard error\n%s", o.stdout, o.stderr)
	}
	for _, left := range []string{"pytorch_model.bin", "onnx"} {
		if exists(filepath.Join(dir, left)) {
			t.Errorf("%s was fetched", left)
		}
	}
	n := hub.Count()
	ok(t, work, "hi", "infer", "--model", "Org/Mini-0.5B", "--max_new_tokens", "2", "--temperature", "0")
	if again := ok(t, work, "", "fetch", "--model", "Org/Mini-0.5B"); again.stdout != o.stdout || hub.Count() != n {
		t.Errorf("again: %q, %d files", again.stdout, hub.Count()-n)
	}
	ok(t, work, "", "fetch", "Org/Mini-0.5B", "--hub", "ms")
	if !exists(filepath.Join(cache, "ms/hub/models/Org/Mini-0___5B/config.json")) {
		t.Error("nothing in ModelScope's cache")
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "say what is to be fetched"},
		{[]string{"Org/Mini-0.5B", "--dataset", "a/b"}, exitUsage, "say what is to be fetched"},
		{[]string{"Mini"}, exitUsage, "org/name"},
		{[]string{"Org/Mini-0.5B", "more"}, exitUsage, "takes one value"},
		{[]string{"Org/Other"}, exitUsage, "no such repository"},
		{[]string{"Org/Mini-0.5B", "--hub", "gitlab"}, exitUsage, "choose hf or ms"},
		{[]string{"Org/Mini-0.5B", "--include", "*.gguf"}, exitUsage, "no file of Org/Mini-0.5B matches: its files are README.md"},
		{[]string{"Org/Mini-0.5B", "--include", "["}, exitUsage, "is no pattern"},
		{[]string{"Org/Mini-0.5B", "--revision", "../x"}, exitUsage, "is no revision"},
	} {
		if o := qlora(t, work, "", append([]string{"fetch"}, c.args...)...); o.code != c.code || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%v: exit status %d, want %q in\n%s", c.args, o.code, c.want, o.stderr)
		}
	}
	t.Setenv("HF_HUB_OFFLINE", "1")
	n = hub.Count()
	if o := ok(t, work, "", "fetch", "Org/Mini-0.5B"); strings.TrimSpace(o.stdout) != dir || hub.Count() != n {
		t.Errorf("offline: %q", o.stdout)
	}
	if o := qlora(t, work, "", "fetch", "Org/Other"); o.code != exitUsage || !strings.Contains(o.stderr, "HF_HUB_OFFLINE forbids") {
		t.Errorf("offline, not there: exit status %d\n%s", o.code, o.stderr)
	}
}

// Every other verb is run under strace where that is at hand, and opens no socket.
func TestNoSocket(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "d.jsonl"), trainingData)
	trace := filepath.Join(work, "trace")
	for _, args := range [][]string{
		{"doctor"},
		{"data", "--model", model, "--dataset", "d.jsonl"},
		{"sft", "--model", model, "--dataset", "d.jsonl", "--max_steps", "1", "--output_dir", "out", "--add_version", "false"},
		{"infer", "--adapters", "out/checkpoint-1", "--val_dataset", "d.jsonl", "--max_new_tokens", "2", "--result_path", "r.jsonl"},
		{"eval", "--adapters", "out/checkpoint-1", "--dataset", "d.jsonl", "--max_new_tokens", "2", "--html", "p.html"},
		{"export", "--adapters", "out/checkpoint-1", "--merge_lora", "true"},
		{"fetch", "nobody"},
	} {
		cmd := exec.Command(strace, append([]string{"-f", "-qq", "-e", "trace=socket", "-o", trace, binary}, args...)...)
		cmd.Dir = work
		out, err := cmd.CombinedOutput()
		if err != nil && args[0] != "fetch" && args[0] != "doctor" {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		if calls := read(t, trace); strings.Contains(calls, "socket(") {
			t.Errorf("%v opens a socket:\n%s", args, calls)
		}
	}
}
