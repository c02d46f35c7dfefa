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

// The newest of each run counts; runs without a budget do not. Rows are in order of size, weights, row and budget, and none
// stands twice.
func TestTable(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"h200/20260101-a/fits/one.json":   `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 1073741824, "vram_budget": "2048MiB", "tokens_per_second": 1}`,
		"h200/20260102-b/fits/one.json":   `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 2147483648, "vram_budget": "2560MiB", "tokens_per_second": 20, "keeps_less": {"gate_up_again_layers": 3, "offloaded_layers": 2}}`,
		"h200/20260102-b/fits/twice.json": `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 2147483648, "vram_budget": "2560MiB", "tokens_per_second": 20, "keeps_less": {"gate_up_again_layers": 3, "offloaded_layers": 2}}`,
		"h200/20260102-b/fits/two.json":   `{"model": "random/qwen2.5-7b", "weights": "bfloat16", "row_tokens": 2048, "process_measured_bytes": 3, "vram_budget": "9216MiB", "tokens_per_second": 30}`,
		"h200/20260102-b/fits/whole.json": `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 3, "tokens_per_second": 40}`,
		"h200/20260101-a/fits/tight.json": `{"model": "random/qwen2.5-7b", "weights": "nf4", "row_tokens": 2048, "process_measured_bytes": 3, "vram_budget": "1024MiB", "tokens_per_second": 50}`,
		"h200/20260102-b/fits/big.json":   `{"model": "random/qwen2.5-14b", "weights": "nf4", "row_tokens": 512, "process_measured_bytes": 3, "vram_budget": "1024MiB", "tokens_per_second": 60}`,
		"a100/20260102-b/fits/one.json":   `{"model": "random/qwen2.5-0.5b", "weights": "nf4", "row_tokens": 512, "process_measured_bytes": 3, "vram_budget": "1024MiB", "tokens_per_second": 70}`,
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
	const head = "| model, weights | tokens a row | within, GiB | process | its block | host | kept less of | tokens/s | predicted |\n|:---|---:|---:|---:|---:|---:|:---|---:|---:|\n"
	want := head + `| qwen2.5-0.5b, nf4 | 512 | 1 | 0.00 | 0.00 | 0.00 | nothing | 70 | 0 |

On a100: [20260102-b](results/a100/20260102-b).

` + head + `| qwen2.5-7b, bfloat16 | 2048 | 9 | 0.00 | 0.00 | 0.00 | nothing | 30 | 0 |
| qwen2.5-7b, nf4 | 2048 | 1 | 0.00 | 0.00 | 0.00 | nothing | 50 | 0 |
| qwen2.5-7b, nf4 | 2048 | 2.50 | 2.00 | 0.00 | 0.00 | gate and up of 3 layers; 2 layers in host memory | 20 | 0 |
| qwen2.5-14b, nf4 | 512 | 1 | 0.00 | 0.00 | 0.00 | nothing | 60 | 0 |

On h200: [20260101-a](results/h200/20260101-a), [20260102-b](results/h200/20260102-b).`
	if got != want {
		t.Errorf("%s\n\nwant:\n%s", got, want)
	}
	if _, err := replace("no place", got); err == nil {
		t.Error("a text without a place for the table is changed")
	}
	bad := filepath.Join(dir, "h200/20260102-b/fits/bad.json")
	if err := os.WriteFile(bad, []byte(`{"process_measured_bytes": 3, "vram_budget": "2GiB", "tokens_per_second": 40}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := read(dir); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("a budget that is not in MiB: %v", err)
	}
}
