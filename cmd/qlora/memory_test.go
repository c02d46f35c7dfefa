package main

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"qlora/model/plan"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"23GiB": 23 << 30, "24GB": 24e9, "8192MiB": 8192 << 20, " 16 g ": 16 << 30, "1000": 1000, "0.5gib": 1 << 29, "3kb": 3000, "5GB": 5e9, "1.5GiB": 3 << 29, "200 KB": 2e5, "7B": 7} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "-1GiB", "0", "23 elephants", "1e30", "-5GB", "5PB", "x", "NaN", "inf", "1.2.3"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// trainWithin trains the mini model on rows of random tokens within a budget ("": none) and returns what it wrote.
func trainWithin(t *testing.T, model, budget string, extra ...string) (o outcome, adapter []byte, report memoryReport) {
	t.Helper()
	work := t.TempDir()
	args := []string{"sft", "--model", model, "--dataset", "random:600x4", "--gradient_accumulation_steps", "2", "--max_steps", "2", "--backend", "cpu",
		"--report_to", "none", "--output_dir", "out", "--add_version", "false", "--lora_dropout", "0.1"}
	if budget != "" {
		args = append(args, "--vram_budget", budget)
	}
	o = qlora(t, work, "", append(args, extra...)...)
	if o.code != 0 {
		return o, nil, report
	}
	var err error
	if adapter, err = os.ReadFile(filepath.Join(work, "out", "checkpoint-2", "adapter_model.safetensors")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(work, "out", "memory.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	return o, adapter, report
}

// A run within a budget keeps less, says so, and learns the same to the bit; one that fits nowhere is refused before anything
// is loaded, with what would fit.
func TestVRAMBudget(t *testing.T) {
	model := miniModel(t)
	_, want, plain := trainWithin(t, model, "")
	if plain.Block == 0 || plain.Saving.GateUp != 0 || len(plain.Fallbacks) != 0 {
		t.Fatalf("without a budget: %+v", plain)
	}
	less := false
	for _, share := range []float64{0.9, 0.7, 0.5} {
		budget := int64(share * float64(plain.Block))
		o, got, r := trainWithin(t, model, strconv.FormatInt(budget, 10))
		if o.code == exitNoFit {
			continue
		}
		if o.code != 0 || !bytes.Equal(got, want) || r.Block > budget {
			t.Errorf("budget %d: exit status %d, %d bytes, equal %v\n%s", budget, o.code, r.Block, bytes.Equal(got, want), o.stderr)
		}
		for _, f := range r.Fallbacks {
			less = true
			if !strings.Contains(o.stderr, f.What+": frees ") {
				t.Errorf("budget %d: %q is not said:\n%s", budget, f.What, o.stderr)
			}
		}
	}
	if !less {
		t.Error("no budget made a run keep less")
	}
	o, _, _ := trainWithin(t, model, strconv.FormatInt(plain.Block/4, 10))
	if o.code != exitNoFit || !strings.Contains(o.stderr, "What fits:") || strings.Contains(o.stderr, "run: ") {
		t.Errorf("a quarter: exit status %d\n%s", o.code, o.stderr)
	}
	if o, _, _ := trainWithin(t, model, "much"); o.code != exitUsage || !strings.Contains(o.stderr, `--vram_budget: "much" is not a size`) {
		t.Errorf("no size: exit status %d\n%s", o.code, o.stderr)
	}
}

// What does not fit in inference is refused with what would.
func TestInferenceBudget(t *testing.T) {
	model := miniModel(t)
	for budget := 1 << 20; budget < 64<<20; budget += 1 << 19 {
		o := qlora(t, t.TempDir(), "hello\n", "infer", "--model", model, "--backend", "cpu", "--max_length", "2048", "--max_batch_size", "8", "--val_dataset", "none.jsonl",
			"--max_new_tokens", "2", "--vram_budget", strconv.Itoa(budget))
		if o.code != exitNoFit {
			t.Fatalf("with %d bytes: exit status %d\n%s", budget, o.code, o.stderr)
		}
		if strings.Contains(o.stderr, "prompt and answer together of at most 1024 tokens (--max_length 1024)") {
			return
		}
	}
}

// --check_memory holds every category to the plan, and fails where rows are shorter than planned.
func TestCheckMemory(t *testing.T) {
	model := miniModel(t)
	o, _, r := trainWithin(t, model, "", "--check_memory")
	if o.code != 0 || r.Written["activations"].Planned == 0 || r.Written["activations"].Planned != r.Written["activations"].Written ||
		!strings.Contains(o.stderr, "memory: activations: ") || strings.Contains(o.stderr, "not as planned") {
		t.Errorf("exit status %d, %+v\n%s", o.code, r.Written, o.stderr)
	}
	work := t.TempDir()
	write(t, filepath.Join(work, "a.jsonl"), `{"query": "b", "response": "no"}`+"\n"+`{"query": "a long question about nothing", "response": "yes"}`+"\n")
	o = qlora(t, work, "", "sft", "--model", model, "--dataset", "a.jsonl", "--gradient_accumulation_steps", "1", "--max_steps", "1", "--backend", "cpu",
		"--dataset_shuffle", "false", "--train_dataloader_shuffle", "false", "--report_to", "none", "--save_strategy", "no", "--output_dir", "out", "--check_memory")
	if o.code != exitCheckFailed || !strings.Contains(o.stderr, "not as planned") {
		t.Errorf("rows shorter than planned: exit status %d\n%s", o.code, o.stderr)
	}
}

// The flags of quantisation are ms-swift's; what is not supported is refused with what is.
func TestQuantFlags(t *testing.T) {
	work, model := t.TempDir(), miniModel(t)
	for _, c := range []struct {
		args string
		want string
	}{
		{"--quant_method bnb", "--quant_method bnb needs --quant_bits 4"},
		{"--quant_bits 8", "--quant_bits 8: known but not supported: choose 4"},
		{"--quant_method hqq --quant_bits 4", "choose bnb"},
		{"--quant_bits 4 --bnb_4bit_quant_type fp4", "choose nf4"},
		{"--quant_bits 4 --torch_dtype float32", "computed with as bfloat16"},
		{"--quant_method bnb --quant_bits 4", "mlp.down_proj has 160 columns, and NF4 takes multiples of 64"},
	} {
		args := append([]string{"sft", "--model", model, "--dataset", "random:40x2", "--backend", "cpu", "--save_strategy", "no", "--output_dir", "out"}, strings.Fields(c.args)...)
		if o := qlora(t, work, "", args...); o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%s: exit status %d, want an error with %q:\n%s", c.args, o.code, c.want, o.stderr)
		}
	}
}

// plan needs no card: a table, JSON, Markdown, a picture; exit status 6 where the run does not fit.
func TestPlan(t *testing.T) {
	work := t.TempDir()
	o := ok(t, work, "", "plan", "--plot", "memory.png")
	for _, want := range []string{"qwen2.5-7b, LoRA on bfloat16", "GeForce RTX 4090 within 23.00 GiB", "article, GB", "13.8 cannot be the weights", "nothing is made again",
		"longest row that fits", "a prediction", "This card has never been run"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("no %q in\n%s", want, o.stdout)
		}
	}
	file, err := os.Open(filepath.Join(work, "memory.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if picture, err := png.Decode(file); err != nil || picture.Bounds().Dx() < 400 {
		t.Errorf("the picture: %v", err)
	}
	o = ok(t, work, "", "plan", "--model", "qwen2.5-32b", "--quant_method", "bnb", "--quant_bits", "4", "--card", "rtx3090", "--json")
	var r plan.Report
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
		t.Fatal(err)
	}
	if r.Block+r.Context > r.Budget || r.Budget != 23<<30 || len(r.Fallbacks) == 0 || r.Prediction.StepSeconds <= 0 || len(r.Keeps) < 2 {
		t.Errorf("%+v", r)
	}
	var sum int64
	for _, row := range r.Rows {
		sum += row.Bytes
	}
	if sum != r.Block {
		t.Errorf("the rows add up to %d, the block has %d", sum, r.Block)
	}
	if o = ok(t, work, "", "plan", "--markdown"); !strings.Contains(o.stdout, "|:---") {
		t.Errorf("no Markdown:\n%s", o.stdout)
	}
	o = qlora(t, work, "", "plan", "--quant_bits", "4", "--quant_method", "bnb", "--vram_budget", "6.1GiB")
	if o.code != exitNoFit || !strings.Contains(o.stderr, "(--max_length 1") {
		t.Errorf("7B on NF4 in 6.1 GiB: exit status %d\n%s", o.code, o.stderr)
	}
	o = qlora(t, work, "", "plan", "--vram_budget", "6GiB")
	if o.code != exitNoFit || !strings.Contains(o.stderr, "--quant_bits 4") {
		t.Errorf("7B in 6 GiB: exit status %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	for _, c := range []struct{ args, want string }{
		{"--card gtx970", "choose a100-40g"}, {"--model qwen2.5-8b", "choose qwen2.5-0.5b"}, {"--max_length 0", "must be 1 to"}, {"--lora_rank 65", "must be 1 to 64"}, {"--host_memory lots", "is not a size"},
	} {
		if o := qlora(t, work, "", append([]string{"plan"}, strings.Fields(c.args)...)...); o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%s: exit status %d\n%s", c.args, o.code, o.stderr)
		}
	}
}

// A model's folder is planned as the shape that it is of, and what sft plans of it is what plan says, but for what is the
// processor's own.
func TestPlanOfAFolder(t *testing.T) {
	o := ok(t, t.TempDir(), "", "plan", "--model", miniModel(t), "--max_length", "600", "--json")
	var r plan.Report
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil || r.Block == 0 || r.Block > 64<<20 {
		t.Errorf("%v: %d bytes", err, r.Block)
	}
}

// A row has room for as many of the longest samples as a batch has, and for 2048 tokens.
func TestBatchSizeIsARow(t *testing.T) {
	model := miniModel(t)
	for _, c := range []struct{ dataset, batch, want string }{
		{"random:1300x4", "1", "rows of at most 2048 tokens"}, {"random:1300x4", "2", "rows of at most 2600 tokens"}, {"random:100x4", "2", "rows of at most 400 tokens"},
	} {
		o := ok(t, t.TempDir(), "", "sft", "--model", model, "--dataset", c.dataset, "--per_device_train_batch_size", c.batch, "--gradient_accumulation_steps", "2", "--max_steps", "1",
			"--backend", "cpu", "--report_to", "none", "--save_strategy", "no", "--output_dir", "out")
		if !strings.Contains(o.stderr, c.want) {
			t.Errorf("%s, batches of %s: not %q in\n%s", c.dataset, c.batch, c.want, o.stderr)
		}
	}
}
