package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// README's table is what results/ gives.
func TestReadme(t *testing.T) {
	runs, err := read("../../results")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := replace(string(text), table(runs))
	if err != nil {
		t.Fatal(err)
	}
	if want != string(text) {
		t.Error("README.md's table is not what results/ gives: run `make fits`")
	}
}

// The newest of each run counts; runs without a budget do not.
func TestTable(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"h200/20260101-a/fits/one.json":   `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 1073741824, "vram_budget": "2GiB", "tokens_per_second": 1}`,
		"h200/20260102-b/fits/one.json":   `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 2147483648, "vram_budget": "2GiB", "tokens_per_second": 20, "keeps_less": {"gate_up_again_layers": 3, "offloaded_layers": 2}}`,
		"h200/20260102-b/fits/two.json":   `{"model": "random/qwen2.5-7b", "weights": "bfloat16", "row_tokens": 2048, "process_measured_bytes": 3, "vram_budget": "2GiB", "tokens_per_second": 30}`,
		"h200/20260102-b/fits/whole.json": `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 3, "tokens_per_second": 40}`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := read(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := table(runs)
	if len(runs) != 2 || runs[0].Name != "two" || !strings.Contains(got, "| qwen2.5-7b, nf4 | 2048 | 2.00 | 0.00 | 0.00 | gate, up of 3 layers; 2 layers in host memory | 20 | 0 | [h200](results/h200/20260102-b) |") {
		t.Errorf("%d runs:\n%s", len(runs), got)
	}
	if _, err := replace("no place", got); err == nil {
		t.Error("a text without a place for the table is changed")
	}
}
