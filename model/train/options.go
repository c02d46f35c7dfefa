// Package train is the loop from samples to an adapter: optimizer steps over packed rows, the schedule,
// evaluation, logs, and checkpoints from which a run goes on bit for bit.
//
// The loss of an optimizer step is a sum over its label tokens divided by their number, so the
// samples that per-device batch and accumulation put into one step are packed into as few rows as fit:
// the same gradient to rounding, in fewer products.
package train

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"

	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
)

// Strategy says when to evaluate or save.
type Strategy string

const (
	Never Strategy = "no"
	Steps Strategy = "steps"
	Epoch Strategy = "epoch"
)

// Options are the settings of a run, named as ms-swift's flags.
type Options struct {
	Epochs      float64 // num_train_epochs
	MaxSteps    int     // max_steps; 0: by Epochs
	StepSamples int     // samples of an optimizer step: batch size times accumulation
	RowTokens   int     // tokens of a packed row at most, 0: RowTokens; a longer sample has a row to itself

	LearningRate, WeightDecay float64
	LRRatio                   float64 // lorap_lr_ratio: B's rate over A's
	Beta1, Beta2, Eps         float64
	MaxGradNorm               float64
	NEFTuneAlpha              float64 // neftune_noise_alpha; 0: no noise
	LabelSmoothing            float64 // label_smoothing_factor: epsilon of ops.HeadLoss
	Schedule                  string  // lr_scheduler_type
	WarmupRatio               float64
	WarmupSteps               int

	Seed           uint32 // adapter's start, dropout
	DataSeed       uint64 // order of the samples
	Shuffle        bool   // train_dataloader_shuffle: anew for every epoch
	DatasetShuffle bool   // dataset_shuffle: once

	LoggingSteps     int
	LoggingFirstStep bool
	EvalStrategy     Strategy
	EvalSteps        int
	SaveStrategy     Strategy
	SaveSteps        int
	SaveTotalLimit   int // 0: all are kept

	BestMetric      string // metric_for_best_model: loss or token_acc; "" is loss
	GreaterIsBetter bool
	EarlyStop       int // early_stop_interval: end after so many checkpoints without a better evaluation; 0: never

	Pad data.Pad // rows are rounded up to what the backend likes
}

// Check says what is wrong with the options, by the flag that sets it.
func (o Options) Check() error {
	positive := func(flag string, v float64) error {
		if !(v > 0) || math.IsInf(v, 0) {
			return fmt.Errorf("--%s %v: must be a positive number", flag, v)
		}
		return nil
	}
	for _, f := range []struct {
		flag string
		v    float64
	}{
		{"learning_rate", o.LearningRate}, {"per_device_train_batch_size x --gradient_accumulation_steps", float64(o.StepSamples)},
		{"logging_steps", float64(o.LoggingSteps)}, {"adam_epsilon", o.Eps}, {"lorap_lr_ratio", o.LRRatio},
	} {
		if err := positive(f.flag, f.v); err != nil {
			return err
		}
	}
	if o.MaxSteps <= 0 {
		if err := positive("num_train_epochs", o.Epochs); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		flag string
		v    float64
	}{{"adam_beta1", o.Beta1}, {"adam_beta2", o.Beta2}, {"warmup_ratio", o.WarmupRatio}} {
		if !(f.v >= 0 && f.v < 1) {
			return fmt.Errorf("--%s %v: must be at least 0 and less than 1", f.flag, f.v)
		}
	}
	for _, f := range []struct {
		flag string
		v    float64
	}{{"neftune_noise_alpha", o.NEFTuneAlpha}, {"weight_decay", o.WeightDecay}, {"max_grad_norm", o.MaxGradNorm}, {"warmup_steps", float64(o.WarmupSteps)}, {"save_total_limit", float64(o.SaveTotalLimit)},
		{"early_stop_interval", float64(o.EarlyStop)}} {
		if !(f.v >= 0) || math.IsInf(f.v, 0) {
			return fmt.Errorf("--%s %v: must not be negative", f.flag, f.v)
		}
	}
	if !(o.LabelSmoothing >= 0 && o.LabelSmoothing <= 1) {
		return fmt.Errorf("--label_smoothing_factor %v: must be from 0 to 1", o.LabelSmoothing)
	}
	if o.WarmupRatio > 0 && o.WarmupSteps > 0 {
		return fmt.Errorf("--warmup_ratio %v and --warmup_steps %d both set the warm-up: give one", o.WarmupRatio, o.WarmupSteps)
	}
	if o.EvalStrategy == Steps && o.EvalSteps < 1 {
		return fmt.Errorf("--eval_steps %d: must be at least 1", o.EvalSteps)
	}
	if o.SaveStrategy == Steps && o.SaveSteps < 1 {
		return fmt.Errorf("--save_steps %d: must be at least 1", o.SaveSteps)
	}
	if m := o.bestMetric(); m != "loss" && m != "token_acc" {
		return fmt.Errorf("--metric_for_best_model %s: choose loss or token_acc", m)
	}
	if o.EarlyStop > 0 && (o.EvalStrategy == Never || o.SaveStrategy == Never) {
		return fmt.Errorf("--early_stop_interval %d counts checkpoints without a better evaluation, and this run has none: "+
			"give --val_dataset or --split_dataset_ratio, and no --save_strategy no", o.EarlyStop)
	}
	_, err := newSchedule(o, 1)
	return err
}

func (o Options) bestMetric() string { return cmp.Or(o.BestMetric, "loss") }

// metric picks what the best evaluation is chosen by.
func (o Options) metric(loss, accuracy float64) float64 {
	if o.bestMetric() == "token_acc" {
		return accuracy
	}
	return loss
}

func (o Options) better(a, b float64) bool {
	return o.GreaterIsBetter && a > b || !o.GreaterIsBetter && a < b
}

// TotalSteps is the number of optimizer steps of a run on so many units.
func (o Options) TotalSteps(units int) int {
	if o.MaxSteps > 0 {
		return o.MaxSteps
	}
	return int(math.Ceil(o.Epochs*float64(data.Order{N: units}.StepsPerEpoch(o.StepSamples)) - 1e-9))
}

// RowTokens is the room of a packed row where nothing says otherwise: more tokens are little faster and take more memory.
const RowTokens = 2048

// Room is how large a packed row can get: what qwen2.Build must make room for. Rows hold at most
// rowTokens tokens (0: 2048), but always the longest sample whole. A step has stepSamples units.
func Room(samples data.Source, eval data.Samples, stepSamples, rowTokens int, pad data.Pad) (maxT, maxS, maxN int) {
	if rowTokens <= 0 {
		rowTokens = RowTokens
	}
	train, held := samples.Bounds(), eval.Bounds()
	longest, total := max(train.Sample, held.Sample, 1), max(train.Total, held.Total)
	most := max(stepSamples*train.Unit, len(eval)) // samples packed together
	multiple := max(pad.Multiple, 1)
	up := func(n int) int { return (n + multiple - 1) / multiple * multiple }
	maxT = up(max(min(rowTokens, total, longest*most), longest))
	if maxS = min(maxT, most); multiple > 1 {
		maxS++ // of the tokens that round a row up
	}
	return maxT, maxS, max(maxT-1, 1) // nothing predicts the first token of a sample
}

// Run is one training run: a model in a backend's memory, the adapter being trained, and its data.
type Run struct {
	Backend ops.Backend
	Model   *qwen2.Model
	Set     *lora.Set
	Base    lora.Base
	Samples data.Source
	Eval    data.Samples // may be empty
	Workers int          // dataloader_num_workers: goroutines that read steps ahead; 0: none
	Options Options
	Args    json.RawMessage // written as args.json beside every checkpoint
	Dir     string          // the run's folder
	Hooks   Hooks

	TensorBoard bool // write event files to runs/ and draw images/
}

// Hooks report on a run as it goes. Nil ones are not called.
type Hooks struct {
	Step   func(Progress)
	Log    func(Record)
	Notice func(string)
}

// Progress is where a run stands after an optimizer step.
type Progress struct {
	Step, MaxSteps int
	Loss           float64
	Tokens         int     // of this step
	TokensPerSec   float64 // of this step
	Elapsed, Left  float64 // seconds
}

func (r *Run) notice(format string, args ...any) {
	if r.Hooks.Notice != nil {
		r.Hooks.Notice(fmt.Sprintf(format, args...))
	}
}
