package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qlora/internal/tfevents/tfeventstest"
)

// A run by a configuration file leaves what other tools look for.
func TestOutputsOfARun(t *testing.T) {
	work := t.TempDir()
	write(t, filepath.Join(work, "train.jsonl"), trainingData)
	write(t, filepath.Join(work, "run.yaml"), "model: "+miniModel(t)+`
dataset: [train.jsonl]
val_dataset: train.jsonl
max_steps: 3
save_steps: 1
logging_steps: 1
gradient_accumulation_steps: 2
lora_rank: 4
init_weights: gaussian
metric_for_best_model: token_acc
create_checkpoint_symlink: true
model_name: Ada
ENV: {CUDA_VISIBLE_DEVICES: 0}
`)
	o := ok(t, work, "", "sft", "run.yaml", "--max_steps", "4", "--output_dir", "out", "--add_version", "false")
	if !strings.Contains(o.stderr, "run.yaml:13:1: ENV has no effect") || !strings.Contains(o.stdout, "(eval_token_acc ") {
		t.Errorf("standard output %s, standard error:\n%s", o.stdout, o.stderr)
	}
	run := filepath.Join(work, "out")
	if read(t, filepath.Join(run, "run.yaml")) != read(t, filepath.Join(work, "run.yaml")) {
		t.Error("the configuration file is not in the run's folder")
	}
	var args map[string]any
	if err := json.Unmarshal([]byte(read(t, filepath.Join(run, "args.json"))), &args); err != nil {
		t.Fatal(err)
	}
	if args["max_steps"] != 4.0 || args["lora_rank"] != 4.0 {
		t.Errorf("args.json: %v", args)
	}
	var config map[string]any
	if err := json.Unmarshal([]byte(read(t, filepath.Join(run, "last", "adapter_config.json"))), &config); err != nil {
		t.Fatal(err)
	}
	if config["init_lora_weights"] != "gaussian" || config["r"] != 4.0 {
		t.Errorf("adapter_config.json: %v", config)
	}
	if to, err := os.Readlink(filepath.Join(run, "last")); err != nil || to != "checkpoint-4" {
		t.Errorf("last links to %s, %v", to, err)
	}
	if to, err := os.Readlink(filepath.Join(run, "best")); err != nil || !strings.Contains(o.stdout, "best_model_checkpoint: out/"+to+" ") {
		t.Errorf("best links to %s, %v; standard output %s", to, err, o.stdout)
	}
	series, err := tfeventstest.Series(filepath.Join(run, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	if len(series["train/loss"]) != 4 || len(series["eval/token_acc"]) != 4 {
		t.Errorf("TensorBoard would show %v", series)
	}
	if images, err := filepath.Glob(filepath.Join(run, "images", "*.png")); err != nil || len(images) != len(series) {
		t.Errorf("images %v of %d tags, %v", images, len(series), err)
	}

	if strings.Contains(o.stderr, "nothing is evaluated") {
		t.Errorf("standard error of a run with validation data:\n%s", o.stderr)
	}

	// The args.json of a run is a configuration file too, here of a run that is to report nothing.
	ok(t, work, "", "sft", filepath.Join("out", "args.json"), "--output_dir", "again", "--report_to", "none")
	same := filepath.Join("checkpoint-4", "adapter_model.safetensors")
	if read(t, filepath.Join(run, same)) != read(t, filepath.Join(work, "again", same)) {
		t.Error("a run by the args.json of another gives another adapter")
	}
	for _, name := range []string{"runs", "images"} {
		if _, err := os.Stat(filepath.Join(work, "again", name)); !os.IsNotExist(err) {
			t.Errorf("--report_to none leaves %s: %v", name, err)
		}
	}

	// A pattern of the shell that fits all checkpoints of a run means its last, and says so.
	more := ok(t, work, "", "sft", "--adapters", filepath.Join("out", "checkpoint-4"), filepath.Join("out", "checkpoint-1"), "--dataset", "train.jsonl", "--max_steps", "1",
		"--save_strategy", "no", "--output_dir", "more")
	if !strings.Contains(more.stderr, "notice: --adapters names 2 checkpoints of one run, as a pattern does: the last is used, out/checkpoint-4.") ||
		!strings.Contains(more.stderr, "adapter: goes on from out/checkpoint-4,") || strings.Contains(more.stdout, "last_model_checkpoint") {
		t.Errorf("several checkpoints: %s%s", more.stdout, more.stderr)
	}
	if o := qlora(t, work, "", "sft", "--adapters", "out/checkpoint-4", "again/checkpoint-4", "--dataset", "train.jsonl"); o.code != exitUsage || !strings.Contains(o.stderr, "one adapter") {
		t.Errorf("checkpoints of two runs: exit status %d, %s", o.code, o.stderr)
	}

	for flags, want := range map[string]string{
		"--report_to wandb":                      "--report_to wandb: known but not supported: choose tensorboard or none",
		"--init_weights pissa":                   "--init_weights pissa: known but not supported: choose true",
		"--metric_for_best_model rouge-l":        "--metric_for_best_model rouge-l: choose loss or token_acc",
		"--early_stop_interval 2 --eval_steps 1": "--early_stop_interval 2 counts checkpoints",
		"--early_stop_interval 1 --eval_steps 1": "notice: no validation data, so that nothing is evaluated",
	} {
		args := append([]string{"sft", "--model", args["model"].(string), "--dataset", "train.jsonl", "--output_dir", "bad"}, strings.Fields(flags)...)
		if o := qlora(t, work, "", args...); o.code != exitUsage || !strings.Contains(o.stderr, want) {
			t.Errorf("%s: exit status %d, %s", flags, o.code, o.stderr)
		}
	}
}
