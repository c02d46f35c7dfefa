package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitWords(t *testing.T) {
	set := func(name string, values ...string) setting { return setting{name: name, values: values} }
	for _, c := range []struct {
		line string // words separated by |
		want []setting
	}{
		{"", nil},
		{"--", nil},
		{"--model|m", []setting{set("model", "m")}},
		{"--dataset|a|b|c|--seed|1", []setting{set("dataset", "a", "b", "c"), set("seed", "1")}},
		{"--dataset=a|b", []setting{set("dataset", "a", "b")}},
		{"--lora-rank|8", []setting{set("lora_rank", "8")}},
		{"--per-device_train-batch_size=2", []setting{set("per_device_train_batch_size", "2")}},
		{"--stream", []setting{set("stream")}},
		{"--stream|True|--temperature|0", []setting{set("stream", "True"), set("temperature", "0")}},
		{"--max_steps|-1", []setting{set("max_steps", "-1")}},
		{"--learning_rate|-.5e-3", []setting{set("learning_rate", "-.5e-3")}},
		{"--system|", []setting{set("system", "")}},
		{"--system=", []setting{set("system", "")}},
		{"--system=a=b", []setting{set("system", "a=b")}},
		{"--system|-- be brief", []setting{set("system", "-- be brief")}},
		{"--system=--be brief", []setting{set("system", "--be brief")}},
		{"--system|one\ntwo", []setting{set("system", "one\ntwo")}},
		{"--seed|1|--seed|2|--", []setting{set("seed", "1"), set("seed", "2")}},
		{"-h", []setting{set("help")}},
		{"--model|m|-h", []setting{set("model", "m"), set("help")}},
	} {
		var words []string
		if c.line != "" {
			words = strings.Split(c.line, "|")
		}
		got, err := splitWords(words)
		if err != nil {
			t.Errorf("%q: %v", c.line, err)
			continue
		}
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(setting{})); d != "" {
			t.Errorf("%q (-want +got):\n%s", c.line, d)
		}
	}
}

func TestSplitWordsRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"run.yaml|--seed|1": "one configuration file may stand right behind the verb",
		"chat":              `"chat" belongs to no flag`,
		"--seed|1|--|2":     `"2" belongs to no flag`,
		"=|--seed|1":        `"=" belongs to no flag`,
	} {
		if got, err := splitWords(strings.Split(line, "|")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, error %v, want an error with %q", line, got, err, want)
		}
	}
}

func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		takes  shape
		values []string
		want   string // words joined by |, or the error after "!"
	}{
		{one, []string{"8"}, "--x=8"},
		{one, []string{""}, "--x="},
		{one, nil, "!needs a value"},
		{one, []string{"You", "are"}, "!takes one value, not 2"},
		{list, []string{"a", "b"}, "--x=a|--x=b"},
		{list, nil, "!needs a value"},
		{flag, nil, "--x=true"},
		{flag, []string{"True"}, "--x=true"},
		{flag, []string{"no"}, "--x=false"},
		{flag, []string{"0"}, "--x=false"},
		{flag, []string{"maybe"}, `!takes true or false, not "maybe"`},
		{flag, []string{"true", "false"}, "!takes true or false"},
	} {
		words, err := canonical(setting{name: "x", values: c.values}, c.takes)
		if want, isErr := strings.CutPrefix(c.want, "!"); isErr {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: error %v, want %q", c, err, want)
			}
		} else if got := strings.Join(words, "|"); err != nil || got != c.want {
			t.Errorf("%v: got %q, %v", c, got, err)
		}
	}
}

// FuzzParse feeds any command line through the normaliser and kong: an error or a command, never
// a panic, and the parsed words mean the same when they are split again.
func FuzzParse(f *testing.F) {
	f.Add("sft\x00--model\x00m\x00--dataset\x00a\x00b\x00--stream")
	f.Add("infer\x00--adapters=x\x00--temperature\x00-0.5\x00--\x00y")
	f.Add("sft\x00--learning_rate\x00${x}\x00--system\x00\x00-h")
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Split(line, "\x00")
		if settings, err := splitWords(words); err == nil {
			var again []string
			for _, s := range settings {
				again = append(again, "--"+s.name)
				if len(s.values) > 0 {
					again[len(again)-1] += "=" + s.values[0]
					again = append(again, s.values[1:]...)
				}
			}
			got, err := splitWords(again)
			if err != nil {
				t.Fatalf("%q split to %v, which does not split: %v", words, settings, err)
			}
			if d := cmp.Diff(settings, got, cmp.AllowUnexported(setting{})); d != "" {
				t.Fatalf("%q changes when split again:\n%s", words, d)
			}
		}
		if _, err := parse(words); err != nil && strings.TrimSpace(err.Error()) == "" {
			t.Fatalf("%q: an error without words", words)
		}
	})
}
