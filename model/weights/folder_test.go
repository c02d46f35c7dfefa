package weights

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// put writes a file below dir, making its folders.
func put(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		t.Fatal(err)
	}
}

func fifo(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

// putMini copies a golden model into dir.
func putMini(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"config.json", "model.safetensors"} {
		put(t, dir, name, string(readFile(t, filepath.Join(goldenDir(t, "models/mini"), name))))
	}
}

func TestOpenRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside.safetensors")
	copyFile(t, outside, filepath.Join(goldenDir(t, "models/mini"), "model.safetensors"))
	config := string(readFile(t, filepath.Join(goldenDir(t, "models/mini"), "config.json")))
	shard := func(shard string) string { return `{"weight_map":{"a":"` + shard + `"}}` }
	index := func(content string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			put(t, dir, indexName, content)
		}
	}
	cases := []struct {
		name string
		make func(t *testing.T, dir string)
		msg  string
	}{
		{"empty", func(*testing.T, string) {}, "not a model's folder: it needs config.json"},
		{"config alone", func(t *testing.T, dir string) { put(t, dir, "config.json", config) }, "not a model's folder"},
		{"pickle", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			put(t, dir, "pytorch_model.bin", "")
		}, "pytorch_model.bin may be a pickle"},
		{"GGUF in a folder", func(t *testing.T, dir string) { put(t, dir, "m.gguf", "") }, filepath.Join("", "m.gguf")},
		{"adapter", func(t *testing.T, dir string) { put(t, dir, "adapter_config.json", "{}") }, "an adapter, not a model"},
		{"bad config", func(t *testing.T, dir string) { put(t, dir, "config.json", "{}"); put(t, dir, "model.safetensors", "") }, "config.json: model_type"},
		{"bad generation config", func(t *testing.T, dir string) { putMini(t, dir); put(t, dir, "generation_config.json", "[]") }, "generation_config.json: byte"},
		{"bad weights", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			put(t, dir, "model.safetensors", "1234")
		}, "model.safetensors: byte 4: 4 bytes: too short"},
		{"config a folder", func(t *testing.T, dir string) {
			put(t, dir, "config.json/x", "")
			put(t, dir, "model.safetensors", "")
		}, "config.json: not a regular file"},
		{"weights a pipe", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			fifo(t, filepath.Join(dir, "model.safetensors"))
		}, "model.safetensors: not a regular file"},
		{"weights a device", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			link(t, "/dev/zero", filepath.Join(dir, "model.safetensors"))
		}, "links out of a model's folder are not followed"},
		{"link out", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			link(t, outside, filepath.Join(dir, "model.safetensors"))
		}, "links out of a model's folder are not followed"},
		{"chain of links out", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			link(t, "sub/b", filepath.Join(dir, "model.safetensors"))
			link(t, "../../"+filepath.Base(filepath.Dir(outside))+"/outside.safetensors", filepath.Join(dir, "sub/b"))
		}, "links out of a model's folder are not followed"},
		{"link to itself", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			link(t, "model.safetensors", filepath.Join(dir, "model.safetensors"))
		}, "model.safetensors: too many levels of symbolic links"},
		{"links in a circle", func(t *testing.T, dir string) {
			link(t, "a", filepath.Join(dir, "config.json"))
			link(t, "config.json", filepath.Join(dir, "a"))
		}, "config.json: too many levels of symbolic links"},
		{"config a pipe", func(t *testing.T, dir string) {
			put(t, dir, "model.safetensors", "")
			fifo(t, filepath.Join(dir, "config.json"))
		}, "config.json: not a regular file"},
		{"generation config a device", func(t *testing.T, dir string) {
			putMini(t, dir)
			link(t, "/dev/zero", filepath.Join(dir, "generation_config.json"))
		}, "generation_config.json: path escapes from parent (links out"},
		{"index a pipe", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			fifo(t, filepath.Join(dir, indexName))
		}, indexName + ": not a regular file"},
		{"shard a pipe", func(t *testing.T, dir string) {
			index(shard("x.safetensors"))(t, dir)
			fifo(t, filepath.Join(dir, "x.safetensors"))
		}, "x.safetensors: not a regular file"},
		{"shard a link out", func(t *testing.T, dir string) {
			index(shard("x.safetensors"))(t, dir)
			link(t, outside, filepath.Join(dir, "x.safetensors"))
		}, "x.safetensors: path escapes from parent (links out"},
		{"config over the limit", func(t *testing.T, dir string) {
			put(t, dir, "config.json", strings.Repeat(" ", maxConfig+1))
		}, "config.json: more than the limit of 4194304 bytes"},
		{"broken link", func(t *testing.T, dir string) {
			put(t, dir, "config.json", config)
			link(t, "none", filepath.Join(dir, "model.safetensors"))
		}, "model.safetensors: no such file"},
		{"index not JSON", index("{"), indexName + ": byte 1: unexpected end"},
		{"no weight_map", index("{}"), "weight_map is missing or empty"},
		{"tensor twice", index(`{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}`), `key "a" occurs twice`},
		{"shard above", index(shard("../x.safetensors")), `"../x.safetensors" is not a plain file name`},
		{"shard absolute", index(shard("/etc/passwd")), `"/etc/passwd" is not a plain file name`},
		{"shard up and down", index(shard("a/../../x.safetensors")), "is not a plain file name"},
		{"shard in a folder", index(shard("a/x.safetensors")), "is not a plain file name"},
		{"shard on a drive", index(shard(`C:\\x.safetensors`)), "is not a plain file name"},
		{"shard with NUL", index(shard(`x\u0000.safetensors`)), "is not a plain file name"},
		{"shard a dot", index(shard(".")), "is not a plain file name"},
		{"shard empty", index(shard("")), "is not a plain file name"},
		{"shard a pickle", index(shard("x.bin")), `"x.bin" is not a .safetensors file`},
		{"shard missing", index(shard("x.safetensors")), "x.safetensors: no such file"},
		{"shard lacks it", func(t *testing.T, dir string) {
			index(`{"weight_map":{"a":"x.safetensors","b":"x.safetensors"}}`)(t, dir)
			put(t, dir, "x.safetensors", string(safetensorsBytes(one("", ""), 8)))
		}, `tensor "b" is not in x.safetensors, where weight_map places it`},
		{"shard holds another's", func(t *testing.T, dir string) {
			index(`{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}`)(t, dir)
			put(t, dir, "x.safetensors", string(safetensorsBytes(f32Pair("[0,8]", "[8,16]"), 16)))
			put(t, dir, "y.safetensors", string(safetensorsBytes(strings.Replace(one("", ""), `"a"`, `"b"`, 1), 8)))
		}, `holds tensor "b", which model.safetensors.index.json does not place there`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			m, err := Open(dir)
			if err == nil || !strings.Contains(err.Error(), c.msg) || !strings.HasPrefix(err.Error(), dir) {
				t.Errorf("got %v, %v, want %q", m, err, c.msg)
			}
		})
	}
}

func TestReadFileStaysInside(t *testing.T) {
	dir := t.TempDir()
	putMini(t, dir)
	put(t, dir, "tokenizer.json", "{}")
	m := mustOpen(t, dir)
	if data, err := m.ReadFile("tokenizer.json"); err != nil || string(data) != "{}" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := m.ReadFile("vocab.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	for _, name := range []string{"../x", "/etc/passwd", "a/../../x", "", "..", "a/b"} {
		if _, err := m.ReadFile(name); err == nil || !strings.Contains(err.Error(), "not a plain file name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// inCaches points every cache at folders below a new one, which it returns.
func inCaches(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "MODELSCOPE_CACHE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", dir)
	t.Chdir(dir)
	return dir
}

// putSnapshot lays a model out as huggingface_hub does: files are links to blobs.
func putSnapshot(t *testing.T, hub string) {
	t.Helper()
	repo := filepath.Join(hub, "models--Qwen--Qwen2.5-mini")
	putMini(t, filepath.Join(repo, "blobs"))
	put(t, repo, "refs/main", "abc123\n")
	for _, name := range []string{"config.json", "model.safetensors"} {
		link(t, "../../blobs/"+name, filepath.Join(repo, "snapshots", "abc123", name))
	}
}

func TestOpenHubID(t *testing.T) {
	t.Setenv("QLORA_GOLDEN", absGolden(t))
	cases := []struct {
		name, env, value string // of an environment variable, below the home
		make             func(t *testing.T, home string)
	}{
		{"HF default", "", "", func(t *testing.T, home string) { putSnapshot(t, home+"/.cache/huggingface/hub") }},
		{"HF_HOME", "HF_HOME", "hf", func(t *testing.T, home string) { putSnapshot(t, home+"/hf/hub") }},
		{"HF_HUB_CACHE", "HF_HUB_CACHE", "hc", func(t *testing.T, home string) { putSnapshot(t, home+"/hc") }},
		{"XDG_CACHE_HOME", "XDG_CACHE_HOME", "xdg", func(t *testing.T, home string) { putSnapshot(t, home+"/xdg/huggingface/hub") }},
		{"ModelScope", "", "", func(t *testing.T, home string) { putMini(t, home+"/.cache/modelscope/hub/models/Qwen/Qwen2.5-mini") }},
		{"ModelScope, dots", "", "", func(t *testing.T, home string) {
			putMini(t, home+"/.cache/modelscope/hub/models/Qwen/Qwen2___5-mini")
		}},
		{"ModelScope, older", "", "", func(t *testing.T, home string) { putMini(t, home+"/.cache/modelscope/hub/Qwen/Qwen2___5-mini") }},
		{"MODELSCOPE_CACHE", "MODELSCOPE_CACHE", "ms", func(t *testing.T, home string) { putMini(t, home+"/ms/models/Qwen/Qwen2.5-mini") }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			home := inCaches(t)
			if c.env != "" {
				t.Setenv(c.env, filepath.Join(home, c.value))
			}
			c.make(t, home)
			m := mustOpen(t, "Qwen/Qwen2.5-mini")
			if m.HubID != "Qwen/Qwen2.5-mini" || m.Config.VocabSize == 0 || !strings.HasPrefix(m.Dir, home) {
				t.Errorf("%q in %s", m.HubID, m.Dir)
			}
			checkShapes(t, m)
			// The folder itself is a model too, and a snapshot's path tells its id.
			m = mustOpen(t, m.Dir)
			if strings.Contains(m.Dir, "snapshots") != (m.HubID == "Qwen/Qwen2.5-mini") {
				t.Errorf("as a folder: %q in %s", m.HubID, m.Dir)
			}
		})
	}
}

func absGolden(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Dir(goldenDir(t, "models")))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpenHubIDRefuses(t *testing.T) {
	t.Setenv("QLORA_GOLDEN", absGolden(t))
	repo := ".cache/huggingface/hub/models--Qwen--Qwen2.5-mini"
	cases := []struct {
		name, spec string
		make       func(t *testing.T, home string)
		msg        string
	}{
		{"nowhere", "Qwen/Qwen2.5-mini", func(*testing.T, string) {}, "huggingface-cli download Qwen/Qwen2.5-mini\n  modelscope download --model Qwen/Qwen2.5-mini"},
		{"says where", "Qwen/Qwen2.5-mini", func(*testing.T, string) {}, filepath.Join(".cache/modelscope/hub/models/Qwen/Qwen2.5-mini")},
		{"no id", "no/such/folder", func(*testing.T, string) {}, `model "no/such/folder": no such folder or file`},
		{"dots", "../..x", func(*testing.T, string) {}, "no such folder or file"},
		{"GGUF a pipe", "a.gguf", func(t *testing.T, home string) { fifo(t, filepath.Join(home, "a.gguf")) }, "a.gguf: not a regular file"},
		{"other file", "a.txt", func(t *testing.T, home string) { put(t, home, "a.txt", "") }, "a.txt: neither a folder nor a .gguf file"},
		{"no ref", "Qwen/Qwen2.5-mini", func(t *testing.T, home string) { put(t, home, repo+"/snapshots/abc/config.json", "{}") }, "the cache has a snapshot but not "},
		{"ref leads out", "Qwen/Qwen2.5-mini", func(t *testing.T, home string) { put(t, home, repo+"/refs/main", "../../..") }, `refs/main: "../../.." is no revision`},
		{"ref to nothing", "Qwen/Qwen2.5-mini", func(t *testing.T, home string) { put(t, home, repo+"/refs/main", "abc") }, "names a snapshot that is not there"},
		{"link out of the cache", "Qwen/Qwen2.5-mini", func(t *testing.T, home string) {
			put(t, home, repo+"/refs/main", "abc")
			put(t, home, "config.json", "{}")
			link(t, home+"/config.json", filepath.Join(home, repo, "snapshots/abc/config.json"))
		}, "links out of a model's folder are not followed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			home := inCaches(t)
			c.make(t, home)
			if m, err := Open(c.spec); err == nil || !strings.Contains(err.Error(), c.msg) {
				t.Errorf("got %v, %v, want %q", m, err, c.msg)
			}
		})
	}
}

func TestFingerprint(t *testing.T) {
	of := func(spec string) string {
		sum, err := mustOpen(t, spec).Fingerprint()
		if err != nil || len(sum) != 64 {
			t.Fatalf("%s: %q, %v", spec, sum, err)
		}
		return sum
	}
	untied := of(goldenDir(t, "models/mini_untied"))
	if sharded := of(shardedCopy(t)); sharded != untied {
		t.Error("shards have another fingerprint than the one file they come from")
	}
	seen := map[string]string{untied: "mini_untied"}
	for _, spec := range []string{goldenDir(t, "models/mini"), goldenDir(t, "models/mini_bf16"), filepath.Join(ggufDir, "qwen2.gguf"), filepath.Join(ggufDir, "llama.gguf")} {
		sum := of(spec)
		if seen[sum] != "" {
			t.Errorf("%s has the fingerprint of %s", spec, seen[sum])
		}
		seen[sum] = spec
	}
	// A change of the last bytes of one tensor, of a norm or of what config.json says
	// about the arithmetic is another base; another id for a token is not.
	copied := t.TempDir()
	putMini(t, copied)
	mini := of(copied)
	whole := readFile(t, filepath.Join(copied, "model.safetensors"))
	whole[len(whole)-1] ^= 1
	put(t, copied, "model.safetensors", string(whole))
	if of(copied) == mini {
		t.Error("a changed weight has the same fingerprint")
	}
	putMini(t, copied)
	config := string(readFile(t, filepath.Join(copied, "config.json")))
	put(t, copied, "config.json", strings.Replace(config, `"eos_token_id": null`, `"eos_token_id": 3`, 1))
	if of(copied) != mini {
		t.Error("another eos id has another fingerprint")
	}
	put(t, copied, "config.json", strings.Replace(config, `1000000.0`, `10000.0`, 1))
	if of(copied) == mini {
		t.Error("another rope_theta has the same fingerprint")
	}
}
