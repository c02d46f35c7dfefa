package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"qlora/internal/allocs"
)

const exampleYAML = `# a run
model: M
dataset:
  - a.jsonl#500
  - 'b c.jsonl'
lora-rank: 16
learning_rate: 1e-4   # as it is written
use_rslora: true
system: |
  Be brief.
  Be kind.
target_modules: [q_proj, "v_proj"]
columns: {a: query, b: "response"}
val_dataset: null
template: ~
ENV:
  CUDA_VISIBLE_DEVICES: 0
`

const exampleJSON = `{
  "model": "M",
  "dataset": ["a.jsonl#500", "b c.jsonl"],
  "lora-rank": 16, "learning_rate": 1e-4,
  "use_rslora": true,
  "system": "Be brief.\nBe kind.\n",
  "target_modules": ["q_proj", "v_proj"],
  "columns": {"a":"query","b":"response"},
  "val_dataset": null,
  "template": null,
  "ENV": {"CUDA_VISIBLE_DEVICES": 0}
}
`

// written puts a configuration file into a folder of its own.
func written(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	write(t, path, text)
	return path
}

func TestReadConfig(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		places []string
	}{
		"run.yaml": {exampleYAML, []string{"2:1", "3:1", "6:1", "7:1", "8:1", "9:1", "12:1", "13:1", "16:1"}},
		"run.yml":  {exampleYAML, []string{"2:1", "3:1", "6:1", "7:1", "8:1", "9:1", "12:1", "13:1", "16:1"}},
		"run.json": {exampleJSON, []string{"2:3", "3:3", "4:3", "4:20", "5:3", "6:3", "7:3", "8:3", "11:3"}},
	} {
		path := written(t, name, c.text)
		got, notices, err := readConfig(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var want []setting
		for i, s := range []setting{
			{name: "model", values: []string{"M"}},
			{name: "dataset", values: []string{"a.jsonl#500", "b c.jsonl"}},
			{name: "lora_rank", values: []string{"16"}},
			{name: "learning_rate", values: []string{"1e-4"}},
			{name: "use_rslora", values: []string{"true"}},
			{name: "system", values: []string{"Be brief.\nBe kind.\n"}},
			{name: "target_modules", values: []string{"q_proj", "v_proj"}},
			{name: "columns", values: []string{`{"a":"query","b":"response"}`}},
		} {
			s.at = path + ":" + c.places[i]
			want = append(want, s)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(setting{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if at := path + ":" + c.places[8]; len(notices) != 1 || !strings.Contains(notices[0], at+": ENV has no effect") {
			t.Errorf("%s: notices %q, want one at %s", name, notices, at)
		}
	}
}

func TestConfigOnTheCommandLine(t *testing.T) {
	path := written(t, "run.yaml", "model: M\ntrain_type: lora\ndataset: [a, b]\nlora_rank: 16\ndataset_shuffle: false\nuse_rslora: true\nattn_impl: sdpa\n")
	c, p := command[sftCmd](t, []string{"sft", path, "--dataset", "c", "--lora-rank", "4", "--tuner_type", "lora", "--no_use_rslora"})
	if c.Model != "M" || c.LoRARank != 4 || !slices.Equal(c.Dataset, []string{"c"}) || c.DatasetShuffle || c.UseRSLoRA || p.config != path {
		t.Errorf("command %+v, file %q", c, p.config)
	}
	if len(p.notices) != 1 || !strings.Contains(p.notices[0], "--attn_impl has no effect") {
		t.Errorf("notices %q", p.notices)
	}
	infer, _ := command[inferCmd](t, []string{"infer", written(t, "chat.json", `{"adapters": ["a"], "stream": false, "temperature": 0}`)})
	if !slices.Equal(infer.Adapters, []string{"a"}) || *infer.Stream || *infer.Temperature != 0 {
		t.Errorf("infer: %+v", infer)
	}
}

func TestConfigFaults(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a.yaml", "model: M\nlora_rnk: 8\n", ":2:1: unknown flag --lora_rnk: did you mean --lora_rank?"},
		{"a.yaml", "dataset: a\nuse_dora: true\n", ":2:1: --use_dora true: known but not supported"},
		{"a.yaml", "dataset: a\nlora_rank: many\n", ":2:1: --lora_rank: expected a valid"},
		{"a.yaml", "dataset: a\nlora_rank: [8, 16]\n", ":2:1: --lora_rank takes one value, not 2"},
		{"a.yaml", "dataset: a\nstrict: maybe\n", ":2:1: --strict takes true or false"},
		{"a.yaml", "dataset: []\n", ":1:10: an empty list: leave the key out"},
		{"a.yaml", "dataset: [[a]]\n", ":1:11: an item of a list is one value"},
		{"a.yaml", "seed: 1\nseed: 2\n", ":2:1: "},
		{"a.yaml", "lora_rank: 1\nlora-rank: 2\n", ":2:1: lora_rank is set twice, first at "},
		{"a.yaml", "seed: 1\n\tmodel: M\n", ":2:1: found character"},
		{"a.yaml", "model: 'M\n", ":1:"},
		{"a.yaml", "- a\n- b\n", ":1:1: a configuration is an object"},
		{"a.yaml", "just words\n", ":1:1: a configuration is an object"},
		{"a.yaml", "a: &x 1\nb: *x\n", "write the value out"},
		{"a.yaml", "seed: 1\n---\nseed: 2\n", "2 documents in one file"},
		{"a.yaml", "a: " + strings.Repeat("[", 201), ": line 1: nested deeper than 200"},
		{"a.yaml", "a: " + strings.Repeat("#", maxConfig), ": larger than 256 KiB"},
		{"a.json", `[{"query": "q"}]`, ":1:1: a configuration is an object"},
		{"a.json", "{\"seed\": 1,\n \"lora_rnk\": 8}", ":2:2: unknown flag --lora_rnk"},
		{"a.json", "{\"größe\": 1, \"seed\": 1, \"seed\": 2}", ":1:25: seed is set twice, first at "},
		{"a.json", "{\"seed\": 1,\n  oops: 2}", ":2:3: invalid character 'o'"},
		{"a.json", "{\"seed\": 1,\n  \"a\": 01}", ":2:9: invalid character '1'"},
		{"a.json", "{\"seed\": 1,\n  \"a\": ", ":2:8: the file ends inside the object"},
		{"a.json", "{\"seed\": 1", ":1:11: the file ends inside the object"},
		{"a.json", "", ":1:1: the file ends inside the object"},
		{"a.json", "{\"seed\": 1}\n{}", "text behind the object"},
		{"a.json", "{\"dataset\": []}", ":1:2: dataset: an empty list: leave the key out"},
		{"a.json", "{\"dataset\": [null]}", "an item of a list is one value"},
	} {
		path := written(t, c.name, c.text)
		if _, err := parse([]string{"sft", path}); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.text, err, c.want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	for _, text := range []string{"", exampleYAML, exampleJSON, "a: 1\n---\n", "{", "...", "? a\n: b", "a:\n\t- b", "!!str a: b", "<<: {a: b}", "\"\\ud800\": 1"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, read := range []func(string, []byte) ([]setting, error){yamlSettings, jsonSettings} {
			var settings []setting
			var err error
			allocs.Within(t, 700*len(text)+1<<20, func() { settings, err = read("f", text) })
			for _, s := range settings {
				if err != nil || s.at == "" || s.values != nil && len(s.values) == 0 {
					t.Errorf("%q: %v, %v", text, s, err)
				}
			}
		}
	})
}
