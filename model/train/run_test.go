package train_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/train"
	"qlora/model/weights"
)

// samples makes n random rows for a vocabulary of v, half of each trained on.
func samples(n, v int, seed uint64) data.Samples {
	rng := rand.New(rand.NewPCG(seed, 1))
	all := make(data.Samples, n)
	for i := range all {
		s := data.Sample{File: "random.jsonl", Row: i + 1}
		for p := range 6 + rng.IntN(20) {
			id := int32(rng.IntN(v))
			s.IDs = append(s.IDs, id)
			if p > 3 {
				s.Labels = append(s.Labels, id)
			} else {
				s.Labels = append(s.Labels, data.Ignore)
			}
		}
		all[i] = s
	}
	return all
}

// options of a run of 20 steps with dropout, noise and smoothed labels: 2 epochs of 19 samples, 2 a step, the last step of each one short.
func options() train.Options {
	return train.Options{Epochs: 2, StepSamples: 2, RowTokens: 32, LearningRate: 1e-2, WeightDecay: 0.1, LRRatio: 1, Beta1: 0.9, Beta2: 0.95,
		Eps: 1e-8, MaxGradNorm: 1, NEFTuneAlpha: 5, LabelSmoothing: 0.1, Schedule: "cosine", WarmupRatio: 0.05, Seed: 42, DataSeed: 42, Shuffle: true, DatasetShuffle: true, LoggingSteps: 3,
		LoggingFirstStep: true, EvalStrategy: train.Steps, EvalSteps: 7, SaveStrategy: train.Steps, SaveSteps: 5}
}

// newRun is a run on the mini model with a fresh adapter.
func newRun(t *testing.T, dir string, o train.Options) *train.Run {
	t.Helper()
	return newRunOn(t, cpu.New[float32](), dir, o)
}

// newRunOn is newRun on a backend of the test's own.
func newRunOn(t *testing.T, b ops.Backend, dir string, o train.Options) *train.Run {
	t.Helper()
	src, err := weights.Open(golden.Path(t, "models", "mini"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	set, err := lora.New(src.Config, lora.Config{R: 4, Alpha: 8, Dropout: 0.1, Targets: []string{lora.AllLinear}})
	if err != nil {
		t.Fatal(err)
	}
	r := &train.Run{Backend: b, Set: set, Base: lora.Base{Name: "mini", Fingerprint: "abc"},
		Samples: samples(19, src.Config.VocabSize, 1), Eval: samples(4, src.Config.VocabSize, 2), Options: o, Dir: dir, Args: []byte("{}\n")}
	maxT, maxS, maxN := train.Room(r.Samples, r.Eval, o.StepSamples, o.RowTokens, o.Pad)
	r.Model, err = qwen2.Build(r.Backend, src, qwen2.Options{DType: ops.F32, Training: true, MaxT: maxT, MaxS: maxS, MaxN: maxN, Adapter: set})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Backend.Close() })
	if err := ops.WriteF32(r.Backend, r.Model.Params, set.Init(uint64(o.Seed))); err != nil {
		t.Fatal(err)
	}
	return r
}

// kept is what two runs must share to the byte: files of the last checkpoint, and the losses.
func kept(t *testing.T, checkpoint string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range []string{lora.WeightsFile, lora.ConfigFile, "optimizer.safetensors", "progress.json", "README.md"} {
		text, err := os.ReadFile(filepath.Join(checkpoint, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %s differs from the uninterrupted run's", what, name)
		}
	}
}

// stopAfter runs until n steps are done, and then as if a signal had come.
func stopAfter(t *testing.T, r *train.Run, from string, n int) string {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	r.Hooks.Step = func(p train.Progress) {
		if p.Step == n {
			cancel(errors.New("terminated"))
		}
	}
	_, err := r.Start(ctx, from)
	var stop *train.Interrupted
	if !errors.As(err, &stop) {
		t.Fatalf("stopped after step %d: %v, want *Interrupted", n, err)
	}
	if stop.Step != n || !strings.Contains(stop.Error(), "terminated") {
		t.Fatalf("stopped after step %d: %v", n, stop)
	}
	return stop.Checkpoint
}

func TestResumeIsExact(t *testing.T) {
	whole, err := newRun(t, t.TempDir(), options()).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if whole.Steps != 20 {
		t.Fatalf("%d steps, want 20", whole.Steps)
	}
	want := kept(t, whole.Last)
	for n := 1; n < 20; n++ {
		dir := t.TempDir()
		checkpoint := stopAfter(t, newRun(t, dir, options()), "", n)
		again, err := newRun(t, dir, options()).Start(t.Context(), checkpoint)
		if err != nil {
			t.Fatalf("resumed after step %d: %v", n, err)
		}
		same(t, fmt.Sprintf("resumed after step %d", n), kept(t, again.Last), want)
		if got, want := untimed(t, dir), untimed(t, filepath.Dir(whole.Last)); !reflect.DeepEqual(got, want) {
			t.Errorf("resumed after step %d: log %v, want %v", n, got, want)
		}
	}
}

// untimed is logging.jsonl less what differs from run to run.
func untimed(t *testing.T, dir string) []train.Record {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, train.LogName))
	if err != nil {
		t.Fatal(err)
	}
	var all []train.Record
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	for _, line := range lines[:len(lines)-1] { // the last one sums up
		var r train.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func TestResumeFromAnOlderCheckpointRewritesTheLog(t *testing.T) {
	dir := t.TempDir()
	first, err := newRun(t, dir, options()).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want, log := kept(t, first.Last), untimed(t, dir)
	for _, step := range []string{"checkpoint-20", "checkpoint-15"} {
		if err := os.RemoveAll(filepath.Join(dir, step)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := newRun(t, dir, options()).Start(t.Context(), filepath.Join(dir, "checkpoint-10"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "from checkpoint-10", kept(t, again.Last), want)
	if got := untimed(t, dir); !reflect.DeepEqual(got, log) {
		t.Errorf("log %v, want %v", got, log)
	}
}

func TestResumeRefusesOtherSettings(t *testing.T) {
	dir := t.TempDir()
	checkpoint := stopAfter(t, newRun(t, dir, options()), "", 3)
	for _, c := range []struct {
		change func(*train.Run)
		names  string
	}{
		{func(r *train.Run) { r.Options.LearningRate = 1 }, "LearningRate"},
		{func(r *train.Run) { r.Samples = r.Samples.(data.Samples)[:18] }, "dataset"},
		{func(r *train.Run) { r.Base.Fingerprint = "def" }, "base model"},
		{func(r *train.Run) { r.Options.Seed = 43 }, "Seed"},
	} {
		r := newRun(t, dir, options())
		c.change(r)
		_, err := r.Start(t.Context(), checkpoint)
		if err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("changed %s: %v", c.names, err)
		}
	}
}

func TestInterruptedBeforeTheFirstStep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := newRun(t, t.TempDir(), options()).Start(ctx, "")
	var stop *train.Interrupted
	if !errors.As(err, &stop) || stop.Checkpoint != "" {
		t.Errorf("%v, want *Interrupted without a checkpoint", err)
	}
}

func TestTwoRunsAreEqual(t *testing.T) {
	var all []map[string]string
	for range 2 {
		r, err := newRun(t, t.TempDir(), options()).Start(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, kept(t, r.Last))
	}
	same(t, "second run", all[1], all[0])
	o := options()
	o.Seed++
	r, err := newRun(t, t.TempDir(), o).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if kept(t, r.Last)[lora.WeightsFile] == all[0][lora.WeightsFile] {
		t.Error("another seed gives the same adapter")
	}
}

func TestSaveTotalLimitKeepsBestAndLast(t *testing.T) {
	o := options()
	o.SaveSteps, o.EvalSteps, o.SaveTotalLimit = 1, 1, 2
	o.LearningRate = 0.5 // overfits at once: the best evaluation is an early one
	dir := t.TempDir()
	r, err := newRun(t, dir, o).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	steps, err := train.Checkpoints(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) != 2 || filepath.Base(r.Last) != fmt.Sprintf("checkpoint-%d", steps[1]) || filepath.Base(r.Best) != fmt.Sprintf("checkpoint-%d", steps[0]) {
		t.Errorf("kept %v, best %s, last %s", steps, r.Best, r.Last)
	}
	state := readJSON[struct {
		Best    string         `json:"best_model_checkpoint"`
		Step    int            `json:"global_step"`
		Max     int            `json:"max_steps"`
		History []train.Record `json:"log_history"`
	}](t, filepath.Join(r.Last, "trainer_state.json"))
	if state.Best != r.Best || state.Step != 20 || state.Max != 20 || len(state.History) == 0 {
		t.Errorf("trainer_state.json says %+v", state)
	}
}

// A step's gradient does not depend on how the samples are split into rows.
func TestSplitOfAStepDoesNotMatter(t *testing.T) {
	y := build(t, "mini", "lora/mini/adapter_a", training(512))
	step := samples(8, y.m.Config.VocabSize, 3)
	scale := 1 / float64(data.LabelTokens(step))
	var ids, labels [][]int32
	for _, s := range step {
		ids, labels = append(ids, s.IDs), append(labels, s.Labels)
	}
	wantLoss, g := y.gradients(scale, batch(ids, labels))
	want := maps(g)
	for _, parts := range []int{2, 4, 8} {
		var rows []ops.HostBatch
		for i := 0; i < len(step); i += len(step) / parts {
			rows = append(rows, batch(ids[i:i+len(step)/parts], labels[i:i+len(step)/parts]))
		}
		loss, got := y.gradients(scale, rows...)
		within(t, fmt.Sprintf("loss in %d parts", parts), abs(loss/wantLoss-1), 1e-6)
		worst := 0.0
		for name := range want {
			worst = max(worst, apart(got[name], want[name]))
		}
		within(t, fmt.Sprintf("gradients in %d parts", parts), worst, 1e-6)
	}
}

func abs(x float64) float64 { return max(x, -x) }

func TestNonFiniteGradientChangesNothing(t *testing.T) {
	o := options()
	o.LearningRate, o.MaxGradNorm, o.Schedule, o.WarmupRatio = 1e38, 0, "constant", 0 // the second step meets infinite weights
	r := newRun(t, t.TempDir(), o)
	_, err := r.Start(t.Context(), "")
	var bad *train.NonFinite
	if !errors.As(err, &bad) {
		t.Fatalf("%v, want *NonFinite", err)
	}
	if bad.Step != 2 || !strings.Contains(err.Error(), "random.jsonl, row ") {
		t.Errorf("%v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*train.Options){
		"learning_rate":    func(o *train.Options) { o.LearningRate = -1 },
		"warmup_steps":     func(o *train.Options) { o.WarmupSteps = 3 },
		"lr_scheduler_typ": func(o *train.Options) { o.Schedule = "polynomial" },
		"num_train_epochs": func(o *train.Options) { o.Epochs = 0 },
		"adam_beta2":       func(o *train.Options) { o.Beta2 = 1 },
	} {
		o := options()
		change(&o)
		r := newRun(t, t.TempDir(), options())
		r.Options = o
		if _, err := r.Start(t.Context(), ""); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Noise is of training alone, smoothed labels are of validation too: as by transformers' Trainer. The first step of a
// warm-up has the rate 0, so that all runs validate the same adapter.
func TestNoiseAndSmoothing(t *testing.T) {
	losses := func(alpha, smoothing float64) (loss, eval float64) {
		o := options()
		o.MaxSteps, o.WarmupRatio, o.WarmupSteps, o.EvalSteps, o.SaveStrategy = 1, 0, 1, 1, train.Never
		o.NEFTuneAlpha, o.LabelSmoothing = alpha, smoothing
		r := newRun(t, t.TempDir(), o)
		r.Hooks.Log = func(rec train.Record) {
			if rec.EvalLoss != nil {
				eval = *rec.EvalLoss
			} else {
				loss = *rec.Loss
			}
		}
		if _, err := r.Start(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		return loss, eval
	}
	loss, eval := losses(0, 0)
	noisyLoss, noisyEval := losses(15, 0)
	if noisyLoss == loss || noisyEval != eval {
		t.Errorf("with noise the loss is %v (without %v), of validation %v (%v)", noisyLoss, loss, noisyEval, eval)
	}
	smoothLoss, smoothEval := losses(0, 0.1)
	if smoothLoss == loss || smoothEval == eval {
		t.Errorf("with smoothing the loss is %v (without %v), of validation %v (%v)", smoothLoss, loss, smoothEval, eval)
	}
}
