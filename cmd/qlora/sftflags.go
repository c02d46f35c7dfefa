package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"qlora/model/data"
	"qlora/model/train"
)

// sftCmd is `qlora sft`. Names and defaults are ms-swift's.
type sftCmd struct {
	modelFlags
	randomFlags
	deviceFlags
	Dataset           []string `name:"dataset" group:"Data" sep:"none" placeholder:"DATA..." help:"Training data, as qlora data --help describes it: 'alpaca.jsonl#500' builtin:self-cognition. To measure by, random:2048x12 alone is 12 rows of 2048 random tokens, random:2048x12:0.3 trains on the last 30 % of each."`
	ValDataset        []string `name:"val_dataset" group:"Data" sep:"none" placeholder:"DATA..." help:"Validation data, likewise; of one with a count the first rows."`
	ValDatasetShuffle bool     `name:"val_dataset_shuffle" group:"Data" help:"Choose the rows of validation data with a count at random."`
	SplitDatasetRatio float64  `name:"split_dataset_ratio" group:"Data" default:"0" help:"Share of each dataset set aside for validation where there is no --val_dataset."`
	rowFlags
	lossFlags
	DatasetShuffle         bool   `name:"dataset_shuffle" group:"Data" default:"true" help:"Shuffle the training data once."`
	TrainDataloaderShuffle bool   `name:"train_dataloader_shuffle" group:"Data" default:"true" help:"Shuffle anew for every epoch. With both false rows keep their order."`
	DataSeed               uint64 `name:"data_seed" group:"Data" default:"42" help:"Seed of the choice of rows and of the order of samples."`
	LazyTokenize           bool   `name:"lazy_tokenize" group:"Data" help:"Read and tokenise rows when they are trained on: a large file starts at once, in little memory. A row that cannot be used is found only then, and another stands in for it."`
	DataloaderNumWorkers   int    `name:"dataloader_num_workers" group:"Data" default:"1" help:"Threads that read steps ahead of training. Their number changes no result."`
	Packing                bool   `name:"packing" group:"Data" help:"Count several samples, --packing_length tokens together at most, as one of a step. They still do not see each other."`
	PackingLength          int    `name:"packing_length" group:"Data" help:"By default --max_length."`
	PackingStrategy        string `name:"packing_strategy" group:"Data" default:"binpack" placeholder:"NAME" help:"binpack (best-fit decreasing, a thousand samples at a time) or sequential (in their order)."`

	TunerType     string   `name:"tuner_type" group:"Adapter" default:"lora" placeholder:"NAME" help:"lora."`
	LoRARank      int      `name:"lora_rank" group:"Adapter" default:"8" help:"Rank R of A (R, in) and B (out, R)."`
	LoRAAlpha     float64  `name:"lora_alpha" group:"Adapter" default:"32" help:"The adapter's output is scaled by alpha / rank."`
	LoRADropout   float64  `name:"lora_dropout" group:"Adapter" default:"0.05" help:"Dropout on the input of every A."`
	UseRSLoRA     bool     `name:"use_rslora" group:"Adapter" help:"Scale by alpha / sqrt(rank)."`
	LoRAPLRRatio  float64  `name:"lorap_lr_ratio" group:"Adapter" default:"1" help:"LoRA+: learning rate of B over that of A."`
	TargetModules []string `name:"target_modules" group:"Adapter" sep:"none" default:"all-linear" placeholder:"NAME..." help:"Modules to adapt: all-linear, or names such as q_proj v_proj."`
	InitWeights   string   `name:"init_weights" group:"Adapter" default:"true" placeholder:"NAME" help:"What A starts as: true is Kaiming uniform, gaussian normal of deviation 1/rank. B starts at zero."`
	TargetRegex   string   `name:"target_regex" group:"Adapter" placeholder:"REGEX" help:"Modules to adapt, by a pattern of the whole name; goes before --target_modules."`

	NumTrainEpochs            float64 `name:"num_train_epochs" group:"Optimizer" default:"3" help:"How often the data is gone through."`
	MaxSteps                  int     `name:"max_steps" group:"Optimizer" default:"-1" help:"Optimizer steps, in place of --num_train_epochs; -1: by epochs."`
	PerDeviceTrainBatchSize   int     `name:"per_device_train_batch_size" group:"Optimizer" default:"1" help:"Samples of a step are this times the accumulation steps. So many of the longest samples fit in a packed row, and 2048 tokens at least: more of them are a little faster, and take more memory."`
	GradientAccumulationSteps int     `name:"gradient_accumulation_steps" group:"Optimizer" help:"By default what makes a step of 16 samples. A step is packed into as few rows as fit, which gives the same gradient."`
	LearningRate              float64 `name:"learning_rate" group:"Optimizer" default:"1e-4" help:"Highest learning rate."`
	LRSchedulerType           string  `name:"lr_scheduler_type" group:"Optimizer" default:"cosine" placeholder:"NAME" help:"cosine, linear, constant or constant_with_warmup."`
	WarmupRatio               float64 `name:"warmup_ratio" group:"Optimizer" default:"0" help:"Share of the steps in which the rate climbs from 0."`
	WarmupSteps               int     `name:"warmup_steps" group:"Optimizer" default:"0" help:"The same, in steps."`
	WeightDecay               float64 `name:"weight_decay" group:"Optimizer" default:"0.1" help:"Of AdamW."`
	AdamBeta1                 float64 `name:"adam_beta1" group:"Optimizer" default:"0.9" help:"Of AdamW."`
	AdamBeta2                 float64 `name:"adam_beta2" group:"Optimizer" default:"0.95" help:"Of AdamW."`
	AdamEpsilon               float64 `name:"adam_epsilon" group:"Optimizer" default:"1e-8" help:"Of AdamW."`
	MaxGradNorm               float64 `name:"max_grad_norm" group:"Optimizer" default:"1" help:"Longer gradients are scaled down to this norm."`
	NEFTuneNoiseAlpha         float64 `name:"neftune_noise_alpha" group:"Optimizer" default:"0" help:"NEFTune: in training, noise up to alpha / sqrt(tokens x width) on every element of the embeddings; 5 is usual, 0 none."`
	LabelSmoothingFactor      float64 `name:"label_smoothing_factor" group:"Optimizer" default:"0" help:"Share of the target that is spread evenly over the vocabulary, in training and validation."`
	Seed                      uint32  `name:"seed" group:"Optimizer" default:"42" help:"Seed of A, of dropout and of noise. The same flags give the same bytes."`

	OutputDir            string  `name:"output_dir" group:"Output" placeholder:"DIR" help:"Runs are written below it, as v0-20250405-142300 and so on. By default output/ and the model's name."`
	AddVersion           bool    `name:"add_version" group:"Output" default:"true" help:"false writes into --output_dir itself."`
	ResumeFromCheckpoint string  `name:"resume_from_checkpoint" group:"Output" placeholder:"DIR" help:"Go on from a checkpoint, or from the last one of a run's folder, bit for bit as if the run had not ended. All other flags must be the same."`
	LoggingSteps         float64 `name:"logging_steps" group:"Output" default:"5" help:"Steps from one line of logging.jsonl to the next; below 1 a share of the run's."`
	LoggingFirstStep     bool    `name:"logging_first_step" group:"Output" default:"true" help:"Log the first step too."`
	EvalStrategy         string  `name:"eval_strategy" group:"Output" placeholder:"NAME" help:"no, steps or epoch. By default that of saving, with validation data."`
	EvalSteps            float64 `name:"eval_steps" group:"Output" help:"Steps from one validation to the next; below 1 a share of the run's. By default --save_steps."`
	SaveStrategy         string  `name:"save_strategy" group:"Output" default:"steps" placeholder:"NAME" help:"no, steps or epoch. The last step is always saved unless it is no."`
	SaveSteps            float64 `name:"save_steps" group:"Output" default:"500" help:"Steps from one checkpoint to the next; below 1 a share of the run's."`
	SaveTotalLimit       int     `name:"save_total_limit" group:"Output" help:"Checkpoints to keep: the last ones, and the best. By default all."`

	MetricForBestModel      string   `name:"metric_for_best_model" group:"Output" default:"loss" placeholder:"NAME" help:"What the best checkpoint is chosen by: loss or token_acc of validation."`
	GreaterIsBetter         *bool    `name:"greater_is_better" group:"Output" help:"Whether more of it is better. By default for token_acc alone."`
	EarlyStopInterval       int      `name:"early_stop_interval" group:"Output" help:"End after this many checkpoints in a row without a better validation. By default never."`
	CreateCheckpointSymlink bool     `name:"create_checkpoint_symlink" group:"Output" help:"Link the last and the best checkpoint as last and best in the run's folder."`
	ReportTo                []string `name:"report_to" group:"Output" sep:"none" default:"tensorboard" placeholder:"NAME" help:"tensorboard writes event files to runs/ and draws images/; none does not."`
}

func (sftCmd) Help() string {
	return `Examples
  qlora sft --model MODEL --dataset builtin:self-cognition --num_train_epochs 30 --learning_rate 1e-3 \
    --lora_rank 16 --lora_dropout 0 --gradient_accumulation_steps 2 --output_dir output
  qlora sft --model Qwen/Qwen2.5-0.5B-Instruct --dataset train.jsonl --val_dataset val.jsonl --eval_steps 50
  qlora sft --model MODEL --dataset more.jsonl --adapters output/v0-20250405-142300/checkpoint-10
  qlora sft --model qwen2.5-7b --random_weights --dataset random:2048x12 --gradient_accumulation_steps 1 \
    --max_steps 12 --save_strategy no`
}

// options are the settings of the training loop, less validation. The loop checks the numbers.
func (c *sftCmd) options() (train.Options, error) {
	accumulation := c.GradientAccumulationSteps
	if accumulation == 0 && c.PerDeviceTrainBatchSize > 0 {
		accumulation = (16 + c.PerDeviceTrainBatchSize - 1) / c.PerDeviceTrainBatchSize
	}
	switch {
	case c.TunerType != "lora":
		return train.Options{}, fmt.Errorf("--tuner_type %s: known but not supported: say --tuner_type lora; a higher --lora_rank learns more", c.TunerType)
	case len(c.Dataset) == 0:
		return train.Options{}, errors.New("--dataset is missing: write `--dataset` and one or more files, or builtin:self-cognition")
	case c.PerDeviceTrainBatchSize < 1 || accumulation < 1:
		return train.Options{}, errors.New("--per_device_train_batch_size and --gradient_accumulation_steps must be at least 1")
	case c.LazyTokenize && c.Packing:
		return train.Options{}, errors.New("--packing needs the length of every sample, which --lazy_tokenize does not know: give one of them")
	case c.LazyTokenize && c.MaxLength == 0:
		return train.Options{}, errors.New("--lazy_tokenize needs --max_length: memory is planned before the longest row is known")
	case c.PackingLength < 0 || c.DataloaderNumWorkers < 0:
		return train.Options{}, errors.New("--packing_length and --dataloader_num_workers must not be negative")
	case !slices.Contains([]data.Packing{data.BinPack, data.Sequential}, data.Packing(c.PackingStrategy)):
		return train.Options{}, fmt.Errorf("--packing_strategy %s: choose %s or %s", c.PackingStrategy, data.BinPack, data.Sequential)
	case !(c.SplitDatasetRatio >= 0 && c.SplitDatasetRatio < 1):
		return train.Options{}, fmt.Errorf("--split_dataset_ratio %v: must be at least 0 and less than 1", c.SplitDatasetRatio)
	}
	for _, to := range c.ReportTo {
		if !slices.Contains([]string{"tensorboard", "all", "none"}, to) {
			return train.Options{}, fmt.Errorf("--report_to %s: known but not supported: choose tensorboard or none", to)
		}
	}
	for flag, strategy := range map[string]string{"save_strategy": c.SaveStrategy, "eval_strategy": cmp.Or(c.EvalStrategy, "no")} {
		if !slices.Contains([]train.Strategy{train.Never, train.Steps, train.Epoch}, train.Strategy(strategy)) {
			return train.Options{}, fmt.Errorf("--%s %s: choose no, steps or epoch", flag, strategy)
		}
	}
	o := train.Options{
		Epochs: c.NumTrainEpochs, MaxSteps: max(c.MaxSteps, 0), StepSamples: c.PerDeviceTrainBatchSize * accumulation,
		LearningRate: c.LearningRate, WeightDecay: c.WeightDecay, LRRatio: c.LoRAPLRRatio,
		Beta1: c.AdamBeta1, Beta2: c.AdamBeta2, Eps: c.AdamEpsilon, MaxGradNorm: c.MaxGradNorm,
		NEFTuneAlpha: c.NEFTuneNoiseAlpha, LabelSmoothing: c.LabelSmoothingFactor,
		Schedule: c.LRSchedulerType, WarmupRatio: c.WarmupRatio, WarmupSteps: c.WarmupSteps,
		Seed: c.Seed, DataSeed: c.DataSeed, Shuffle: c.TrainDataloaderShuffle, DatasetShuffle: c.DatasetShuffle,
		BestMetric: strings.TrimPrefix(c.MetricForBestModel, "eval_"), GreaterIsBetter: c.greaterIsBetter(), EarlyStop: c.EarlyStopInterval,
		LoggingFirstStep: c.LoggingFirstStep, SaveStrategy: train.Strategy(c.SaveStrategy), SaveTotalLimit: c.SaveTotalLimit,
	}
	if err := c.intervals(&o, 1); err != nil {
		return o, err
	}
	return o, o.Check()
}

// intervals sets the steps from one line of the log, checkpoint or validation to the next, of a run of total steps.
func (c *sftCmd) intervals(o *train.Options, total int) error {
	for _, f := range []struct {
		flag  string
		steps float64 // below 1: a share of the run's, as in transformers
		into  *int
	}{{"logging_steps", c.LoggingSteps, &o.LoggingSteps}, {"save_steps", c.SaveSteps, &o.SaveSteps}, {"eval_steps", cmp.Or(c.EvalSteps, c.SaveSteps), &o.EvalSteps}} {
		switch {
		case f.steps > 0 && f.steps < 1:
			*f.into = int(math.Ceil(f.steps * float64(total)))
		case f.steps != math.Trunc(f.steps) || math.Abs(f.steps) > math.MaxInt32:
			return fmt.Errorf("--%s %v: a number of steps, or below 1 a share of the run's", f.flag, f.steps)
		default:
			*f.into = int(f.steps)
		}
	}
	return nil
}

// greaterIsBetter is ms-swift's rule where the flag is left out.
func (c *sftCmd) greaterIsBetter() bool {
	if c.GreaterIsBetter != nil {
		return *c.GreaterIsBetter
	}
	return !strings.Contains(c.MetricForBestModel, "loss")
}

// evaluation says when to validate: as ms-swift, with saving, and never without data.
func (c *sftCmd) evaluation(samples int) train.Strategy {
	if samples == 0 {
		return train.Never
	}
	return train.Strategy(cmp.Or(c.EvalStrategy, c.SaveStrategy))
}
