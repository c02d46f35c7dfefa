package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qlora/model/export"
)

// What is exported answers as the adapter it was made of.
func TestExportedAnswersAlike(t *testing.T) {
	r := train4(t, "--learning_rate", "1e-1")
	adapter := filepath.Join(r.work, r.checkpoint)
	ask := func(flags ...string) string {
		t.Helper()
		return ok(t, r.work, "hi\nwho", append([]string{"infer", "--temperature", "0", "--repetition_penalty", "1.4", "--max_new_tokens", "24", "--torch_dtype", "float32", "--system", "Be brief."}, flags...)...).stdout
	}
	export := func(want string, flags ...string) {
		t.Helper()
		o := ok(t, r.work, "", append([]string{"export", "--adapters", adapter}, flags...)...)
		if o.stdout != want+"\n" {
			t.Errorf("%v: standard output %q, want %q", flags, o.stdout, want)
		}
	}
	want := ask("--adapters", adapter)
	if want == ask("--model", r.model) {
		t.Fatal("the adapter changes no answer, so this test says nothing")
	}
	export(adapter+"-merged", "--merge_lora", "true")
	if got := ask("--model", adapter+"-merged"); got != want {
		t.Errorf("merged: %q, want %q", got, want)
	}
	if args := read(t, filepath.Join(adapter, "args.json")); args == "" {
		t.Error("the checkpoint lost its args.json")
	}
	export("gguf", "--to_gguf", "model", "--quant", "f32", "--output_dir", "gguf")
	if got := ask("--model", "gguf/model-f32.gguf"); got != want {
		t.Errorf("GGUF: %q, want %q", got, want)
	}
	ok(t, r.work, "", "export", "--model", "gguf/model-f32.gguf", "--to_hf", "true", "--torch_dtype", "float32", "--output_dir", "hf")
	if got := ask("--model", "hf"); got != want {
		t.Errorf("GGUF as a folder: %q, want %q", got, want)
	}
	export("peft", "--to_peft_format", "true", "--output_dir", "peft")
	if got := ask("--model", r.model, "--adapters", "peft"); got != want {
		t.Errorf("as one adapter: %q, want %q", got, want)
	}
	ok(t, r.work, "", "merge-lora", "--model", r.model, "--adapters", "a="+adapter, "b="+adapter, "--adapter_weights", "0.25", "0.75", "--output_dir", "both")
	if got := ask("--model", "both"); got != want {
		t.Errorf("a quarter and three quarters: %q, want %q", got, want)
	}
	export("ollama", "--to_ollama", "true", "--quant", "f16", "--output_dir", "ollama")
	for _, file := range []string{"adapter.gguf", "model-f16.gguf"} {
		if _, err := os.Stat(filepath.Join(r.work, "ollama", file)); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []string{"FROM ./model-f16.gguf\nADAPTER ./adapter.gguf\n", `SYSTEM """Be brief."""`, `PARAMETER stop "<|im_end|>"`} {
		if text := read(t, filepath.Join(r.work, "ollama", "Modelfile")); !strings.Contains(text, want) {
			t.Errorf("the Modelfile lacks %q:\n%s", want, text)
		}
	}
	export("gguf-adapter", "--to_gguf", "adapter", "--output_dir", "gguf-adapter")

	before := read(t, filepath.Join(adapter+"-merged", "model.safetensors"))
	for _, c := range []struct {
		flags []string
		code  int
		want  string
	}{
		{[]string{"--merge_lora", "true"}, exitUsage, "-merged is there already, and nothing is replaced"},
		{[]string{"--to_gguf", "model", "--output_dir", "gguf"}, exitUsage, "is there already"},
		{nil, exitUsage, "what is to be written?"},
		{[]string{"--merge_lora", "true", "--to_gguf", "model"}, exitUsage, "one thing is written at a time"},
		{[]string{"--to_gguf", "everything"}, exitUsage, "choose adapter or model"},
		{[]string{"--to_gguf", "model", "--quant", "q5_k", "--output_dir", "x"}, exitUsage, "choose f32, f16, bf16, q8_0 or q4_0"},
		{[]string{"--merge_lora", "true", "--torch_dtype", "int8", "--output_dir", "x"}, exitUsage, "choose bfloat16, float16 or float32"},
		{[]string{"--merge_lora", "true", "--max_shard_size", "much", "--output_dir", "x"}, exitUsage, "write it as 23GiB"},
		{[]string{"--to_hf", "true"}, exitUsage, "leave --adapters out"},
		{[]string{"--push_to_hub", "true"}, exitUsage, "nothing is uploaded"},
		{[]string{"--check", "triton"}, exitUsage, "choose among vllm"},
	} {
		o := qlora(t, r.work, "", append([]string{"export", "--adapters", adapter}, c.flags...)...)
		if o.code != c.code || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%v: exit status %d, want %q in\n%s", c.flags, o.code, c.want, o.stderr)
		}
		if exists(filepath.Join(r.work, "x")) {
			t.Errorf("%v left something", c.flags)
		}
	}
	if read(t, filepath.Join(adapter+"-merged", "model.safetensors")) != before {
		t.Error("a refused export changed what was there")
	}
	if o := qlora(t, r.work, "", "export", "--model", r.model, "--merge_lora", "true"); o.code != exitUsage || !strings.Contains(o.stderr, "--adapters is missing") {
		t.Errorf("without an adapter: exit status %d\n%s", o.code, o.stderr)
	}
}

func TestExportCheck(t *testing.T) {
	dir := goldenAdapters(t, "a")[0]
	o := ok(t, t.TempDir(), "", "export", "--adapters", dir, "--check", "all")
	for _, want := range []string{"vllm takes it\n", "ollama takes it\n", "--enable-lora", "--to_gguf adapter"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%q is not in\n%s", want, o.stdout)
		}
	}
	write(t, filepath.Join(dir, "adapter_config.json"), strings.Replace(read(t, filepath.Join(dir, "adapter_config.json")), `"use_dora": false`, `"use_dora": true`, 1))
	o = qlora(t, t.TempDir(), "", "export", "--adapters", dir, "--check", "vllm,tgi", "--json")
	var verdicts []export.Verdict
	if err := json.Unmarshal([]byte(o.stdout), &verdicts); err != nil || o.code != exitCheckFailed || len(verdicts) != 2 || verdicts[0].Loads {
		t.Errorf("exit status %d, %v: %s\n%s", o.code, err, o.stdout, o.stderr)
	}
}

// For a base that Ollama's library has, the Modelfile names it there, and no model is written.
func TestOllamaLibrary(t *testing.T) {
	cache := t.TempDir()
	repo := filepath.Join(cache, "models--Qwen--Qwen2.5-0.5B-Instruct")
	if err := os.MkdirAll(filepath.Join(repo, "refs"), 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(repo, "refs/main"), "1")
	if err := os.CopyFS(filepath.Join(repo, "snapshots/1"), os.DirFS(miniModel(t))); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HF_HUB_CACHE", cache)
	work := t.TempDir()
	ok(t, work, "", "export", "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--adapters", goldenAdapters(t, "a")[0], "--to_ollama", "true", "--output_dir", "o")
	if text := read(t, filepath.Join(work, "o/Modelfile")); !strings.HasPrefix(text, "FROM qwen2.5:0.5b\nADAPTER ./adapter.gguf\n") {
		t.Errorf("Modelfile:\n%s", text)
	}
	files, err := os.ReadDir(filepath.Join(work, "o"))
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
}
