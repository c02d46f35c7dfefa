package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hubCache makes a Hugging Face cache of two datasets, and points the program at it.
func hubCache(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HF_HUB_CACHE", dir)
	t.Setenv("MODELSCOPE_CACHE", filepath.Join(dir, "none"))
	for id, files := range map[string]map[string]string{
		"AI-ModelScope--alpaca-gpt4-data-zh": {"alpaca_gpt4_data_zh.json": "[" + strings.Repeat(`{"instruction":"翻译","input":"桥","output":"bridge"},`, 19) + `{"instruction":"a","input":"","output":"b"}]`, "dataset_infos.json": "{}"},
		"AI-ModelScope--alpaca-gpt4-data-en": {"train.csv": "instruction,input,output\n" + strings.Repeat("Name it,\"a, b\",c\n", 20), "README.md": "---\nlicense: mit\n---\n"},
	} {
		repo := filepath.Join(dir, "datasets--"+id)
		for _, d := range []string{"refs", "snapshots/1"} {
			if err := os.MkdirAll(filepath.Join(repo, d), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(repo, "refs/main"), "1")
		for name, text := range files {
			write(t, filepath.Join(repo, "snapshots/1", name), text)
		}
	}
}

// selfCognition writes n rows about the model, and two that are no rows.
func selfCognition(n int) string {
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, `{"query":"who %d","response":"{{NAME}} of {{AUTHOR}}","tag":"%s"}`+"\n", i, []string{"zh", "en"}[i%2])
	}
	return text.String()
}

func TestMixedDatasets(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	hubCache(t)
	write(t, filepath.Join(work, "self_cognition.json"), selfCognition(8))
	args := []string{"sft", "--model", model, "--dataset", "AI-ModelScope/alpaca-gpt4-data-zh#5", "AI-ModelScope/alpaca-gpt4-data-en#7", "self_cognition.json",
		"--num_train_epochs", "3", "--max_length", "400", "--system", "", "--model_name", "小黄", "Xiao Huang", "--model_author", "魔搭", "ModelScope",
		"--save_steps", "4", "--add_version", "false", "--logging_steps", "1"}
	o := ok(t, work, "", append(args, "--output_dir", "eager")...)
	if !strings.Contains(o.stderr, "data: 20 samples, 0 for validation") || !strings.Contains(o.stderr, "step 6/6") {
		t.Errorf("standard error:\n%s", o.stderr)
	}
	adapter := func(dir string) string {
		return read(t, filepath.Join(work, dir, "checkpoint-6", "adapter_model.safetensors"))
	}
	// Rows read when they are asked for give the same run, however many threads read them.
	for _, workers := range []string{"0", "3"} {
		ok(t, work, "", append(args, "--output_dir", "lazy"+workers, "--lazy_tokenize", "true", "--dataloader_num_workers", workers)...)
		if adapter("lazy"+workers) != adapter("eager") {
			t.Errorf("lazily read with %s workers the adapter is another", workers)
		}
	}
	lazy := append(args, "--output_dir", "lazy0", "--lazy_tokenize", "true")
	whole := adapter("lazy0")
	if err := os.RemoveAll(filepath.Join(work, "lazy0", "checkpoint-6")); err != nil {
		t.Fatal(err)
	}
	ok(t, work, "", append(lazy, "--resume_from_checkpoint", "lazy0")...)
	if adapter("lazy0") != whole {
		t.Error("a resumed run, lazily read, ends elsewhere")
	}
	write(t, filepath.Join(work, "self_cognition.json"), selfCognition(7)+`{"query":"who","response":"another"}`+"\n")
	if o := qlora(t, work, "", append(lazy, "--resume_from_checkpoint", "lazy0")...); o.code != exitUsage || !strings.Contains(o.stderr, "the dataset was") {
		t.Errorf("resumed with another file: exit status %d\n%s", o.code, o.stderr)
	}
}

func TestPackingAndSplits(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	hubCache(t)
	write(t, filepath.Join(work, "a.jsonl"), selfCognition(40)+"{}\n")
	write(t, filepath.Join(work, "b.txt"), "one\ntwo\n\nthree\n")
	args := func(more ...string) []string {
		return append([]string{"sft", "--model", model, "--num_train_epochs", "1", "--system", "", "--add_version", "false", "--lora_rank", "2"}, more...)
	}
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"packed":     {[]string{"--dataset", "a.jsonl", "--packing", "true", "--packing_length", "500"}, []string{"data: 4 samples", "step 1/1", "a.jsonl, row 41"}}, // 10 of 48 or 49 tokens to a unit
		"sequential": {[]string{"--dataset", "a.jsonl", "--packing", "true", "--packing_length", "500", "--packing_strategy", "sequential"}, []string{"data: 4 samples", "step 1/1"}},
		"split":      {[]string{"--dataset", "a.jsonl#30", "b.txt", "--split_dataset_ratio", "0.1"}, []string{"data: 29 samples, 4 for validation"}},
		"validation": {[]string{"--dataset", "b.txt#7", "--val_dataset", "a.jsonl#5"}, []string{"data: 7 samples, 5 for validation", "7 rows are wanted of 3", "5 rows hold {{NAME}}"}},
		"columns":    {[]string{"--dataset", "a.jsonl#3", "--columns", `{"Response": "tail", "query": "response", "tail": "x"}`}, []string{"data: 3 samples"}},
	} {
		o := ok(t, work, "", args(append(c.args, "--output_dir", strings.ReplaceAll(name, " ", "_"))...)...)
		for _, want := range c.want {
			if !strings.Contains(o.stderr, want) {
				t.Errorf("%s: standard error lacks %q:\n%s", name, want, o.stderr)
			}
		}
	}
	// The rows set aside lie in the run's folder, as a dataset that measures the same loss.
	aside := ok(t, work, "", "data", "--model", model, "--system", "", "--dataset", filepath.Join("split", "val_dataset.jsonl"), "--json")
	if !strings.Contains(aside.stdout, `"kept": 4`) {
		t.Errorf("the rows set aside: %s", aside.stdout)
	}
	if _, err := os.Stat(filepath.Join(work, "validation", "val_dataset.jsonl")); !os.IsNotExist(err) {
		t.Errorf("rows of --val_dataset are kept again: %v", err)
	}
	for want, more := range map[string][]string{
		"give one of them":                                      {"--dataset", "a.jsonl", "--packing", "true", "--lazy_tokenize", "true", "--max_length", "100"},
		"--lazy_tokenize needs --max_length":                    {"--dataset", "a.jsonl", "--lazy_tokenize", "true"},
		"raise --packing_length":                                {"--dataset", "a.jsonl", "--packing", "true", "--packing_length", "40"},
		"choose binpack or sequential":                          {"--dataset", "a.jsonl", "--packing_strategy", "x"},
		"--columns: ":                                           {"--dataset", "a.jsonl", "--columns", "query"},
		"5 rows for validation, but there are 3":                {"--dataset", "a.jsonl", "--val_dataset", "b.txt#5"},
		"no such file or folder, and not in the cache of a hub": {"--dataset", "org/none#5"},
		"leaves no row to train on":                             {"--dataset", "a.jsonl#1", "--split_dataset_ratio", "0.5"},
	} {
		if o := qlora(t, work, "", args(more...)...); o.code != exitUsage || !strings.Contains(o.stderr, want) {
			t.Errorf("%q: exit status %d, want %q\n%s", more, o.code, want, o.stderr)
		}
	}
}

// A file of a million rows starts training within 5 s and 500 MB, where its rows are read when they are trained on.
func TestMillionRows(t *testing.T) {
	model, work := miniModel(t), t.TempDir()
	file, err := os.Create(filepath.Join(work, "million.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	const row = `{"query":"why is the sky blue on a clear day?","response":"because air scatters blue light more than red light"}` + "\n"
	for range 1000 { // in parts: what this process holds when it starts the program counts as the program's
		if _, err := file.WriteString(strings.Repeat(row, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	o := ok(t, work, "", "sft", "--model", model, "--dataset", "million.jsonl", "--lazy_tokenize", "true", "--max_length", "400", "--dataloader_num_workers", "4",
		"--max_steps", "1", "--save_strategy", "no", "--report_to", "none")
	if took := time.Since(began); took > 5*time.Second || o.memory > 500<<20 || !strings.Contains(o.stderr, "data: 1000000 samples") {
		t.Errorf("one step took %v and %d MB\n%s", took, o.memory>>20, o.stderr)
	}
	t.Logf("%v, %d MB", time.Since(began), o.memory>>20)
}
