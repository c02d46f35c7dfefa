package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"qlora/internal/golden"
	"qlora/model/weights/weightstest"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "qlora-cli-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "qlora")
		if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// outcome is what a run of the program left.
type outcome struct {
	stdout, stderr string
	code           int
	cpu            time.Duration
	memory         int64 // bytes at the fullest moment
}

// qlora runs the program in a folder.
func qlora(t *testing.T, dir, stdin string, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	used := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode(), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), used.Maxrss << 10}
}

// ok runs the program and expects it to end well.
func ok(t *testing.T, dir, stdin string, args ...string) outcome {
	t.Helper()
	o := qlora(t, dir, stdin, args...)
	if o.code != 0 {
		t.Fatalf("qlora %q: exit status %d\n%s", args, o.code, o.stderr)
	}
	return o
}

// miniModel makes a folder with the smallest golden model and a tokenizer of bytes in the form of
// Qwen2.5's, chat template included.
func miniModel(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mini")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	const testdata = "../../testdata"
	for from, to := range map[string]string{
		"golden/models/mini/config.json":          "config.json",
		"golden/models/mini/model.safetensors":    "model.safetensors",
		"tokenizer/qwen2.5/tokenizer_config.json": "tokenizer_config.json",
	} {
		text, err := os.ReadFile(filepath.Join(testdata, from))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, to), string(text))
	}
	text, err := golden.Gunzip(filepath.Join(testdata, "tokenizer/qwen2.5/tokenizer.json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "tokenizer.json"), byteTokenizer(t, text))
	return dir
}

// byteTokenizer leaves of a tokenizer.json the tokens of single bytes, ids 0 to 255, and the control
// tokens of the chat template, from 256.
func byteTokenizer(t *testing.T, text []byte) string {
	t.Helper()
	var file map[string]json.RawMessage
	var model map[string]json.RawMessage
	var vocab map[string]int
	parse := func(text []byte, into any) {
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	parse(text, &file)
	parse(file["model"], &model)
	parse(model["vocab"], &vocab)
	for token, id := range vocab {
		if id > 255 {
			delete(vocab, token)
		}
	}
	type added struct {
		ID         int    `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		LStrip     bool   `json:"lstrip"`
		RStrip     bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	}
	raw := func(v any) json.RawMessage {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	model["vocab"], model["merges"] = raw(vocab), raw([]string{})
	file["model"] = raw(model)
	file["added_tokens"] = raw([]added{{ID: 256, Content: "<|endoftext|>", Special: true}, {ID: 257, Content: "<|im_start|>", Special: true}, {ID: 258, Content: "<|im_end|>", Special: true}})
	return string(raw(file))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const trainingData = `{"query": "hi", "response": "hello"}
{"query": "bye", "response": "see you"}
{"query": "who", "response": "I am {{NAME}}"}
{"nonsense": 1}
`

// trained is a finished run on the mini model.
type trained struct{ model, work, checkpoint string }

func train4(t *testing.T, extra ...string) trained {
	t.Helper()
	r := trained{model: miniModel(t), work: t.TempDir()}
	write(t, filepath.Join(r.work, "train.jsonl"), trainingData)
	o := ok(t, r.work, "", append([]string{"sft", "--model", r.model, "--dataset", "train.jsonl", "--max_steps", "4", "--save_steps", "2",
		"--logging_steps", "1", "--gradient_accumulation_steps", "2", "--model_name", "Ada", "--system", "Be brief.", "--output_dir", "out"}, extra...)...)
	path, found := strings.CutPrefix(strings.SplitN(o.stdout, "\n", 2)[0], "last_model_checkpoint: ")
	if !found {
		t.Fatalf("standard output: %s", o.stdout)
	}
	for _, want := range []string{"train.jsonl, row 4", "backend: cpu", "data: 3 samples", "step 4/4"} {
		if !strings.Contains(o.stderr, want) {
			t.Errorf("standard error lacks %q:\n%s", want, o.stderr)
		}
	}
	r.checkpoint = path
	return r
}

func TestTrainAndInfer(t *testing.T) {
	r := train4(t)
	for _, file := range []string{"adapter_config.json", "adapter_model.safetensors", "args.json", "trainer_state.json", "../logging.jsonl", "../checkpoint-2/args.json"} {
		if text := read(t, filepath.Join(r.work, r.checkpoint, file)); len(text) == 0 {
			t.Errorf("%s is empty", file)
		}
	}
	var args map[string]any
	if err := json.Unmarshal([]byte(read(t, filepath.Join(r.work, r.checkpoint, "args.json"))), &args); err != nil {
		t.Fatal(err)
	}
	if args["model"] != r.model || args["template"] != "qwen2_5" || args["system"] != "Be brief." || args["lora_rank"] != 8.0 || args["tuner_type"] != "lora" {
		t.Errorf("args.json: %v", args)
	}

	elsewhere := t.TempDir()
	adapter := filepath.Join(r.work, r.checkpoint)
	greedy := []string{"infer", "--adapters", adapter, "--temperature", "0", "--max_new_tokens", "4"}
	one := ok(t, elsewhere, "hi\n", greedy...)
	if !strings.Contains(one.stderr, "model: "+r.model+", as ") || strings.Count(one.stdout, "\n") < 1 {
		t.Errorf("answer %q, standard error:\n%s", one.stdout, one.stderr)
	}
	if again := ok(t, elsewhere, "hi\n", append(greedy, "--stream", "false")...); again.stdout != one.stdout {
		t.Errorf("not streamed %q, streamed %q", again.stdout, one.stdout)
	}

	results := ok(t, r.work, "", append(greedy, "--val_dataset", "train.jsonl", "--max_batch_size", "2", "--result_path", "answers.jsonl", "--model_name", "Ada")...)
	lines := strings.Split(strings.TrimSpace(read(t, filepath.Join(r.work, "answers.jsonl"))), "\n")
	if len(lines) != 3 || !strings.Contains(results.stderr, "dropped: train.jsonl, row 4") {
		t.Fatalf("%d answers for 3 good rows of 4: %q\n%s", len(lines), lines, results.stderr)
	}
	var last answerLine
	if err := json.Unmarshal([]byte(lines[2]), &last); err != nil {
		t.Fatal(err)
	}
	if *last.Labels != "I am Ada" || last.Messages[0].Content != "who" {
		t.Errorf("last answer %+v", last)
	}
	// Answered together or alone, greedy answers are the same.
	ok(t, r.work, "", append(greedy, "--val_dataset", "train.jsonl", "--result_path", "alone.jsonl", "--model_name", "Ada")...)
	if read(t, filepath.Join(r.work, "alone.jsonl")) != strings.Join(lines, "\n")+"\n" {
		t.Error("batch size changes the answers")
	}

	measured := ok(t, r.work, "", "eval", "--adapters", adapter, "--dataset", "train.jsonl", "--json", "--max_new_tokens", "4")
	var object map[string]float64
	if err := json.Unmarshal([]byte(measured.stdout), &object); err != nil {
		t.Fatalf("%v in %s", err, measured.stdout)
	}
	var keys []string
	for k := range object {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"identity_accuracy", "label_tokens", "nll", "perplexity"}) || object["label_tokens"] <= 0 || object["nll"] <= 0 {
		t.Errorf("eval --json: %s", measured.stdout)
	}
}

func TestChatCommands(t *testing.T) {
	model := miniModel(t)
	talk := func(lines ...string) string {
		o := ok(t, t.TempDir(), strings.Join(lines, "\n"), "infer", "--model", model, "--temperature", "0", "--max_new_tokens", "3", "--stream", "false")
		return o.stdout
	}
	// The random model answers in bytes that may be line ends: compare whole conversations.
	hi := talk("hi")
	if hi == "" {
		t.Fatal("no answer to a question without a line end")
	}
	if got := talk("hi", "exit", "hi"); got != hi {
		t.Errorf("after exit: %q, want %q", got, hi)
	}
	if got := talk("hi", "clear", "hi", "quit"); got != hi+hi {
		t.Errorf("after clear: %q, want %q twice", got, hi)
	}
	if got, want := talk("multi-line", "h", "i#", "single-line", "clear", "hi"), talk("multi-line", "h", "i", "#")+hi; got != want {
		t.Errorf("multi-line: %q, want %q", got, want)
	}
	if got, want := talk("reset-system", "Be kind.", "hi"), talk("hi", "reset-system", "Be kind.", "hi"); hi+got != want {
		t.Errorf("reset-system keeps the conversation: %q, want %q", want, hi+got)
	}
}

// TestInterruptAndResume stops a run by a signal, goes on from its checkpoint, and compares with a
// run that was left alone.
func TestInterruptAndResume(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), trainingData)
	args := []string{"sft", "--model", model, "--dataset", "train.jsonl", "--num_train_epochs", "15", "--gradient_accumulation_steps", "1",
		"--save_steps", "1000", "--logging_steps", "1", "--add_version", "false", "--lora_dropout", "0.1"}
	ok(t, work, "", append(args, "--output_dir", "whole")...)

	cmd := exec.Command(binary, append(args, "--output_dir", "parts")...)
	cmd.Dir = work
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	signalled := false
	for buf := make([]byte, 256); ; {
		n, err := stderr.Read(buf)
		log.Write(buf[:n])
		if !signalled && bytes.Contains(log.Bytes(), []byte("step 3/")) {
			signalled = true
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(log.String(), "--resume_from_checkpoint parts/checkpoint-") {
		t.Fatalf("exit status %d after SIGTERM:\n%s", code, log.String())
	}
	resumed := ok(t, work, "", append(args, "--output_dir", "parts", "--resume_from_checkpoint", "parts")...)
	if !strings.Contains(resumed.stdout, "last_model_checkpoint: parts/checkpoint-45") {
		t.Fatalf("standard output: %s", resumed.stdout)
	}
	for _, file := range []string{"adapter_model.safetensors", "optimizer.safetensors"} {
		if read(t, filepath.Join(work, "whole/checkpoint-45", file)) != read(t, filepath.Join(work, "parts/checkpoint-45", file)) {
			t.Errorf("%s differs between the interrupted run and the other", file)
		}
	}
	if o := qlora(t, work, "", append(args, "--output_dir", "parts", "--resume_from_checkpoint", "parts", "--lora_alpha", "16")...); o.code != exitUsage || !strings.Contains(o.stderr, "Alpha") {
		t.Errorf("resumed with another alpha: exit status %d\n%s", o.code, o.stderr)
	}
}

// TestExitCodes runs the program into every kind of mistake.
func TestExitCodes(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), trainingData)
	write(t, filepath.Join(work, "bad.jsonl"), `{"nonsense": 1}`)
	sft := func(more ...string) []string {
		return append([]string{"sft", "--model", model, "--dataset", "train.jsonl", "--max_steps", "3"}, more...)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in standard error
	}{
		{"nothing", nil, exitUsage, "Usage: qlora <verb>"},
		{"verb", []string{"sftt"}, exitUsage, "did you mean `qlora sft`?"},
		{"flag", []string{"sft", "--lora_rnk", "8"}, exitUsage, "did you mean --lora_rank?"},
		{"no model", []string{"sft", "--dataset", "train.jsonl"}, exitUsage, "--model is missing"},
		{"no dataset", []string{"sft", "--model", model}, exitUsage, "--dataset is missing"},
		{"model not there", []string{"sft", "--model", "org/none", "--dataset", "train.jsonl"}, exitUsage, "--model org/none"},
		{"dataset not there", []string{"sft", "--model", model, "--dataset", "none.jsonl"}, exitUsage, "none.jsonl: no such file"},
		{"no good row", []string{"sft", "--model", model, "--dataset", "bad.jsonl"}, exitUsage, "bad.jsonl, row 1"},
		{"strict", sft("--strict"), exitUsage, "train.jsonl, row 4"},
		{"tuner", sft("--train_type", "full"), exitUsage, "--tuner_type lora"},
		{"dtype", sft("--torch_dtype", "float16"), exitUsage, "choose bfloat16 or float32"},
		{"cuda", sft("--backend", "cuda"), exitUsage, "built without CUDA: build it with `make build`"},
		{"backend", sft("--backend", "tpu"), exitUsage, "choose auto, cuda or cpu"},
		{"rank", sft("--lora_rank", "0"), exitUsage, "--lora_rank 0"},
		{"modules", sft("--target_modules", "nope"), exitUsage, "--target_modules nope"},
		{"schedule", sft("--lr_scheduler_type", "polynomial"), exitUsage, "--lr_scheduler_type"},
		{"template", sft("--template", "llama3"), exitUsage, "chatml"},
		{"adapter", sft("--adapters", "."), exitUsage, "adapter_config.json"},
		{"resume", sft("--resume_from_checkpoint", "gone"), exitUsage, "--resume_from_checkpoint"},
		{"split", sft("--split_dataset_ratio", "1.5"), exitUsage, "--split_dataset_ratio"},
		{"disk", sft("--max_steps", "2000000000000", "--save_steps", "1", "--output_dir", "big"), exitStorage, "2000000000000 checkpoints of "},
		{"not finite", sft("--learning_rate", "1e30", "--output_dir", "huge"), exitNonFinite, "lower --learning_rate"},
		{"output is a file", []string{"doctor", "--output_dir", "train.jsonl/x"}, exitCheckFailed, "training cannot run"},
		{"temperature", []string{"infer", "--model", model, "--temperature", "-1"}, exitUsage, "--temperature -1"},
		{"context", []string{"infer", "--model", model, "--max_length", "99999"}, exitUsage, "--max_length 99999"},
		{"row", []string{"data", "--model", model, "--dataset", "train.jsonl", "--row", "9"}, exitUsage, "--row 9"},
		{"bad row", []string{"data", "--model", model, "--dataset", "train.jsonl", "--row", "4"}, exitUsage, "train.jsonl, row 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := qlora(t, work, "", c.args...)
			if o.code != c.code || !strings.Contains(o.stderr, c.want) || strings.Contains(o.stderr, "goroutine ") {
				t.Errorf("exit status %d, want %d with %q in\n%s", o.code, c.code, c.want, o.stderr)
			}
		})
	}
}

// A NaN in a weight of the model ends the program before anything is trained or written.
func TestNaNInAWeight(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), trainingData)
	const name = "model.layers.1.mlp.up_proj.weight"
	weightstest.Rewrite(t, filepath.Join(model, "model.safetensors"), func(e *weightstest.Tensor) {
		if e.Name == name {
			copy(e.Data[40:], []byte{0, 0, 0xc0, 0x7f})
		}
	})
	o := qlora(t, work, "", "sft", "--model", model, "--dataset", "train.jsonl", "--output_dir", "out", "--add_version", "false")
	if o.code != exitNonFinite || !strings.Contains(o.stderr, name+": row 0, column 10 is NaN") || exists(filepath.Join(work, "out")) {
		t.Errorf("exit status %d\n%s", o.code, o.stderr)
	}
}

func TestExitCodeOfError(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, exitDone},
		{errors.New("bad input"), exitUsage},
		{fmt.Errorf("saving: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}), exitStorage},
		{fmt.Errorf("no: %w", errCheckFailed), exitCheckFailed},
		{fmt.Errorf("memory: %w", &noFitError{2 << 30, 1 << 30, nil}), exitNoFit},
	} {
		if got := exitCode(c.err); got != c.code {
			t.Errorf("%v: exit status %d, want %d", c.err, got, c.code)
		}
	}
	b, err := openBackend(&env{err: io.Discard}, deviceFlags{Backend: "cpu"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.NewArena(1 << 50); exitCode(err) != exitNoFit {
		t.Errorf("an arena of 1 PiB: %v", err)
	}
}

func TestHelp(t *testing.T) {
	fastest := time.Hour
	for range 5 {
		o := ok(t, ".", "", "--help")
		fastest = min(fastest, o.cpu)
		for _, verb := range verbNames {
			if !strings.Contains(o.stdout, "  "+verb+" ") {
				t.Fatalf("--help does not name %s:\n%s", verb, o.stdout)
			}
		}
	}
	if fastest > 50*time.Millisecond {
		t.Errorf("--help takes %v of processor time", fastest)
	}
	shapes := flagsOf(t)
	for _, verb := range verbNames {
		o := ok(t, ".", "", verb, "--help")
		for name := range shapes[verb] {
			if !strings.Contains(o.stdout, "  --"+name+" ") && !strings.Contains(o.stdout, "  --"+name+"\n") {
				t.Errorf("%s --help does not explain --%s", verb, name)
			}
		}
		if !strings.Contains(o.stdout, "Examples\n  ") {
			t.Errorf("%s --help has no example", verb)
		}
		for line := range strings.Lines(o.stdout) {
			if n := len([]rune(line)); n > 125 {
				t.Errorf("%s --help: a line of %d columns: %s", verb, n, line)
			}
		}
	}
	if o := ok(t, ".", "", "--version"); !strings.Contains(o.stdout, "backends: cpu") {
		t.Errorf("--version: %s", o.stdout)
	}
}

func TestDoctor(t *testing.T) {
	o := ok(t, t.TempDir(), "", "doctor", "--json")
	var report struct {
		CanTrain bool `json:"can_train"`
		Findings []finding
	}
	if err := json.Unmarshal([]byte(o.stdout), &report); err != nil {
		t.Fatal(err)
	}
	var checks []string
	for _, f := range report.Findings {
		checks = append(checks, f.Check)
		if f.Found == "" || f.Verdict != good && f.Fix == "" {
			t.Errorf("%+v: nothing found, or no fix", f)
		}
	}
	if !report.CanTrain || !slices.Equal(checks, []string{"processor", "kernels", "cores", "memory", "cuda", "output"}) {
		t.Errorf("doctor: %s", o.stdout)
	}
	// The binary under test is built without tags.
	if o := ok(t, t.TempDir(), "", "doctor"); !strings.Contains(o.stdout, "built without CUDA") || !strings.Contains(o.stdout, "`make build`") {
		t.Errorf("doctor: %s", o.stdout)
	}
}

// Code that a model's files name is not run, and a notice says so.
func TestAutoMap(t *testing.T) {
	work, model := t.TempDir(), miniModel(t)
	args := []string{"data", "--model", model, "--dataset", "builtin:self-cognition"}
	if o := ok(t, work, "", args...); strings.Contains(o.stderr, "auto_map") {
		t.Errorf("without: %s", o.stderr)
	}
	config := filepath.Join(model, "config.json")
	write(t, config, strings.Replace(read(t, config), "{", `{"auto_map": {"AutoModelForCausalLM": "modeling_x.X"},`, 1))
	write(t, filepath.Join(model, "modeling_x.py"), "open('ran', 'w')")
	if o := ok(t, work, "", args...); !strings.Contains(o.stderr, "notice: "+config+": auto_map names Python of the model's own, which is not run") {
		t.Errorf("with: %s", o.stderr)
	}
}

func TestData(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), trainingData)
	o := ok(t, work, "", "data", "--model", model, "--dataset", "train.jsonl", "--json", "--model_name", "Ada")
	var report struct {
		Template string
		Report   struct{ Rows, Kept int }
		Lengths  struct{ Tokens int }
	}
	if err := json.Unmarshal([]byte(o.stdout), &report); err != nil {
		t.Fatal(err)
	}
	if report.Template != "qwen2_5" || report.Report.Rows != 4 || report.Report.Kept != 3 || report.Lengths.Tokens == 0 {
		t.Errorf("data --json: %s", o.stdout)
	}
	row := ok(t, work, "", "data", "--model", model, "--dataset", "train.jsonl", "--row", "3", "--json", "--model_name", "Ada")
	var shown struct {
		Tokens []struct {
			Text  string
			Label bool
		}
	}
	if err := json.Unmarshal([]byte(row.stdout), &shown); err != nil {
		t.Fatal(err)
	}
	var trainedOn strings.Builder
	for _, tok := range shown.Tokens {
		if tok.Label {
			trainedOn.WriteString(tok.Text)
		}
	}
	if trainedOn.String() != "I am Ada<|im_end|>\n" {
		t.Errorf("trained on %q", trainedOn.String())
	}
	if o := ok(t, work, "", "data", "--model", model, "--dataset", "train.jsonl", "--row", "1"); !strings.Contains(o.stdout, `"<|im_end|>"`) {
		t.Errorf("data --row: %s", o.stdout)
	}
	if o := ok(t, work, "", "data", "--model", model, "--dataset", "builtin:self-cognition", "--model_name", "Ada"); !strings.Contains(o.stderr, "no row holds {{NAME}}") {
		t.Errorf("no notice that nothing was put in: %s", o.stderr)
	}
}
