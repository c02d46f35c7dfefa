package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/model/eval"
)

// Several adapters are measured beside each other and the base, as each is alone; the pages say what the object says.
func TestEvalSideBySide(t *testing.T) {
	model, dirs, work := miniModel(t), goldenAdapters(t, "a", "b"), t.TempDir()
	write(t, filepath.Join(work, "d.jsonl"), trainingData)
	write(t, filepath.Join(work, "c.jsonl"), `{"question": "q", "choices": ["a", "bb", "ccc"], "answer": 1}`+"\n"+`{"question": "r", "choices": ["x", "y"], "answer": 0}`+"\n")
	tasks := []string{"eval", "--model", model, "--dataset", "d.jsonl", "--general", "builtin:general", "--choices", "c.jsonl", "--max_new_tokens", "4", "--torch_dtype", "float32", "--json", "--answers"}
	run := func(flags ...string) (out eval.Report) {
		t.Helper()
		o := ok(t, work, "", append(slices.Clone(tasks), flags...)...)
		if err := json.Unmarshal([]byte(o.stdout), &out); err != nil {
			t.Fatalf("%v in %s", err, o.stdout)
		}
		return out
	}
	alone := func(flags ...string) (out eval.Measured) {
		t.Helper()
		o := ok(t, work, "", append(slices.Clone(tasks), flags...)...)
		if err := json.Unmarshal([]byte(o.stdout), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := run("--adapters", "x="+dirs[0], dirs[1], "--html", "p.html", "--markdown", "p.md")
	if len(all.Models) != 3 || all.Models[0].Name != "base" || all.Models[1].Name != "x" || all.Models[2].Name != "b" {
		t.Fatalf("%d models: %+v", len(all.Models), all.Models)
	}
	base, a, b := alone(), alone("--adapters", dirs[0]), alone("--adapters", dirs[1])
	for i, want := range []eval.Measured{base, a, b} {
		got := all.Models[i]
		if got.NLL != want.NLL || got.General.KL != want.General.KL || got.General.NLL != want.General.NLL || !slices.Equal(got.Choices.Picked, want.Choices.Picked) || !slices.Equal(got.Answers, want.Answers) {
			t.Errorf("%s beside others: %+v, alone %+v", got.Name, got, want)
		}
	}
	if base.General.KL != 0 || a.General.KL <= 0 || a.NLL == b.NLL || a.General.BaseNLL != base.General.NLL || a.Choices.Questions != 2 {
		t.Errorf("base %+v, a %+v", base.General, a.General)
	}
	if sum := alone("--adapters", dirs[0], dirs[1], "--adapter_weights", "0.7", "0.3"); sum.NLL == a.NLL || sum.NLL == b.NLL || sum.Name != "" {
		t.Errorf("a sum measures as %+v", sum)
	}
	page, markdown := read(t, filepath.Join(work, "p.html")), read(t, filepath.Join(work, "p.md"))
	for _, want := range []string{"general set: KL", "multiple choice", "mini"} {
		if !strings.Contains(page, want) || !strings.Contains(markdown, want) {
			t.Errorf("a page lacks %q", want)
		}
	}
	for _, c := range []struct {
		flags []string
		want  string
	}{
		{[]string{"--html", "p.html"}, "p.html is there already"},
		{[]string{"--choices", "none.jsonl"}, "--choices: open none.jsonl"},
		{[]string{"--general", "none.jsonl"}, "--general: "},
		{[]string{"--adapter_weights", "1"}, "there are no --adapters"},
	} {
		if o := qlora(t, work, "", append(slices.Clone(tasks), c.flags...)...); o.code != exitUsage || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%v: exit status %d\n%s", c.flags, o.code, o.stderr)
		}
	}
	if o := qlora(t, work, "", "eval", "--model", model); o.code != exitUsage || !strings.Contains(o.stderr, "--dataset is missing") {
		t.Errorf("nothing to measure: exit status %d\n%s", o.code, o.stderr)
	}
	if only := ok(t, work, "", "eval", "--model", model, "--choices", "c.jsonl"); !strings.Contains(only.stdout, "choice_accuracy") || strings.Contains(only.stdout, "nll") {
		t.Errorf("choices alone: %s", only.stdout)
	}
}
