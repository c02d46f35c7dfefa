package data

import (
	"slices"
	"strings"
	"testing"
)

// Subsets of self-cognition are the rows of the default one, worded for models that think, as
// ms-swift words them; in other datasets a subset by such a name is one of its own.
func TestSelfCognitionSubsets(t *testing.T) {
	const think = "<think>\n\n</think>\n\n"
	t.Setenv("HF_HUB_CACHE", tree(t, map[string]string{
		"datasets--modelscope--self-cognition/refs/main":             "1",
		"datasets--modelscope--self-cognition/snapshots/1/d.jsonl":   `{"query":"你是{{NAME}}?","response":"我是{{NAME}}","tag":"zh"}` + "\n" + `{"query":"who?","response":"{{NAME}}","tag":"en"}`,
		"datasets--modelscope--self-cognition/snapshots/1/README.md": "---\nlicense: mit\n---\n",
		"datasets--org--other/refs/main":                             "1",
		"datasets--org--other/snapshots/1/qwen3/d.jsonl":             rowA,
	}))
	t.Chdir(t.TempDir())
	names, err := NewNames([]string{"小黄", "Huang"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := []string{"你是小黄?|我是小黄", "who?|Huang"}
	empty := []string{"你是小黄?|" + think + "我是小黄", "who?|" + think + "Huang"}
	qwen3 := []string{"你是小黄? /no_think|" + think + "我是小黄", "who? /no_think|" + think + "Huang"}
	for dataset, want := range map[string][]string{
		"modelscope/self-cognition":               plain,
		"modelscope/self-cognition:default":       plain,
		"modelscope/self-cognition:empty_think":   empty,
		"modelscope/self-cognition:qwen3#500":     qwen3, // Rows gives every row once
		"modelscope/self-cognition:qwen3/default": slices.Concat(qwen3, plain),
		"hf::modelscope/self-cognition:all":       slices.Concat(plain, qwen3, empty),
		"org/other:qwen3":                         {"a|A"},
	} {
		var got []string
		for ex, err := range Rows(dataset, Options{Names: names}) {
			if err != nil {
				t.Fatal(err)
			}
			m := ex.Conversation.Messages
			got = append(got, m[0].Content+"|"+m[1].Content)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", dataset, got, want)
		}
	}
	for dataset, want := range map[string]string{
		"modelscope/self-cognition:zh": `no file of a type`, SelfCognition + ":zh": `no subset "zh", only default, qwen3, empty_think`,
	} {
		if _, err := openDataset(dataset); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dataset, err, want)
		}
	}
	opt := Options{MaxLength: 64}
	prints := map[string]bool{}
	for _, subset := range []string{"", ":qwen3", ":empty_think"} {
		lazy, _, _, err := LoadLazy([]string{SelfCognition + subset}, chat(t, template(t, "qwen2_5")), opt)
		if err != nil {
			t.Fatal(err)
		}
		defer lazy.Close()
		prints[lazy.Fingerprint()] = true
	}
	if len(prints) != 3 {
		t.Error("subsets have the same fingerprint")
	}
}

// A row with turns before is worded in the last question and the last answer.
func TestWording(t *testing.T) {
	c := Conversation{Messages: []Message{{Role: User, Content: "a"}, {Role: Assistant, Content: "b"}, {Role: User, Content: "c"}, {Role: Assistant, Content: "d"}}}
	wording{"+", "-"}.apply(&c)
	got := ""
	for _, m := range c.Messages {
		got += m.Content + " "
	}
	if got != "a b c+ -d " {
		t.Errorf("got %q", got)
	}
}
