package train

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/montanaflynn/stats"

	"qlora/internal/tfevents"
	"qlora/model/data"
)

// Interrupted is a run stopped from outside between two optimizer steps.
type Interrupted struct {
	Cause      error
	Step       int
	Checkpoint string // where to go on from; "" before the first step
}

func (e *Interrupted) Error() string {
	if e.Checkpoint == "" {
		return fmt.Sprintf("interrupted (%v) before the first step: nothing to save", e.Cause)
	}
	return fmt.Sprintf("interrupted (%v) after step %d; go on with --resume_from_checkpoint %s", e.Cause, e.Step, e.Checkpoint)
}

// Result is what a finished run leaves.
type Result struct {
	Steps           int
	Loss            float64 // of the last step
	Last, Best      string  // checkpoints; Best is "" where the best evaluation has none
	BestMetric      float64
	Tokens, Labels  int
	Seconds         float64
	TokensPerSecond float64
	StepSeconds     float64 // median of the steps, without the first three in a run of more
}

// position is where a run stands: all that a checkpoint keeps beside adapter and moments.
type position struct {
	Step    int         `json:"step"`
	Cursor  data.Cursor `json:"cursor"`
	Since   tally       `json:"since_last_log"`
	Steps   int         `json:"steps_since_last_log"`
	Losses  float64     `json:"losses_since_last_log"` // sum of the steps' losses
	Total   tally       `json:"total"`
	Loss    float64     `json:"last_loss"`
	Norm    float64     `json:"last_grad_norm"`
	Logged  int         `json:"logged"`    // the step logged last
	Tested  int         `json:"evaluated"` // the step evaluated last
	Best    int         `json:"best_step"` // the step of the best evaluation; 0 before the first
	Metric  float64     `json:"best_metric"`
	Saved   int         `json:"saved,omitempty"` // the last step that early_stop_interval has counted
	Stale   int         `json:"stale,omitempty"` // checkpoints since the best evaluation
	History history     `json:"history"`
}

// loop is a run in progress.
type loop struct {
	*Run
	at         position
	loader     *data.Loader
	passed     int // rows that others stood in for
	schedule   schedule
	total      int // optimizer steps of the whole run
	perEpoch   int
	started    time.Time
	from       int // step it started from
	fromTokens int
	seconds    []float64 // of each step since then
	log        *logFile
	events     *tfevents.Writer // nil without TensorBoard
}

// Start initialises the adapter, or takes it and the optimizer from a checkpoint of the same run, and
// trains to the end. from is "" or the checkpoint's folder.
func (r *Run) Start(ctx context.Context, from string) (result Result, err error) {
	if err := r.Options.Check(); err != nil {
		return Result{}, err
	}
	if r.Samples.Len() == 0 {
		return Result{}, errors.New("train: no samples")
	}
	order := data.Order{N: r.Samples.Len(), Seed: r.Options.DataSeed, DatasetShuffle: r.Options.DatasetShuffle, EpochShuffle: r.Options.Shuffle}
	l := &loop{Run: r, total: r.Options.TotalSteps(r.Samples.Len()), perEpoch: order.StepsPerEpoch(r.Options.StepSamples), started: time.Now()}
	if l.schedule, err = newSchedule(r.Options, l.total); err != nil {
		return Result{}, err
	}
	if from != "" {
		if l.at, err = l.resume(from, order); err != nil {
			return Result{}, err
		}
	}
	l.from, l.fromTokens = l.at.Step, l.at.Total.Tokens
	r.Model.ParamsChanged()
	if l.loader, err = data.NewLoader(r.Samples, order, l.at.Cursor, r.Options.StepSamples, r.Workers); err != nil {
		return Result{}, fmt.Errorf("%s: %w", from, err)
	}
	defer l.loader.Close()
	if err := l.prepareDir(); err != nil {
		return Result{}, err
	}
	if l.log, err = openLog(r.Dir, l.at.History); err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, l.log.Close()) }()
	if r.Args != nil {
		if err := writeFile(r.Dir, ArgsName, r.Args); err != nil {
			return Result{}, err
		}
	}
	if r.TensorBoard {
		if err := l.openEvents(); err != nil {
			return Result{}, err
		}
	}
	result, err = l.run(ctx)
	return result, errors.Join(err, l.closeReports())
}

// prepareDir makes the run's folder, clears away what a killed process left there, and holds that the
// checkpoints to come will fit.
func (l *loop) prepareDir() error {
	if err := os.MkdirAll(l.Dir, 0o777); err != nil {
		return err
	}
	if err := removeUnfinished(l.Dir); err != nil {
		return err
	}
	return l.checkDisk()
}

func (l *loop) run(ctx context.Context) (Result, error) {
	if l.from > 0 { // an evaluation may have been cut short
		if err := l.due(ctx); err != nil {
			return Result{}, l.stopped(ctx, err)
		}
	}
	for l.at.Step < l.total && !l.stale() {
		begun := time.Now()
		next, err := l.loader.Next()
		if err != nil {
			return Result{}, err
		}
		l.standIns(next.Passed)
		step := l.at.Step + 1
		sum, norm, err := l.step(ctx, step, next.Samples, l.schedule.rate(step))
		if err != nil {
			return Result{}, l.stopped(ctx, err)
		}
		l.at.Step, l.at.Cursor = step, next.After
		l.at.Since.add(sum)
		l.at.Total.add(sum)
		l.at.Steps++
		l.at.Loss, l.at.Norm = sum.mean(), norm
		l.at.Losses += l.at.Loss
		l.seconds = append(l.seconds, time.Since(begun).Seconds())
		l.report(sum, l.seconds[len(l.seconds)-1])
		if err := l.due(ctx); err != nil {
			return Result{}, l.stopped(ctx, err)
		}
	}
	if l.at.Step < l.total {
		l.notice("stopped after step %d of %d: no better eval_%s in %d checkpoints", l.at.Step, l.total, l.Options.bestMetric(), l.at.Stale)
	}
	return l.result()
}

// standIns names the first rows that could not be used.
func (l *loop) standIns(passed []data.Issue) {
	const named = 20
	for _, issue := range passed {
		switch l.passed++; {
		case l.passed <= named:
			l.notice("%s: another row is trained on in its place", issue)
		case l.passed == named+1:
			l.notice("more rows cannot be used, and are not named: qlora data lists them")
		}
	}
}

// stale says that early_stop_interval ends the run.
func (l *loop) stale() bool { return l.Options.EarlyStop > 0 && l.at.Stale >= l.Options.EarlyStop }

// due logs, evaluates and saves where the step just done asks for it. The last step does all three.
func (l *loop) due(ctx context.Context) error {
	o, step, last := l.Options, l.at.Step, l.at.Step == l.total
	epochEnd := l.at.Cursor.Index == 0
	if l.at.Logged < step && (last || step%o.LoggingSteps == 0 || step == 1 && o.LoggingFirstStep) {
		if err := l.logTraining(); err != nil {
			return err
		}
	}
	if l.at.Tested < step && len(l.Eval) > 0 && o.EvalStrategy != Never && (last || o.EvalStrategy == Epoch && epochEnd || o.EvalStrategy == Steps && step%o.EvalSteps == 0) {
		if err := l.logEvaluation(ctx); err != nil {
			return err
		}
	}
	if o.SaveStrategy != Never && (last || o.SaveStrategy == Epoch && epochEnd || o.SaveStrategy == Steps && step%o.SaveSteps == 0) {
		l.countStale()
		return l.save()
	}
	return nil
}

// countStale counts the checkpoint about to be saved, if no evaluation since the last one was the best.
func (l *loop) countStale() {
	if l.Options.EarlyStop == 0 || l.at.Saved == l.at.Step {
		return
	}
	if l.at.Best > l.at.Saved {
		l.at.Stale = 0
	} else {
		l.at.Stale++
	}
	l.at.Saved = l.at.Step
}

// stopped is the error that ends a run. One that was cancelled first saves what is done.
func (l *loop) stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	stop := &Interrupted{Cause: context.Cause(ctx), Step: l.at.Step}
	if l.at.Step == 0 {
		return stop
	}
	if err := l.save(); err != nil {
		return fmt.Errorf("interrupted (%v) after step %d, and nothing to go on from: %w", stop.Cause, stop.Step, err)
	}
	stop.Checkpoint = l.checkpointDir(l.at.Step)
	return stop
}

func (l *loop) report(sum tally, seconds float64) {
	if l.Hooks.Step == nil {
		return
	}
	elapsed := time.Since(l.started).Seconds()
	l.Hooks.Step(Progress{Step: l.at.Step, MaxSteps: l.total, Loss: sum.mean(), Tokens: sum.Tokens, TokensPerSec: float64(sum.Tokens) / seconds,
		Elapsed: elapsed, Left: elapsed / float64(l.at.Step-l.from) * float64(l.total-l.at.Step)})
}

func (l *loop) result() (Result, error) {
	seconds := time.Since(l.started).Seconds()
	r := Result{Steps: l.at.Step, Loss: l.at.Loss, BestMetric: l.at.Metric, Tokens: l.at.Total.Tokens, Labels: l.at.Total.Labels, Seconds: seconds,
		TokensPerSecond: float64(l.at.Total.Tokens-l.fromTokens) / seconds, StepSeconds: typical(l.seconds)}
	if l.Options.SaveStrategy != Never {
		r.Last = l.checkpointDir(l.at.Step)
	}
	r.Best = l.best()
	return r, l.log.finish(r)
}

// warmup is how many steps of a run are slower than the rest: memory is touched and kernels are loaded for the first time.
const warmup = 3

// typical is the median of the steps after the warm-up, of all where there are no more, and 0 of none.
func typical(seconds []float64) float64 {
	if len(seconds) > warmup {
		seconds = seconds[warmup:]
	}
	median, err := stats.Median(seconds)
	if err != nil { // none: a run resumed at its end
		return 0
	}
	return median
}
