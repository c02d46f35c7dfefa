package train

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"qlora/internal/atomicfile"
)

// Record is one line of the log: of training, or of an evaluation. The first part is what a run
// computes, the same whenever and wherever it is repeated; the second part is about time.
type Record struct {
	Step         int      `json:"step"`
	Epoch        float64  `json:"epoch"`
	Loss         *float64 `json:"loss,omitempty"`
	GradNorm     *float64 `json:"grad_norm,omitempty"`
	LearningRate *float64 `json:"learning_rate,omitempty"`
	TokenAcc     *float64 `json:"token_acc,omitempty"`
	EvalLoss     *float64 `json:"eval_loss,omitempty"`
	EvalTokenAcc *float64 `json:"eval_token_acc,omitempty"`

	timing *timing
}

// timing is the part of a record that differs from run to run.
type timing struct {
	Of              string  `json:"global_step/max_steps"`
	Elapsed         string  `json:"elapsed_time"`
	Remaining       string  `json:"remaining_time"`
	Memory          float64 `json:"memory(GiB)"`
	SecondsPerStep  float64 `json:"train_speed(s/it)"`
	TokensPerSecond float64 `json:"tokens_per_second"`
	StepSeconds     float64 `json:"step_seconds,omitempty"` // of the step just done alone, the others are means since the start
	EvalSeconds     float64 `json:"eval_runtime,omitempty"`
	EvalPerSecond   float64 `json:"eval_samples_per_second,omitempty"`
}

// line is the record as logging.jsonl has it.
func (r Record) line() any {
	return struct {
		Record
		*timing
	}{r, r.timing}
}

// logFile is logging.jsonl, one record a line.
type logFile struct {
	atomicfile.File
	path string
}

// LogName is the log in a run's folder.
const LogName = "logging.jsonl"

// openLog opens the log of a run. What a resumed run will compute again is cut off: the log goes on from
// the checkpoint's history.
func openLog(dir string, history []Record) (*logFile, error) {
	path := filepath.Join(dir, LogName)
	kept := 0
	if len(history) > 0 {
		data, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		kept = lengthOfLines(data, len(history))
	}
	f, err := atomicfile.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(kept)); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(int64(kept), 0); err != nil {
		f.Close()
		return nil, err
	}
	return &logFile{f, path}, nil
}

// lengthOfLines is the bytes of the first n lines.
func lengthOfLines(data []byte, n int) int {
	for i, c := range data {
		if c == '\n' {
			if n--; n == 0 {
				return i + 1
			}
		}
	}
	return len(data)
}

// write adds a line, and returns it.
func (f *logFile) write(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("writing %s: %w", f.path, err)
	}
	return line, nil
}

// finish writes the closing line.
func (f *logFile) finish(r Result) error {
	last := map[string]any{"global_step": r.Steps, "last_model_checkpoint": r.Last, "train_loss": r.Loss, "train_runtime": r.Seconds,
		"train_tokens_per_second": r.TokensPerSecond, "train_tokens": r.Tokens, "train_label_tokens": r.Labels, "train_step_seconds": r.StepSeconds}
	if r.Best != "" {
		last["best_model_checkpoint"], last["best_metric"] = r.Best, r.BestMetric
	}
	_, err := f.write(last)
	return err
}

// epoch is how many epochs are done.
func (l *loop) epoch() float64 {
	return float64(l.at.Cursor.Epoch) + float64(l.at.Cursor.Index)/float64(l.Samples.Len())
}

func (l *loop) record(r Record) error {
	r.Step, r.Epoch = l.at.Step, l.epoch()
	elapsed := time.Since(l.started)
	done := l.at.Step - l.from
	t := &timing{Of: fmt.Sprintf("%d/%d", l.at.Step, l.total), Elapsed: clock(elapsed), Memory: float64(l.Model.Plan.Bytes) / (1 << 30)}
	if r.timing != nil {
		t.EvalSeconds, t.EvalPerSecond = r.timing.EvalSeconds, r.timing.EvalPerSecond
	} else if n := len(l.seconds); n > 0 {
		t.StepSeconds = l.seconds[n-1]
	}
	if done > 0 {
		t.SecondsPerStep = elapsed.Seconds() / float64(done)
		t.Remaining = clock(elapsed / time.Duration(done) * time.Duration(l.total-l.at.Step))
		t.TokensPerSecond = float64(l.at.Total.Tokens-l.fromTokens) / elapsed.Seconds()
	}
	r.timing = t
	l.at.History = append(l.at.History, r)
	if l.Hooks.Log != nil {
		l.Hooks.Log(r)
	}
	line, err := l.log.write(r.line())
	if err != nil || l.events == nil {
		return err
	}
	step, values, err := scalars(line)
	if err != nil {
		return err
	}
	return l.events.Scalars(step, values)
}

// clock writes a duration as "1h 2m 3s".
func clock(d time.Duration) string {
	s := int(d.Seconds() + 0.5)
	switch {
	case s >= 3600:
		return fmt.Sprintf("%dh %dm %ds", s/3600, s/60%60, s%60)
	case s >= 60:
		return fmt.Sprintf("%dm %ds", s/60, s%60)
	}
	return fmt.Sprintf("%ds", s)
}

func (l *loop) logTraining() error {
	loss, acc, rate := l.at.Losses/float64(l.at.Steps), l.at.Since.accuracy(), l.schedule.rate(l.at.Step)
	norm := l.at.Norm
	l.at.Since, l.at.Steps, l.at.Losses, l.at.Logged = tally{}, 0, 0, l.at.Step
	return l.record(Record{Loss: &loss, GradNorm: &norm, LearningRate: &rate, TokenAcc: &acc})
}

func (l *loop) logEvaluation(ctx context.Context) error {
	begun := time.Now()
	sum, err := l.evaluate(ctx, l.at.Step)
	if err != nil {
		return err
	}
	loss, acc, seconds := sum.mean(), sum.accuracy(), time.Since(begun).Seconds()
	l.at.Tested = l.at.Step
	if metric := l.Options.metric(loss, acc); l.at.Best == 0 || l.Options.better(metric, l.at.Metric) {
		l.at.Best, l.at.Metric = l.at.Step, metric
	}
	return l.record(Record{EvalLoss: &loss, EvalTokenAcc: &acc, timing: &timing{EvalSeconds: seconds, EvalPerSecond: float64(len(l.Eval)) / seconds}})
}

// trainerState is trainer_state.json, with the keys of transformers' TrainerState.
func (l *loop) trainerState() ([]byte, error) {
	o := l.Options
	state := map[string]any{
		"best_metric": nil, "best_model_checkpoint": nil, "best_global_step": nil,
		"epoch": l.epoch(), "global_step": l.at.Step, "max_steps": l.total, "num_train_epochs": (l.total + l.perEpoch - 1) / l.perEpoch,
		"eval_steps": o.EvalSteps, "logging_steps": o.LoggingSteps, "save_steps": o.SaveSteps, "train_batch_size": o.StepSamples,
		"is_hyper_param_search": false, "is_local_process_zero": true, "is_world_process_zero": true,
		"log_history": l.at.History, "num_input_tokens_seen": l.at.Total.Tokens, "stateful_callbacks": map[string]any{},
		"total_flos": 0, "trial_name": nil, "trial_params": nil,
	}
	if l.at.History == nil {
		state["log_history"] = []Record{}
	}
	if l.at.Best > 0 {
		state["best_metric"], state["best_global_step"] = l.at.Metric, l.at.Best
	}
	if best := l.best(); best != "" {
		state["best_model_checkpoint"] = best
	}
	data, err := json.MarshalIndent(state, "", "  ")
	return append(data, '\n'), err
}

func writeFile(dir, name string, data []byte) error {
	return atomicfile.WriteBytes(filepath.Join(dir, name), data)
}
