package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRandomTokens trains a model on random tokens, by themselves and packed.
func TestRandomTokens(t *testing.T) {
	work, model := t.TempDir(), miniModel(t)
	o := ok(t, work, "", "sft", "--model", model, "--dataset", "random:40x6:0.25", "--gradient_accumulation_steps", "2", "--max_steps", "3",
		"--backend", "cpu", "--report_to", "none", "--save_strategy", "no", "--output_dir", "out")
	if !strings.Contains(o.stderr, "data: 6 samples, 0 for validation; 2 a step, packed into rows of at most 80 tokens") ||
		!strings.Contains(o.stdout, "3 steps, last loss ") || !strings.Contains(o.stdout, "240 tokens (60 trained on)") {
		t.Errorf("%s%s", o.stderr, o.stdout)
	}
	o = ok(t, work, "", "sft", "--model", model, "--dataset", "random:40x6", "--packing", "--packing_length", "120", "--gradient_accumulation_steps", "1",
		"--num_train_epochs", "1", "--backend", "cpu", "--report_to", "none", "--save_strategy", "no", "--output_dir", "out")
	if !strings.Contains(o.stdout, "2 steps, ") || !strings.Contains(o.stdout, "240 tokens (234 trained on)") {
		t.Errorf("packed: %s%s", o.stderr, o.stdout)
	}
	o = ok(t, work, "", "eval", "--model", model, "--dataset", "random:40x6:0.25", "--backend", "cpu", "--max_new_tokens", "8")
	if !strings.HasPrefix(o.stdout, "nll ") || !strings.Contains(o.stdout, "label_tokens 60") {
		t.Errorf("eval: %s%s", o.stderr, o.stdout)
	}
}

func TestRandomRefused(t *testing.T) {
	work, model := t.TempDir(), miniModel(t)
	write(t, filepath.Join(work, "a.jsonl"), `{"query": "a", "response": "b"}`+"\n")
	random := []string{"--random_weights", "--model"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{append(random, "qwen2.5-0.5b", "--dataset", "a.jsonl"), "no tokenizer to read a.jsonl with"},
		{append(random, "qwen2.5-0.5b", "--dataset", "random:8x8", "--val_dataset", "a.jsonl"), "no tokenizer to read a.jsonl with"},
		{append(random, "qwen2.5-8b", "--dataset", "random:8x8"), "choose qwen2.5-0.5b, "},
		{append(random, model, "--dataset", "random:8x8"), "choose qwen2.5-0.5b, "},
		{append(random, "qwen2.5-0.5b", "--dataset", "random:40000x1"), "longer than the 32768 tokens"},
		{[]string{"--model", model, "--dataset", "random:8"}, "write random:TOKENSxROWS"},
		{[]string{"--model", model, "--dataset", "random:8x8", "a.jsonl"}, "stands alone"},
		{[]string{"--model", model, "--dataset", "random:8x8", "--split_dataset_ratio", "0.5"}, "leave out"},
		{[]string{"--model", model, "--dataset", "random:8x8", "--backend", "cpu", "--profile_ops"}, "only launches on a card are timed"},
	} {
		if o := qlora(t, work, "", append([]string{"sft"}, c.args...)...); o.code == 0 || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%q: exit status %d, want an error with %q:\n%s", c.args, o.code, c.want, o.stderr)
		}
	}
	adapter := filepath.Join(work, "adapter")
	if err := os.Mkdir(adapter, 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(adapter, "adapter_config.json"), "{}")
	write(t, filepath.Join(adapter, "args.json"), `{"model": "qwen2.5-7b", "random_weights": true}`)
	if o := qlora(t, work, "", "infer", "--adapters", adapter); o.code == 0 || !strings.Contains(o.stderr, "trained on random weights (qwen2.5-7b)") {
		t.Errorf("an adapter of random weights: exit status %d\n%s", o.code, o.stderr)
	}
}
