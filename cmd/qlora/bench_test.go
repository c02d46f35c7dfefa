package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"qlora/bench/result"
)

// fast are rules with which times come soon, and mean little.
var fast = []string{"--min_samples", "10", "--max_samples", "12", "--max_time", "50ms"}

// resultOf reads the one result below dir.
func resultOf(t *testing.T, dir string) *result.File {
	t.Helper()
	all, err := result.Walk(filepath.Join(dir, "results"))
	if err != nil || len(all) != 1 {
		t.Fatalf("%d results, %v", len(all), err)
	}
	return all[0]
}

func TestBenchKernels(t *testing.T) {
	dir := t.TempDir()
	o := ok(t, dir, "", append([]string{"bench", "kernels", "--filter", "^(RMSNorm|SwiGLU)/tiny T63", "--cache", "hot"}, fast...)...)
	for _, want := range []string{"What this device does at most", "RMSNorm/tiny T63", "hot", "of roof"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("standard output lacks %q:\n%s", want, o.stdout)
		}
	}
	f := resultOf(t, dir)
	if f.Kind != result.Kernels || len(f.Rows) != 2 || len(f.Rows[0].Seconds) < 10 || f.Rows[0].Proof == nil || f.Rows[0].Params["cache"] != "hot" || f.Environment.Backend != "cpu" ||
		f.Environment.Host.CPU == "" || f.Environment.Host.System == "" || len(f.Roofs) != 3 || !slices.Contains(f.Environment.Program.Args, "kernels") {
		t.Errorf("%+v", f)
	}
	// Again, to a file, as JSON, as Go's format, to standard output.
	out := filepath.Join(dir, "again.json")
	base := append([]string{"bench", "kernels", "--filter", "^SwiGLU/tiny T63", "--cache", "hot", "--roofs", "false"}, fast...)
	if o = ok(t, dir, "", append(base, "--out", out, "--format", "gobench")...); !strings.Contains(o.stdout, "BenchmarkSwiGLU/tiny_T63") || strings.Count(o.stdout, "ns/op") < 10 {
		t.Errorf("%s", o.stdout)
	}
	if f, err := result.Read(out); err != nil || f.Environment.Program.Args[len(f.Environment.Program.Args)-3] != "again.json" {
		t.Errorf("%+v, %v", f, err)
	}
	if o := qlora(t, dir, "", append(base, "--out", out)...); o.code != exitUsage || !strings.Contains(o.stderr, "is there already") {
		t.Errorf("over another: %d %s", o.code, o.stderr)
	}
	o = ok(t, dir, "", append(base, "--out", "-")...)
	if _, err := result.Parse([]byte(o.stdout)); err != nil {
		t.Errorf("%v:\n%s", err, o.stdout)
	}
	// Products of weights in NF4: rows of their own, with the bytes of codes and scales.
	nf4 := filepath.Join(dir, "nf4.json")
	o = ok(t, dir, "", append([]string{"bench", "kernels", "--method", "nf4", "--filter", "^(Linear|LinearBack|SwiGLU)/SmolLM2 T63", "--cache", "hot", "--roofs", "false", "--out", nf4}, fast...)...)
	if !strings.Contains(o.stdout, ", weights in NF4") || strings.Contains(o.stdout, "SwiGLU") {
		t.Errorf("%s", o.stdout)
	}
	if f, err := result.Read(nf4); err != nil || len(f.Rows) == 0 || f.Rows[0].Params["method"] != "nf4" || f.Rows[0].Proof == nil {
		t.Errorf("%+v, %v", f, err)
	}
	if o = ok(t, dir, "", "bench", "kernels", "--list", "--filter", "^Linear/7B T2048", "--shapes", "7b"); strings.Count(o.stdout, "Linear/7B T2048") < 12 {
		t.Errorf("%s", o.stdout)
	}
}

func TestBenchStep(t *testing.T) {
	dir, model := t.TempDir(), miniModel(t)
	o := ok(t, dir, "", append([]string{"bench", "step", "--model", model, "--torch_dtype", "float32", "--tokens", "32", "48", "--samples", "2", "--labels", "0.5", "--format", "markdown"}, fast...)...)
	for _, want := range []string{"Training steps", "| mini", "32 in 2 samples, 0.5 of them labels", "Where a step goes, op by op", "between ops", "| arena"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("lacks %q:\n%s", want, o.stdout)
		}
	}
	f := resultOf(t, dir)
	if len(f.Rows) != 2 || f.Rows[1].Tokens != 48 || f.Rows[0].Labels != 16 || len(f.Rows[0].Ops) < 15 {
		t.Errorf("%+v", f.Rows)
	}
	if slices.ContainsFunc(f.Environment.Program.Args, filepath.IsAbs) {
		t.Errorf("a path of this machine in %q", f.Environment.Program.Args)
	}
	// What does not fit is said beside what does, and is the run's failure where nothing does.
	for _, c := range []struct {
		budget string
		code   int
	}{{"3MiB", exitDone}, {"100KiB", exitNoFit}} {
		o = qlora(t, dir, "", append([]string{"bench", "step", "--model", model, "--torch_dtype", "float32", "--vram_budget", c.budget, "--tokens", "16", "2048", "--results", "", "--roofs", "false"}, fast...)...)
		if o.code != c.code || !strings.Contains(o.stdout, "Not measured") || !strings.Contains(o.stdout, "and 0.00 GiB is there for it") || c.code == exitDone && !strings.Contains(o.stdout, "tokens/s") {
			t.Errorf("--vram_budget %s: status %d\n%s%s", c.budget, o.code, o.stdout, o.stderr)
		}
	}
}

func TestBenchOthers(t *testing.T) {
	dir, model := t.TempDir(), miniModel(t)
	o := ok(t, dir, "", append([]string{"bench", "decode", "--model", model, "--sequences", "1,2", "--prompt", "8", "--new", "4", "--results", ""}, fast...)...)
	if strings.Count(o.stdout, "prefill") != 2 || strings.Count(o.stdout, " decode ") != 2 || !strings.Contains(o.stdout, "DecodeAttention") {
		t.Errorf("decode: %s", o.stdout)
	}
	o = ok(t, dir, "", "bench", "vram", "--models", model, "qwen2.5-7b", "--tokens", "256", "512", "--budgets", "8GiB", "23GiB", "--results", "")
	if !strings.Contains(o.stdout, "The longest row that fits") || !strings.Contains(o.stdout, "Qwen2.5 7B") || !strings.Contains(o.stdout, "23 GiB") || !strings.Contains(o.stdout, "Not measured") {
		t.Errorf("vram: %s", o.stdout)
	}
	o = ok(t, dir, "", "bench", "vram", "--models", model, "--tokens", "64", "--budgets", "8GiB", "--methods", "bf16", "--measure", "--results", "")
	if strings.Contains(o.stdout, "Not measured") {
		t.Errorf("vram, measured: %s", o.stdout)
	}
	o = ok(t, dir, "", "bench", "job", "--model", model, "--num_train_epochs", "1", "--max_new_tokens", "2")
	for _, want := range []string{"tokenise", "load", "train", "save", "answer 8 questions", "all that both have", "50 rows, 1 epochs", "276.0 s"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("job lacks %q:\n%s%s", want, o.stdout, o.stderr)
		}
	}
	if f := resultOf(t, dir); f.Kind != result.Job || len(f.Rows) != 7 || f.Rows[2].Tokens == 0 {
		t.Errorf("%+v", f.Rows)
	}
	o = ok(t, dir, "", "bench", "quick", "--model", model, "--tokens", "16")
	for _, want := range []string{"copy", "Linear/SmolLM2", "AttentionBack/SmolLM2", "Training steps", "between ops"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("quick lacks %q:\n%s", want, o.stdout)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("quick, and others without results, left %v, %v", entries, err)
	}
}

// slowed copies a result with all times of a row's op multiplied.
func slowed(t *testing.T, from, to, op string, factor float64) {
	t.Helper()
	f, err := result.Read(from)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range f.Rows {
		for j := range r.Seconds {
			f.Rows[i].Seconds[j] = 1e-3 * (1 + 1e-4*float64(j*7%11)) // steady, so that the test is
			if strings.HasPrefix(r.Name, op) {
				f.Rows[i].Seconds[j] *= factor
			}
		}
	}
	if err := f.WriteFile(to); err != nil {
		t.Fatal(err)
	}
}

func TestBenchCompare(t *testing.T) {
	dir := t.TempDir()
	measured, a, b := filepath.Join(dir, "measured.json"), filepath.Join(dir, "a.json"), filepath.Join(dir, "b.json")
	ok(t, dir, "", append([]string{"bench", "kernels", "--filter", "^(RMSNorm|SwiGLU)/tiny T63", "--out", measured, "--roofs", "false"}, fast...)...)
	slowed(t, measured, a, "RMSNorm", 1)
	slowed(t, measured, b, "RMSNorm", 1.05)
	if o := ok(t, dir, "", "bench", "compare", a, a, "--fail_if", "median>3%"); !strings.Contains(o.stdout, "0 SLOWER, 0 FASTER, 0 UNSURE, 4 SAME of 4 rows") {
		t.Errorf("%s", o.stdout)
	}
	if o := ok(t, dir, "", "bench", "compare", a, b, "--markdown"); !strings.Contains(o.stdout, "2 SLOWER") || !strings.Contains(o.stdout, "| +5.0 %") {
		t.Errorf("%s", o.stdout)
	}
	if o := qlora(t, dir, "", "bench", "compare", "--fail_if", "median>3%", "--all", a, b); o.code != exitCheckFailed || !strings.Contains(o.stderr, "median>3% holds for 2 rows") {
		t.Errorf("%d %s", o.code, o.stderr)
	}
	ok(t, dir, "", "bench", "compare", a, b, "--fail_if", "median>6%", "p90>6%")
	other := filepath.Join(dir, "other.json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(read(t, a)), &doc); err != nil {
		t.Fatal(err)
	}
	doc["environment"].(map[string]any)["host"].(map[string]any)["cpu"] = "another processor"
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	write(t, other, string(text))
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{a, other}, "cannot compare: device: "},
		{[]string{a, filepath.Join(dir, "none.json")}, "none.json"},
		{[]string{a}, "<new>"},
		{[]string{a, b, a}, "unexpected argument"},
		{[]string{a, b, "--fail_if", "median"}, "is no rule"},
		{[]string{a, b, "--margin", "2"}, "--margin 2"},
		{[]string{a, dir}, "cannot compare"},
	} {
		if o := qlora(t, dir, "", append([]string{"bench", "compare"}, c.args...)...); o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%q: %d %s, want %q", c.args, o.code, o.stderr, c.want)
		}
	}
	ok(t, dir, "", "bench", "compare", a, other, "--any_device")
	write(t, filepath.Join(dir, "broken.json"), `{"schema": 2, "rows": [`)
	if o := qlora(t, dir, "", "bench", "compare", a, "broken.json"); o.code != exitUsage || !strings.Contains(o.stderr, "broken.json: byte") {
		t.Errorf("a broken file: %d %s", o.code, o.stderr)
	}
}

// TestBenchAB runs this binary against itself, and against one that is none.
func TestBenchAB(t *testing.T) {
	dir := t.TempDir()
	what := "kernels --filter ^SwiGLU/tiny.T63 --cache hot --roofs false " + strings.Join(fast, " ")
	o := ok(t, dir, "", "bench", "ab", binary, binary, "--what", what, "--rounds", "2", "--all")
	if !strings.Contains(o.stderr, "round 2 of 2") || !strings.Contains(o.stdout, "of 1 rows") {
		t.Errorf("%s%s", o.stderr, o.stdout)
	}
	if o := qlora(t, dir, "", "bench", "ab", binary, "/bin/true", "--what", what); o.code != exitUsage || !strings.Contains(o.stderr, "/bin/true bench kernels") {
		t.Errorf("no qlora: %d %s", o.code, o.stderr)
	}
}

func TestBenchCheckAndAdd(t *testing.T) {
	dir := t.TempDir()
	if o := qlora(t, dir, "", "bench", "check"); o.code != exitUsage || !strings.Contains(o.stderr, "there is no baseline of ") {
		t.Errorf("without a baseline: %d %s", o.code, o.stderr)
	}
	out := filepath.Join(dir, "mine.json")
	ok(t, dir, "", append([]string{"bench", "kernels", "--filter", "^SwiGLU/tiny T63", "--cache", "hot", "--out", out, "--roofs", "false"}, fast...)...)
	f, err := result.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	four := filepath.Join(dir, "four.json")
	ok(t, dir, "", append([]string{"bench", "kernels", "--method", "nf4", "--filter", "^LinearBack/SmolLM2 T63", "--cache", "hot", "--out", four, "--roofs", "false"}, fast...)...)
	products, err := result.Read(four)
	if err != nil {
		t.Fatal(err)
	}
	f.Rows = append(f.Rows, products.Rows[0])
	f.Environment.Program.Commit, f.Environment.Program.Dirty = "0123abc", false // a test's binary is of no commit
	if err := f.WriteFile(out); err != nil {
		t.Fatal(err)
	}
	if o := ok(t, dir, "", "bench", "add", "--dry_run", out); !strings.Contains(o.stdout, "is complete") {
		t.Errorf("%s", o.stdout)
	}
	if o := ok(t, dir, "", "bench", "add", out); !strings.Contains(o.stdout, "-0123abc/kernels.json") {
		t.Errorf("%s", o.stdout)
	}
	// The baseline is of the same code on the same machine; a rule that nothing breaks lets it pass.
	o := ok(t, dir, "", append([]string{"bench", "check", "--fail_if", "median>900%", "--all"}, fast...)...)
	if !strings.Contains(o.stderr, "baseline: results/") || !strings.Contains(o.stdout, "of 2 rows") || !strings.Contains(o.stdout, "method=nf4") {
		t.Errorf("%s%s", o.stderr, o.stdout)
	}
	// One row is slower and the other faster by so much that the machine's other load decides nothing.
	for i := range f.Rows[0].Seconds {
		f.Rows[0].Seconds[i] /= 1000
	}
	for i := range f.Rows[1].Seconds {
		f.Rows[1].Seconds[i] *= 1000
	}
	quick := filepath.Join(dir, "quick.json")
	if err := f.WriteFile(quick); err != nil {
		t.Fatal(err)
	}
	if o := qlora(t, dir, "", append([]string{"bench", "check", "--baseline", quick, "--out", "kept"}, fast...)...); o.code != exitCheckFailed || !strings.Contains(o.stdout, "1 SLOWER, 1 FASTER") || !strings.Contains(o.stderr, "1 of 2 rows are slower: measured once more") {
		t.Errorf("1000 times slower: %d %s%s", o.code, o.stdout, o.stderr)
	}
	if _, err := result.Read(filepath.Join(dir, "kept", "kernels.json")); err != nil {
		t.Error(err)
	}
	f.Rows[0].Proof = nil
	if err := f.WriteFile(quick); err != nil {
		t.Fatal(err)
	}
	if o := qlora(t, dir, "", "bench", "add", quick); o.code != exitCheckFailed || !strings.Contains(o.stdout, "a proof that SwiGLU") {
		t.Errorf("without a proof: %d %s%s", o.code, o.stdout, o.stderr)
	}
}

func TestBenchReport(t *testing.T) {
	dir := t.TempDir()
	results, err := filepath.Abs("../../results")
	if err != nil {
		t.Fatal(err)
	}
	ok(t, dir, "", "bench", "report", results, "-o", "page.html", "--pictures", "pictures")
	if text := read(t, filepath.Join(dir, "page.html")); !strings.HasPrefix(text, "<!doctype html>") || !strings.Contains(text, "NVIDIA H200") {
		t.Errorf("%.300s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, "pictures", "cards.png")); err != nil {
		t.Error(err)
	}
	if o := ok(t, dir, "", "bench", "report", results, "--print", "--format", "markdown"); !strings.Contains(o.stdout, "Training steps") {
		t.Errorf("%.300s", o.stdout)
	}
	if o := ok(t, dir, "", "bench", "gpus", results, "--picture", "gpus.png"); !strings.Contains(o.stdout, "NVIDIA H200") || !strings.Contains(o.stdout, "tokens/s per W") {
		t.Errorf("%s", o.stdout)
	}
	if o := qlora(t, dir, "", "bench", "report"); o.code != exitUsage || !strings.Contains(o.stderr, "results") {
		t.Errorf("without results: %d %s", o.code, o.stderr)
	}
	if o := ok(t, dir, "", "bench", "tables", "--root", filepath.Dir(results), "--check"); o.stdout != "" {
		t.Errorf("stale: %s", o.stdout)
	}
	if o := qlora(t, dir, "", "bench", "tables"); o.code != exitUsage {
		t.Errorf("no repository: %d %s", o.code, o.stderr)
	}
}

// TestBenchWeights writes a shape as a folder. The smallest takes a gigabyte, and so its arguments alone are tried.
func TestBenchWeights(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--model", "qwen2.5-0.5b", "-o", dir}, "is there already"},
		{[]string{"--model", "qwen2.5-0.6b", "-o", filepath.Join(dir, "x")}, "no shape of that name"},
		{[]string{"--model", "qwen2.5-0.5b", "--tokenizer", dir, "-o", filepath.Join(dir, "x")}, "tokenizer.json"},
		{[]string{"--model", "qwen2.5-0.5b"}, "missing flags: --o"},
	} {
		if o := qlora(t, dir, "", append([]string{"bench", "weights"}, c.args...)...); o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%q: %d %s", c.args, o.code, o.stderr)
		}
	}
}

func TestBenchUsage(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		line, want string
	}{
		{"bench|nothing", "choose quick, kernels, step"},
		{"bench|kernel", "did you mean `qlora bench kernels`?"},
		{"bench|kernels|--filter|(", "--filter ("},
		{"bench|kernels|--cache|warm", "choose cold, hot or both"},
		{"bench|kernels|--check|none", "choose small or full"},
		{"bench|kernels|--method|int8", "choose bf16 or nf4"},
		{"bench|kernels|--shapes|13b", "choose 7b or small"},
		{"bench|kernels|--format|xml", "choose table, markdown, json or gobench"},
		{"bench|kernels|--filter|^nothing$", "no case has that name"},
		{"bench|kernels|--min_samples|1", "--min_samples must be"},
		{"bench|kernels|--backend|cpu|--variant|sm_80", "--variant sm_80"},
		{"bench|kernels|stray", `"stray" belongs to no flag`},
		{"bench|step|--model|nowhere", "no shape of that name"},
		{"bench|step|--vram_budget|24 apples", "is not a size"},
		{"bench|job", "--model is missing"},
		{"bench|peers|--python|/bin/false", "has no torch"},
		{"bench|ab|a|b|--rounds|0", "--rounds must be"},
		{"bench|compare|--fale_if|x|a|b", "did you mean --fail_if?"},
		{"help|bench|nothing", "choose quick"},
	} {
		o := qlora(t, dir, "", strings.Split(c.line, "|")...)
		if o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%q: %d %s, want %q", c.line, o.code, o.stderr, c.want)
		}
	}
	for _, line := range []string{"bench", "bench|--help", "help|bench", "help|bench|kernels", "bench|compare|-h", "bench|compare|--help"} {
		if o := ok(t, dir, "", strings.Split(line, "|")...); !strings.Contains(o.stdout, "Usage: qlora bench") || !strings.Contains(o.stdout, "Examples\n  ") {
			t.Errorf("%q: %s", line, o.stdout)
		}
	}
}

// TestBenchHelp: every verb of bench explains its flags, with an example.
func TestBenchHelp(t *testing.T) {
	var cli commands
	k, err := kong.New(&cli, kong.NoDefaultHelp())
	if err != nil {
		t.Fatal(err)
	}
	node := named(k.Model.Children, "bench")
	for _, verb := range node.Children {
		text := manual(k, verb)
		for _, f := range verb.Flags {
			if !strings.Contains(text, "  --"+f.Name+" ") && !strings.Contains(text, "  --"+f.Name+"\n") {
				t.Errorf("bench %s --help does not explain --%s", verb.Name, f.Name)
			}
		}
		if !strings.Contains(text, "Examples\n  qlora bench ") {
			t.Errorf("bench %s --help has no example", verb.Name)
		}
		for line := range strings.Lines(text) {
			if n := len([]rune(line)); n > 125 {
				t.Errorf("bench %s --help: a line of %d columns: %s", verb.Name, n, line)
			}
		}
	}
}

func TestTakeOperands(t *testing.T) {
	var cli commands
	k, err := kong.New(&cli, kong.NoDefaultHelp())
	if err != nil {
		t.Fatal(err)
	}
	node, _, err := leaf(k, []string{"bench", "compare"})
	if err != nil {
		t.Fatal(err)
	}
	shapes := shapesOf(k)["bench compare"]
	for line, want := range map[string][2]string{
		"a b":                              {"", "a b"},
		"a b --all --margin 0.1":           {"--all --margin 0.1", "a b"},
		"--all a b":                        {"--all", "a b"},
		"--all true a b":                   {"--all true", "a b"},
		"--margin 0.1 a b":                 {"--margin 0.1", "a b"},
		"--margin=0.1 a b":                 {"--margin=0.1", "a b"},
		"a --fail_if x y":                  {"--fail_if x y", "a"},
		"--fail_if x -- a b":               {"--fail_if x", "a b"},
		"a b --help":                       {"--help", "a b"},
		"a b -h":                           {"-h", "a b"},
		"a.json --any-device b.json --all": {"--any-device --all", "a.json b.json"},
	} {
		rest, operands := takeOperands(node, strings.Fields(line), shapes)
		if got := [2]string{strings.Join(rest, " "), strings.Join(operands, " ")}; got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
