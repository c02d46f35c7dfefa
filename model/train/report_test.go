package train_test

import (
	"encoding/json"
	"fmt"
	gomaps "maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/internal/tfevents/tfeventstest"
	"qlora/model/train"
)

// figures returns what logging.jsonl has by TensorBoard's tags and step.
func figures(t *testing.T, dir string) map[string]map[int]float32 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, train.LogName))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[int]float32{}
	for line := range strings.Lines(string(text)) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		step, ok := fields["step"].(float64)
		if !ok {
			continue // the closing line
		}
		for key, value := range fields {
			tag := "train/" + key
			if name, ok := strings.CutPrefix(key, "eval_"); ok {
				tag = "eval/" + name
			} else if fields["eval_loss"] != nil {
				continue
			}
			if v, ok := value.(float64); ok && key != "step" {
				if all[tag] == nil {
					all[tag] = map[int]float32{}
				}
				all[tag][int(step)] = float32(v)
			}
		}
	}
	return all
}

// checkEvents holds the event files of a run to its log.
func checkEvents(t *testing.T, what, dir string) map[string]map[int]float32 {
	t.Helper()
	got, err := tfeventstest.Series(filepath.Join(dir, "runs"))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	want := figures(t, dir)
	for _, tag := range []string{"train/loss", "train/grad_norm", "train/learning_rate", "train/token_acc", "train/epoch", "train/memory(GiB)",
		"train/train_speed(s/it)", "eval/loss", "eval/token_acc", "eval/runtime", "eval/samples_per_second"} {
		if len(want[tag]) == 0 {
			t.Errorf("%s: the log has nothing for %s", what, tag)
		}
		if !gomaps.Equal(got[tag], want[tag]) {
			t.Errorf("%s: %s is %v in the event files, %v in the log", what, tag, got[tag], want[tag])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: tags %v, want %v", what, slices.Collect(gomaps.Keys(got)), slices.Collect(gomaps.Keys(want)))
	}
	return want
}

func TestEventsAndImages(t *testing.T) {
	dir := t.TempDir()
	reported := func() *train.Run {
		r := newRun(t, dir, options())
		r.TensorBoard = true
		return r
	}
	checkpoint := stopAfter(t, reported(), "", 7) // the evaluation of step 7 is still due
	for range 2 {                                 // the second time from before what the first has written
		if _, err := reported().Start(t.Context(), checkpoint); err != nil {
			t.Fatal(err)
		}
		tags := checkEvents(t, "resumed", dir)
		if steps := slices.Sorted(gomaps.Keys(tags["train/loss"])); !slices.Equal(steps, []int{1, 3, 6, 9, 12, 15, 18, 20}) {
			t.Errorf("train/loss of the steps %v", steps)
		}
		if steps := slices.Sorted(gomaps.Keys(tags["eval/loss"])); !slices.Equal(steps, []int{7, 14, 20}) {
			t.Errorf("eval/loss of the steps %v", steps)
		}
		for tag := range tags {
			path := filepath.Join(dir, "images", strings.ReplaceAll(tag, "/", "_")+".png")
			if text, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(text), "\x89PNG") {
				t.Errorf("image of %s: %.8q, %v", tag, text, err)
			}
		}
	}
	for _, step := range []string{"checkpoint-20", "checkpoint-15"} {
		if err := os.RemoveAll(filepath.Join(dir, step)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := reported().Start(t.Context(), filepath.Join(dir, "checkpoint-10")); err != nil {
		t.Fatal(err)
	}
	checkEvents(t, "from an older checkpoint", dir)
	if files, err := filepath.Glob(filepath.Join(dir, "runs", "*")); err != nil || len(files) != 4 {
		t.Errorf("event files %v, want 4", files)
	}
}

func TestNoEventsUnasked(t *testing.T) {
	dir := t.TempDir()
	if _, err := newRun(t, dir, options()).Start(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"runs", "images"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, train.ArgsName)); err != nil || string(text) != "{}\n" {
		t.Errorf("args.json of the run: %q, %v", text, err)
	}
}

// overfits is a run whose evaluations get worse from an early one on, with a checkpoint each.
func overfits() train.Options {
	o := options()
	o.SaveSteps, o.EvalSteps, o.LearningRate = 1, 1, 0.5
	return o
}

func TestEarlyStop(t *testing.T) {
	whole := t.TempDir()
	if _, err := newRun(t, whole, overfits()).Start(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	// By the rule: the first checkpoint that is the n-th in a row without a better evaluation.
	loss := figures(t, whole)["eval/loss"]
	best, stale, want := float32(0), 0, 0
	for step := 1; step <= 20 && want == 0; step++ {
		if stale++; step == 1 || loss[step] < best {
			best, stale = loss[step], 0
		}
		if stale == 3 {
			want = step
		}
	}
	if want == 0 || want == 20 {
		t.Fatalf("evaluations %v do not get worse early enough", loss)
	}

	o := overfits()
	o.EarlyStop = 3
	dir, notices := t.TempDir(), ""
	r := newRun(t, dir, o)
	r.Hooks.Notice = func(text string) { notices += text }
	result, err := r.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if result.Steps != want || filepath.Base(result.Last) != fmt.Sprintf("checkpoint-%d", want) || !strings.Contains(notices, fmt.Sprintf("stopped after step %d of 20", want)) {
		t.Errorf("ended after step %d with %s, want %d; notices %q", result.Steps, result.Last, want, notices)
	}
	// The count lives in checkpoints, and a run that has stopped stays so.
	for _, from := range []int{want - 2, want} {
		if again, err := newRun(t, dir, o).Start(t.Context(), filepath.Join(dir, fmt.Sprintf("checkpoint-%d", from))); err != nil || again.Steps != want {
			t.Errorf("resumed from step %d: ended after step %d, %v", from, again.Steps, err)
		}
	}
	o.EarlyStop = 0
	if on, err := newRun(t, dir, o).Start(t.Context(), result.Last); err != nil || on.Steps != 20 {
		t.Errorf("resumed without early stop: ended after step %d, %v", on.Steps, err)
	}
}

func TestBestMetric(t *testing.T) {
	dir := t.TempDir()
	o := overfits()
	o.BestMetric, o.GreaterIsBetter, o.SaveTotalLimit = "token_acc", true, 2
	r, err := newRun(t, dir, o).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	best, want := float32(-1), 0
	for step, acc := range figures(t, dir)["eval/token_acc"] {
		if acc > best || acc == best && step < want {
			best, want = acc, step
		}
	}
	if filepath.Base(r.Best) != fmt.Sprintf("checkpoint-%d", want) || float32(r.BestMetric) != best {
		t.Errorf("best %s with %v, want step %d with %v", r.Best, r.BestMetric, want, best)
	}
	if _, err := os.Stat(r.Best); err != nil {
		t.Error(err)
	}
}

// The best evaluation may be of a step without a checkpoint: then none is named.
func TestBestWithoutCheckpoint(t *testing.T) {
	o := overfits()
	o.SaveSteps = 20
	r, err := newRun(t, t.TempDir(), o).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	state := readJSON[map[string]any](t, filepath.Join(r.Last, "trainer_state.json"))
	if r.Best != "" || state["best_model_checkpoint"] != nil || state["best_metric"] != r.BestMetric || state["best_global_step"].(float64) >= 20 {
		t.Errorf("best %q; trainer_state.json has %v, %v, %v", r.Best, state["best_model_checkpoint"], state["best_metric"], state["best_global_step"])
	}
}

// trainerStateKeys are the fields of TrainerState in transformers 5.23 (4.49 to that at least), whose
// load_from_json takes these and no others. Checked once with that class itself.
var trainerStateKeys = []string{"best_global_step", "best_metric", "best_model_checkpoint", "epoch", "eval_steps", "global_step",
	"is_hyper_param_search", "is_local_process_zero", "is_world_process_zero", "log_history", "logging_steps", "max_steps", "num_input_tokens_seen",
	"num_train_epochs", "save_steps", "stateful_callbacks", "total_flos", "train_batch_size", "trial_name", "trial_params"}

func TestTrainerStateKeys(t *testing.T) {
	r, err := newRun(t, t.TempDir(), options()).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	state := readJSON[map[string]any](t, filepath.Join(r.Last, "trainer_state.json"))
	if got := slices.Sorted(gomaps.Keys(state)); !slices.Equal(got, trainerStateKeys) {
		t.Errorf("keys %v, want %v", got, trainerStateKeys)
	}
}
