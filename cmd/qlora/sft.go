package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/train"
)

func (c *sftCmd) Run(e *env) error {
	prepared := e.preparing()
	if err := c.restore(e); err != nil {
		return err
	}
	options, err := c.options()
	if err != nil {
		return usageError{err}
	}
	b, err := c.openBase(e, &c.modelFlags, slices.Concat(c.Dataset, c.ValDataset)...)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := c.apply(b); err != nil {
		return err
	}
	samples, validation, done, err := c.load(e, b)
	if err != nil {
		return err
	}
	defer done()
	options.EvalStrategy = c.evaluation(len(validation))
	if err := c.intervals(&options, options.TotalSteps(samples.Len())); err != nil {
		return usageError{err}
	}
	run := &train.Run{Samples: samples, Eval: validation, Workers: c.DataloaderNumWorkers, Options: options}
	if err := c.build(e, b, run); err != nil {
		return err
	}
	defer run.Backend.Close()
	from, err := c.folder(run)
	if err != nil {
		return err
	}
	if run.Args, err = argsJSON(e.flags, b, &c.modelFlags); err != nil {
		return err
	}
	if len(validation) == 0 && (c.EvalSteps > 0 || cmp.Or(c.EvalStrategy, "no") != "no") {
		e.logf("notice: no validation data, so that nothing is evaluated: give --val_dataset, or --split_dataset_ratio 0.01 as ms-swift did by itself up to 3.5")
	}
	e.logf("run: %s", run.Dir)
	if err := keepConfig(e, run.Dir); err != nil {
		return err
	}
	prepared()
	shown := newProgress(e)
	if err := c.keepSetAside(run.Dir, b); err != nil {
		return err
	}
	run.TensorBoard = !slices.Contains(c.ReportTo, "none")
	run.Hooks = train.Hooks{Step: shown.step, Log: shown.record, Notice: func(text string) { e.logf("notice: %s", text) }}
	c.watch(&run.Hooks)
	result, err := run.Start(e.ctx, from)
	shown.end()
	if err != nil {
		return err
	}
	if c.CreateCheckpointSymlink {
		if err := linkCheckpoints(run.Dir, result); err != nil {
			return err
		}
	}
	if err := c.printResult(e, result); err != nil {
		return err
	}
	return c.finish(e, run.Backend, run.Model, run.Dir)
}

// load finds training and validation samples, and says what was left out. done ends the reading.
func (c *sftCmd) load(e *env, b *base) (samples data.Source, validation data.Samples, done func(), err error) {
	opt, err := c.dataOptions(b)
	if err != nil {
		return nil, nil, nil, err
	}
	var end func()
	opt.Progress, end = rowsRead(e)
	samples, validation, report, done, err := c.source(b, opt)
	end()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("--dataset: %w", err)
	}
	if !c.LazyTokenize && !slices.ContainsFunc(c.Dataset, isRandom) {
		c.logReport(e, "dataset", report)
	}
	if len(c.ValDataset) == 0 {
		return samples, validation, done, nil
	}
	if random, ok, err := randomSamples(c.ValDataset, b, opt, c.DataSeed+1); err != nil {
		done()
		return nil, nil, nil, fmt.Errorf("--val_dataset: %w", err)
	} else if ok {
		return samples, random, done, nil
	}
	opt.SplitRatio, opt.Shuffle = 1, c.ValDatasetShuffle
	_, validation, report, err = data.LoadSplit(c.ValDataset, b.chat, opt)
	end()
	if err != nil {
		done()
		return nil, nil, nil, fmt.Errorf("--val_dataset: %w", err)
	}
	c.logReport(e, "val_dataset", report)
	return samples, validation, done, nil
}

// dataOptions say how --dataset is read.
func (c *sftCmd) dataOptions(b *base) (data.Options, error) {
	opt, err := c.rowFlags.options(b)
	opt.Seed, opt.Shuffle, opt.Lazy = c.DataSeed, c.DatasetShuffle, c.LazyTokenize
	if len(c.ValDataset) == 0 && c.EvalStrategy != string(train.Never) {
		opt.SplitRatio = c.SplitDatasetRatio
	}
	return opt, err
}

// source finds the samples of --dataset as the flags want them: read at once or when they are trained on,
// each by itself or packed.
func (c *sftCmd) source(b *base, opt data.Options) (data.Source, data.Samples, *data.Report, func(), error) {
	if random, ok, err := randomSamples(c.Dataset, b, opt, c.DataSeed); ok {
		return c.pack(random, nil, &data.Report{}, opt, err)
	}
	if c.LazyTokenize {
		lazy, validation, report, err := data.LoadLazy(c.Dataset, b.chat, opt)
		if err != nil {
			return nil, nil, nil, nil, err
		}
		return lazy, validation, report, lazy.Close, nil
	}
	samples, validation, report, err := data.LoadSplit(c.Dataset, b.chat, opt)
	return c.pack(samples, validation, report, opt, err)
}

// pack is the end of source: samples as they are, or packed.
func (c *sftCmd) pack(samples, validation data.Samples, report *data.Report, opt data.Options, err error) (data.Source, data.Samples, *data.Report, func(), error) {
	if err != nil || !c.Packing {
		return samples, validation, report, func() {}, err
	}
	packed, err := data.NewPacked(samples, cmp.Or(c.PackingLength, opt.MaxLength), data.Packing(c.PackingStrategy))
	return packed, validation, report, func() {}, err
}

// build puts the model and the adapter to be trained into the backend's memory.
func (c *sftCmd) build(e *env, b *base, run *train.Run) error {
	set, params, err := c.adapter(e, b)
	if err != nil {
		return err
	}
	fingerprint, err := b.Fingerprint()
	if err != nil {
		return err
	}
	dtype, err := c.dtype(b)
	if err != nil {
		return err
	}
	if run.Backend, err = openBackend(e, c.deviceFlags); err != nil {
		return err
	}
	o := run.Options
	if n := c.PerDeviceTrainBatchSize; n > 1 {
		o.RowTokens = max(train.RowTokens, n*run.Samples.Bounds().Sample)
	}
	maxT, maxS, maxN := train.Room(run.Samples, run.Eval, o.StepSamples, o.RowTokens, o.Pad)
	e.logf("data: %d samples, %d for validation; %d a step, packed into rows of at most %d tokens", run.Samples.Len(), len(run.Eval), o.StepSamples, maxT)
	shown := newProgress(e)
	options := qwen2.Options{DType: dtype, Single: !c.DoubleQuant, Training: true, MaxT: maxT, MaxS: maxS, MaxN: maxN, Adapter: set, Progress: shown.loading}
	if err := c.fit(e, run.Backend, b.Model, &options); err != nil {
		return err
	}
	run.Model, err = qwen2.Build(run.Backend, b.Model, options)
	shown.end()
	if err != nil {
		return err
	}
	e.logf("memory: %.2f GiB in all, weights in %s%s; adapter: %d parameters on %d modules", float64(run.Model.Plan.Bytes)/(1<<30), storage(b.Model, dtype), loadRate(run.Backend), set.Len(), set.Modules())
	c.planned(e, run.Model)
	run.Set, run.Base = set, lora.Base{Name: lora.PortableName(b.HubID, cmp.Or(b.File, b.Dir)), Fingerprint: fingerprint}
	return ops.WriteF32(run.Backend, run.Model.Params, params)
}

// adapter is a new one by the flags, or that of --adapters.
func (c *sftCmd) adapter(e *env, b *base) (*lora.Set, []float32, error) {
	if dir := c.adapterDir(); dir != "" {
		set, params, err := loadAdapter(b, dir)
		if err == nil {
			e.logf("adapter: goes on from %s, whose rank, alpha, dropout and modules hold", dir)
		}
		return set, params, err
	}
	config := lora.Config{R: c.LoRARank, Alpha: c.LoRAAlpha, Dropout: c.LoRADropout, RSLoRA: c.UseRSLoRA, Targets: c.TargetModules, TargetRegex: c.TargetRegex}
	switch c.InitWeights {
	case "gaussian":
		config.Init = lora.InitGaussian
	case "true", "True":
	default:
		return nil, nil, usageError{fmt.Errorf("--init_weights %s: known but not supported: choose true, which is Kaiming uniform, or gaussian", c.InitWeights)}
	}
	switch {
	case c.LoRARank < 1 || c.LoRARank > lora.MaxRank:
		return nil, nil, usageError{fmt.Errorf("--lora_rank %d: must be 1 to %d", c.LoRARank, lora.MaxRank)}
	case !(c.LoRAAlpha > 0) || math.IsInf(c.LoRAAlpha, 0):
		return nil, nil, usageError{fmt.Errorf("--lora_alpha %v: must be a positive number", c.LoRAAlpha)}
	case !(c.LoRADropout >= 0 && c.LoRADropout < 1):
		return nil, nil, usageError{fmt.Errorf("--lora_dropout %v: must be at least 0 and less than 1", c.LoRADropout)}
	}
	set, err := lora.New(b.Config, config)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--target_modules %s, --target_regex %q: %w", strings.Join(c.TargetModules, " "), c.TargetRegex, err)}
	}
	return set, set.Init(uint64(c.Seed)), nil
}

// printResult prints where the adapter is, and what the run came to.
func (c *sftCmd) printResult(e *env, r train.Result) error {
	if r.Last != "" {
		fmt.Fprintf(e.out, "last_model_checkpoint: %s\n", r.Last)
	}
	if r.Best != "" {
		fmt.Fprintf(e.out, "best_model_checkpoint: %s (eval_%s %.6g)\n", r.Best, strings.TrimPrefix(c.MetricForBestModel, "eval_"), r.BestMetric)
	}
	_, err := fmt.Fprintf(e.out, "%d steps, last loss %.6g, %d tokens (%d trained on), %.1f s, %.0f tokens/s; a step takes %.4g s (median after the first 3)\n",
		r.Steps, r.Loss, r.Tokens, r.Labels, r.Seconds, r.TokensPerSecond, r.StepSeconds)
	return err
}
