package data

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSpec(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"a.jsonl", "a#5.jsonl", "b#7", "x:y.csv", "hf::z.csv"} {
		if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]Spec{
		"a.jsonl":                                {Name: "a.jsonl"},
		"a.jsonl#500":                            {Name: "a.jsonl", Count: 500},
		"a#5.jsonl":                              {Name: "a#5.jsonl"}, // what exists is a path
		"a#5.jsonl#2":                            {Name: "a#5.jsonl", Count: 2},
		"b#7":                                    {Name: "b#7"},
		"x:y.csv":                                {Name: "x:y.csv"},
		"x:y.csv#3":                              {Name: "x:y.csv", Count: 3},
		"hf::z.csv":                              {Name: "hf::z.csv"},
		"AI-ModelScope/alpaca#500":               {Name: "AI-ModelScope/alpaca", Count: 500},
		"swift/x:a/ b#9":                         {Name: "swift/x", Subsets: []string{"a", "b"}, Count: 9},
		"HF::org/name":                           {Hub: "hf", Name: "org/name"},
		"ms::org/name:default#1":                 {Hub: "ms", Name: "org/name", Subsets: []string{"default"}, Count: 1},
		"builtin:self-cognition":                 {Name: SelfCognition},
		"builtin:self-cognition#20":              {Name: SelfCognition, Count: 20},
		"builtin:self-cognition:qwen3/default#9": {Name: SelfCognition, Subsets: []string{"qwen3", "default"}, Count: 9},
		"missing.jsonl":                          {Name: "missing.jsonl"},
	} {
		got, err := ParseSpec(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
	for text, want := range map[string]string{
		"a.jsonl#0": "no count of rows", "a.jsonl#-1": "no count", "a.jsonl#x": `"x" after the #`, "a#": "no count", "a#99999999999999999999": "no count",
		"gh::org/name": `unknown hub "gh"`, "": "no name", "#5": "no name", "hf::": "no name",
	} {
		if spec, err := ParseSpec(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", text, spec, err, want)
		}
	}
}

// tree makes a folder of files, and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFolderFiles(t *testing.T) {
	card := func(yaml string) string { return "---\nlicense: mit\n" + yaml + "\n---\n# A dataset\n" }
	for _, c := range []struct {
		name    string
		files   []string
		readme  string
		subsets []string
		want    []string
		err     string
	}{
		{"all", []string{"a.jsonl", "b/c.jsonl", "dataset_infos.json", ".hidden.jsonl", "__x/d.jsonl", "LICENSE"}, "", nil, []string{"a.jsonl", "b/c.jsonl"}, ""},
		{"shards", []string{"data/train-00000-of-00002-ab.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet", "other.parquet"}, "", nil,
			[]string{"data/train-00000-of-00002-ab.parquet", "data/train-00001-of-00002.parquet"}, ""},
		{"split in a folder's name", []string{"train/a.csv", "test/a.csv", "trainer/x.csv"}, "", nil, []string{"train/a.csv"}, ""},
		{"split in a file's name", []string{"my_train_1.json", "x-training.json", "dev.json", "constrain.json"}, "", nil, []string{"my_train_1.json", "x-training.json"}, ""},
		{"only test", []string{"test.json"}, "", nil, nil, "no file of split train, only test.json"},
		{"commonest type", []string{"a.jsonl", "b.jsonl", "c.csv"}, "", nil, []string{"a.jsonl", "b.jsonl"}, ""},
		{"nothing", []string{"README", "a.xml"}, "", nil, nil, "holds no file of type"},
		{"folder as a subset", []string{"en/a.json", "zh/a.json"}, "", []string{"zh"}, []string{"zh/a.json"}, ""},
		{"no such subset", []string{"en/a.json"}, "", []string{"fr"}, nil, `subset "fr" has no file`},
		{"default", []string{"a.json"}, "", []string{"default"}, []string{"a.json"}, ""},
		{"configs", []string{"en.json", "zh.json", "more/zh.json"}, card("configs:\n- config_name: en\n  data_files: en.json\n- config_name: zh\n  data_files:\n  - split: train\n    path:\n    - zh.json\n    - more/*.json\n  - split: test\n    path: en.json"),
			[]string{"zh", "en"}, []string{"more/zh.json", "zh.json", "en.json"}, ""},
		{"configs, unnamed", []string{"en.json", "zh.json"}, card("configs:\n- config_name: en\n  data_files: en.json\n- config_name: zh\n  data_files: zh.json"), nil, nil, "several subsets: name some of en, zh"},
		{"configs, default", []string{"en.json", "zh.json"}, card("configs:\n- config_name: en\n  data_files: en.json\n- config_name: zh\n  default: true\n  data_files: ['**/zh*']"), nil, []string{"zh.json"}, ""},
		{"configs, all", []string{"en.json", "zh.json"}, card("configs:\n- config_name: en\n  data_files: e?.json\n- config_name: zh\n  data_files: zh.json"), []string{"all"}, []string{"en.json", "zh.json"}, ""},
		{"configs, missing", []string{"en.json"}, card("configs:\n- config_name: en\n  data_files: en.json"), []string{"de"}, nil, `no subset "de", only en`},
		{"configs, data_dir", []string{"d/train.json", "d/test.json", "e.json"}, card("configs:\n- config_name: default\n  data_dir: d"), nil, []string{"d/train.json"}, ""},
		{"bad configs", []string{"en.json"}, card("configs: 3"), nil, nil, "README.md: configs"},
		{"aliases", []string{"en.json"}, card("a: &a [x]\nconfigs: [*a, *a]"), nil, nil, "README.md: aliases are not read"},
		{"deep front matter", []string{"en.json"}, card("license: mit\na: " + strings.Repeat("[", 201)), nil, nil, "README.md: line 4: nested deeper"},
		{"long front matter", []string{"en.json"}, card("#" + strings.Repeat(" ", 1<<20)), nil, nil, "README.md: its front matter is larger"},
		{"readme without front matter", []string{"en.json"}, "# A dataset", nil, []string{"en.json"}, ""},
	} {
		files := map[string]string{}
		for _, f := range c.files {
			files[f] = "{}"
		}
		if c.readme != "" {
			files["README.md"] = c.readme
		}
		dir := tree(t, files)
		sources, leftOut, err := folderFiles(dir, c.subsets, make([]wording, len(c.subsets)))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got []string
		for _, s := range sources {
			rel, _ := filepath.Rel(dir, s.file)
			got = append(got, rel)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for _, file := range leftOut {
			if rel, _ := filepath.Rel(dir, file); slices.Contains(c.want, rel) {
				t.Errorf("%s: %s is read and left out", c.name, rel)
			}
		}
	}
}

const (
	rowA = `{"query":"a","response":"A"}` + "\n"
	rowB = `{"query":"b","response":"B"}` + "\n"
)

// queries are the questions of a dataset's rows.
func queries(t *testing.T, dataset string) string {
	t.Helper()
	text := ""
	for ex, err := range Rows(dataset, Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		text += ex.Conversation.Messages[0].Content
	}
	return text
}

// Datasets are found in the caches of both hubs as their downloaders lay them out.
func TestHubCaches(t *testing.T) {
	hf := tree(t, map[string]string{
		"datasets--org--both/refs/main":                       "abc\n",
		"datasets--org--both/snapshots/abc/train.jsonl":       rowA,
		"datasets--org--both/snapshots/old/train.jsonl":       rowB,
		"datasets--org--noref/snapshots/abc/train.jsonl":      rowA,
		"datasets--org--gone/refs/main":                       "abc",
		"datasets--org--evil/refs/main":                       "../../datasets--org--both/snapshots/abc",
		"datasets--org--self-cognition/refs/main":             "1",
		"datasets--org--self-cognition/snapshots/1/README.md": "x",
		"datasets--org--self-cognition/snapshots/1/d.jsonl":   rowA + rowB,
	})
	ms := tree(t, map[string]string{
		"hub/datasets/org/both/train.jsonl":                     rowB,
		"hub/datasets/org/v1___5/data.jsonl":                    rowB + rowB,
		"datasets/org/older/master/raw/data/train.jsonl":        rowB + rowA,
		"datasets/org/older/master/raw/data/dataset_infos.json": "{}",
	})
	t.Setenv("HF_HUB_CACHE", hf)
	t.Setenv("MODELSCOPE_CACHE", ms)
	t.Chdir(t.TempDir())
	for dataset, want := range map[string]string{
		"org/both": "a", "hf::org/both": "a", "ms::org/both": "b", "org/v1.5": "bb", "org/older": "ba", "org/self-cognition": "ab",
		"org/both:default#100": "a", // Rows gives every row once
	} {
		if got := queries(t, dataset); got != want {
			t.Errorf("%s: rows %s, want %s", dataset, got, want)
		}
	}
	for dataset, want := range map[string]string{
		"org/none": "huggingface-cli download --repo-type dataset org/none", "ms::org/noref": "modelscope download --dataset org/noref",
		"hf::org/noref": "which names the current one", "org/gone": "a snapshot that is not there", "org/evil": "is no revision",
		"org/file.json": "no such file: give a file", "/abs/none": "no such file", "none": "no such file", "org/none#500": "not in the cache of a hub",
	} {
		_, err := openDataset(dataset)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dataset, err, want)
		}
	}
}

// The rows of a folder follow each other, file by file, and each is named by its own.
// What is no file is refused, not waited for: of a pipe nothing may ever come.
func TestDatasetPipes(t *testing.T) {
	for _, name := range []string{"README.md", "b.jsonl"} {
		dir := tree(t, map[string]string{"a.jsonl": rowA})
		pipe := filepath.Join(dir, name)
		if err := syscall.Mkfifo(pipe, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, dataset := range []string{dir, pipe} {
			want := pipe + " is not a file"
			if dataset == pipe {
				want = "neither a file nor a folder"
			}
			for _, err := range Rows(dataset, Options{}) {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", dataset, err, want)
				}
			}
		}
	}
}

func TestFolderRows(t *testing.T) {
	dir := tree(t, map[string]string{"a.jsonl": rowA + rowB, "b.jsonl": rowB, "c.jsonl": rowA})
	var got []string
	for ex, err := range Rows(dir, Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, filepath.Base(ex.File)+string(rune('0'+ex.Row))+ex.Conversation.Messages[0].Content)
	}
	if want := []string{"a.jsonl1a", "a.jsonl2b", "b.jsonl1b", "c.jsonl1a"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
