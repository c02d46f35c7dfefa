package lora

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"qlora/internal/allocs"
	"qlora/internal/golden"
	"qlora/model/ops"
	"qlora/model/weights"
	"qlora/model/weights/weightstest"
)

func config(t *testing.T, model string) weights.Config {
	t.Helper()
	path := golden.Path(t, "models", model, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := weights.ParseConfig(data, path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An adapter that PEFT wrote comes out of Load and Save byte for byte.
func TestSaveWritesPEFTsBytes(t *testing.T) {
	for _, c := range [][2]string{{"mini", "adapter_a"}, {"mini", "adapter_rslora"}, {"mini_untied", "adapter_a"}} {
		in, out := golden.Path(t, "lora", c[0], c[1]), t.TempDir()
		set, params, base, err := Load(in, config(t, c[0]))
		if err != nil {
			t.Fatal(err)
		}
		if err := set.Save(out, params, base); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(in, WeightsFile))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(out, WeightsFile))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%v: %s differs from what PEFT wrote", c, WeightsFile)
		}
		sameConfig(t, filepath.Join(in, ConfigFile), filepath.Join(out, ConfigFile))
	}
}

// sameConfig compares the keys that got has with PEFT's.
func sameConfig(t *testing.T, want, got string) {
	t.Helper()
	read := func(path string) map[string]any {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	w, g := read(want), read(got)
	for key, v := range g {
		a, _ := json.Marshal(v)
		b, _ := json.Marshal(w[key])
		if !bytes.Equal(a, b) {
			t.Errorf("%s: %s is %s, PEFT wrote %s", got, key, a, b)
		}
	}
	for _, key := range []string{"peft_type", "task_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"} {
		if g[key] == nil {
			t.Errorf("%s lacks %s", got, key)
		}
	}
}

func TestTargets(t *testing.T) {
	base := config(t, "mini")
	for _, c := range []struct {
		config  Config
		modules int // of a layer, or, negative, of one layer alone
		err     string
	}{
		{Config{Targets: []string{AllLinear}}, 7, ""},
		{Config{Targets: []string{"q_proj", "v_proj"}}, 2, ""},
		{Config{Targets: []string{"self_attn.q_proj"}}, 1, ""},
		{Config{TargetRegex: `model\.layers\.1\..*(gate|up)_proj`}, -2, ""},
		{Config{TargetRegex: `q_proj`}, 0, "matches no module"},
		{Config{TargetRegex: `(`}, 0, "missing closing"},
		{Config{Targets: []string{"query"}}, 0, "choose from q_proj, k_proj"},
		{Config{Targets: []string{"lm_head"}}, 0, "not adapted"},
		{Config{}, 0, "no target modules"},
	} {
		c.config.R, c.config.Alpha = 4, 8
		set, err := New(base, c.config)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v: %v, want an error with %q", c.config, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", c.config, err)
		} else if want := max(c.modules*base.NumHiddenLayers, -c.modules); set.Modules() != want {
			t.Errorf("%+v: %d modules, want %d", c.config, set.Modules(), want)
		}
	}
}

func TestParametersOfPublishedShapes(t *testing.T) {
	qwen := func(layers, hidden, heads, kv, d, ffn int) weights.Config {
		return weights.Config{NumHiddenLayers: layers, HiddenSize: hidden, NumAttentionHeads: heads, NumKeyValueHeads: kv, HeadDim: d, IntermediateSize: ffn}
	}
	for _, c := range []struct {
		base weights.Config
		want int
	}{
		{qwen(24, 896, 14, 2, 64, 4864), 4_399_104},
		{qwen(28, 1536, 12, 2, 128, 8960), 9_232_384},
		{qwen(36, 2048, 16, 2, 128, 11008), 14_966_784},
		{qwen(28, 3584, 28, 4, 128, 18944), 20_185_088},
	} {
		set, err := New(c.base, Config{R: 8, Alpha: 32, Targets: []string{AllLinear}})
		if err != nil {
			t.Fatal(err)
		}
		if set.Len() != c.want {
			t.Errorf("hidden %d: %d parameters, PEFT has %d", c.base.HiddenSize, set.Len(), c.want)
		}
	}
}

func TestScaleAndPatterns(t *testing.T) {
	set, err := New(config(t, "mini"), Config{R: 8, Alpha: 32, Targets: []string{AllLinear},
		RankPattern: map[string]int{"k_proj": 4, `layers\.1\.mlp\.down_proj`: 2}, AlphaPattern: map[string]float64{"k_proj": 4}})
	if err != nil {
		t.Fatal(err)
	}
	qkv, down := set.At(0, ops.SlotQKV), set.At(1, ops.SlotDown)
	if m := qkv.Modules; m[0].Rank != 8 || m[0].Scale != 4 || m[1].Rank != 4 || m[1].Scale != 1 || qkv.Width != 8+8+8 {
		t.Errorf("qkv: %+v", qkv)
	}
	if down.Modules[0].Rank != 2 || down.Modules[0].Scale != 16 || set.At(0, ops.SlotDown).Width != 8 {
		t.Errorf("down: %+v", down)
	}
	rs, err := New(config(t, "mini"), Config{R: 4, Alpha: 16, RSLoRA: true, Targets: []string{"q_proj"}})
	if err != nil {
		t.Fatal(err)
	}
	if s := rs.At(0, ops.SlotQKV).Modules[0].Scale; s != 8 {
		t.Errorf("rsLoRA scale %v, want 16/sqrt(4)", s)
	}
}

func TestInit(t *testing.T) {
	base := config(t, "mini_untied")
	all, err := New(base, Config{R: 8, Alpha: 8, Targets: []string{AllLinear}})
	if err != nil {
		t.Fatal(err)
	}
	named := func(s *Set, flat []float32) map[string][]float32 {
		m := map[string][]float32{}
		s.Named(func(name string, rows, cols, at int) { m[name] = flat[at : at+rows*cols] })
		return m
	}
	params := named(all, all.Init(1))
	for name, v := range params {
		if strings.Contains(name, "lora_B") {
			if slices.ContainsFunc(v, func(x float32) bool { return x != 0 }) {
				t.Errorf("%s does not start at zero", name)
			}
			continue
		}
		bound := 1 / math.Sqrt(float64(len(v)/8))
		mean, most := 0.0, 0.0
		for _, x := range v {
			mean += float64(x) / float64(len(v))
			most = max(most, math.Abs(float64(x)))
		}
		if most > bound || most < 0.95*bound || math.Abs(mean) > 4*bound/math.Sqrt(3*float64(len(v))) {
			t.Errorf("%s: mean %g, largest %g, bound %g", name, mean, most, bound)
		}
	}
	some, err := New(base, Config{R: 8, Alpha: 8, Targets: []string{"v_proj"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range named(some, some.Init(1)) {
		if !slices.Equal(v, params[name]) {
			t.Errorf("%s depends on which other modules are adapted", name)
		}
	}
	if slices.Equal(all.Init(1), all.Init(2)) {
		t.Error("another seed gives the same start")
	}
}

// LoRA+: every element of B has ratio times the rate of A, and all have the same weight decay.
func TestGroups(t *testing.T) {
	set, err := New(config(t, "mini"), Config{R: 4, Alpha: 8, Targets: []string{"q_proj", "down_proj"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, ratio := range []float64{1, 16} {
		var rates []float64 // of each parameter
		for _, g := range set.Groups(1e-4, 0.1, ratio) {
			rates = append(rates, slices.Repeat([]float64{g.LR}, g.Len)...)
			if g.WeightDecay != 0.1 {
				t.Errorf("ratio %v: a group with weight decay %v", ratio, g.WeightDecay)
			}
		}
		if len(rates) != set.Len() {
			t.Fatalf("ratio %v: groups cover %d of %d", ratio, len(rates), set.Len())
		}
		set.Named(func(name string, rows, cols, at int) {
			want := 1e-4
			if strings.HasSuffix(name, "lora_B.weight") {
				want *= ratio
			}
			if slices.ContainsFunc(rates[at:at+rows*cols], func(lr float64) bool { return lr != want }) {
				t.Errorf("ratio %v: %s has not the rate %v", ratio, name, want)
			}
		})
	}
}

// A damaged adapter is refused with the tensor or key that is wrong.
func TestLoadRefuses(t *testing.T) {
	base := config(t, "mini")
	change := func(old, new string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, ConfigFile)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(data, []byte(old)) {
				t.Fatalf("%s has no %s", path, old)
			}
			if err := os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(new), 1), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := func(name string, make func(path string) error) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			if err := errors.Join(os.Remove(path), make(path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	pipe := func(path string) error { return syscall.Mkfifo(path, 0o644) }
	const targets = `"target_modules": [
  "down_proj",`
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		err    string
	}{
		{"rank", change(`"r": 8`, `"r": 4`), "make it [4 "},
		{"rank 0", change(`"r": 8`, `"r": 0`), "--lora_rank 0"},
		{"rank 65", change(`"r": 8`, `"r": 65`), "rank 65: 64 is the most that runs unmerged; `qlora export --merge_lora true` merges"},
		{"rank 2000", change(`"r": 8`, `"r": 2000`), "--lora_rank 2000: must be 1 to 64"},
		{"rank missing", change(`"r": 8,`, ``), "--lora_rank 0"},
		{"rank with a fraction", change(`"r": 8`, `"r": 8.5`), "r: a JSON number 8.5"},
		{"rank in capitals", change(`"r": 8`, `"R": 8`), `key "R" must be spelled "r"`},
		{"alpha", change(`"lora_alpha": 32`, `"lora_alpha": -1`), "alpha"},
		{"alpha 0", change(`"lora_alpha": 32`, `"lora_alpha": 0`), "--lora_alpha 0"},
		{"alpha NaN", change(`"lora_alpha": 32`, `"lora_alpha": NaN`), "byte"},
		{"alpha a text", change(`"lora_alpha": 32`, `"lora_alpha": "NaN"`), "lora_alpha: a JSON string"},
		{"alpha 1e999", change(`"lora_alpha": 32`, `"lora_alpha": 1e999`), "lora_alpha: a JSON number 1e999"},
		{"alpha beyond float32", change(`"lora_alpha": 32`, `"lora_alpha": 1e300`), "too large for a scale in float32"},
		{"dropout 1", change(`"lora_dropout": 0.0`, `"lora_dropout": 1`), "--lora_dropout 1"},
		{"dora", change(`"use_dora": false`, `"use_dora": true`), "use_dora"},
		{"modules_to_save", change(`"modules_to_save": null`, `"modules_to_save": ["lm_head"]`), "modules_to_save"},
		{"type", change(`"LORA"`, `"IA3"`), "peft_type"},
		{"fewer targets", change(`"down_proj",`, ``), "belongs to no module"},
		{"targets missing", change(`"target_modules"`, `"target_module"`), "target_modules is missing"},
		{"targets null", change(targets, `"target_modules": null, "x": [`), "target_modules is missing"},
		{"targets empty", change(targets, `"target_modules": [], "x": [`), "no target modules"},
		{"targets an object", change(targets, `"target_modules": {}, "x": [`), "neither a list of names nor a regular expression"},
		{"targets numbers", change(targets, `"target_modules": [1], "x": [`), "neither a list of names nor a regular expression"},
		{"targets unknown", change(`"down_proj",`, `"wq",`), `no module is called "wq"`},
		{"targets no expression", change(targets, `"target_modules": "(", "x": [`), "missing closing"},
		{"targets a huge expression", change(targets, `"target_modules": "`+strings.Repeat("a", 70_000)+`", "x": [`), "over the limit of 65536"},
		{"targets compile to too much", change(targets, `"target_modules": "((a{1000}){1000}){1000}", "x": [`), "invalid repeat count"},
		{"rank_pattern 0", change(`"rank_pattern": {}`, `"rank_pattern": {"q_proj": 0}`), `rank_pattern "q_proj": rank 0`},
		{"rank_pattern no expression", change(`"rank_pattern": {}`, `"rank_pattern": {"*": 4}`), `rank_pattern "*"`},
		{"rank_pattern long", change(`"rank_pattern": {}`, `"rank_pattern": {"`+strings.Repeat("a", 300)+`": 4}`), "over the limit of 256"},
		{"rank_pattern of other shapes", change(`"rank_pattern": {}`, `"rank_pattern": {"q_proj": 4}`), "make it [4 "},
		{"alpha_pattern 0", change(`"alpha_pattern": {}`, `"alpha_pattern": {"q_proj": 0}`), `alpha_pattern "q_proj": 0`},
		{"twice", change(`"r": 8`, `"r": 8, "r": 8`), `"r"`},
		{"a list", file(ConfigFile, func(path string) error { return os.WriteFile(path, []byte("[]"), 0o666) }), "array"},
		{"null", file(ConfigFile, func(path string) error { return os.WriteFile(path, []byte("null"), 0o666) }), "the document is null"},
		{"config over 1 MiB", file(ConfigFile, func(path string) error { return os.WriteFile(path, make([]byte, 1<<20+1), 0o666) }), "more than the limit of 1048576"},
		{"config a pipe", file(ConfigFile, pipe), ConfigFile + ": not a regular file"},
		{"config a device", file(ConfigFile, func(path string) error { return os.Symlink("/dev/zero", path) }), "links out of a model's folder are not followed"},
		{"weights a pipe", file(WeightsFile, pipe), WeightsFile + ": not a regular file"},
		{"weights a link out", file(WeightsFile, func(path string) error { return os.Symlink("/etc/hostname", path) }), "links out of a model's folder are not followed"},
		{"weights empty", file(WeightsFile, func(path string) error { return os.WriteFile(path, nil, 0o666) }), "too short for a safetensors file"},
		{"no weights", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, WeightsFile)) }, WeightsFile},
		{"no config", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, ConfigFile)) }, "not a PEFT adapter"},
		{"B transposed", rewrite(func(e *weightstest.Tensor) {
			if strings.HasSuffix(e.Name, "down_proj.lora_B.weight") {
				e.Shape = []int{e.Shape[1], e.Shape[0]}
			}
		}), "down_proj.lora_B.weight has shape [8 "},
		{"A flat", rewrite(func(e *weightstest.Tensor) {
			if strings.HasSuffix(e.Name, "q_proj.lora_A.weight") {
				e.Shape = []int{e.Shape[0] * e.Shape[1]}
			}
		}), "q_proj.lora_A.weight has shape ["},
		{"A missing", rewrite(func(e *weightstest.Tensor) {
			e.Name = strings.Replace(e.Name, "1.mlp.up_proj.lora_A", "1.mlp.up_proj.lora_C", 1)
		}),
			`no tensor "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"`},
		{"a layer too many", rewrite(func(e *weightstest.Tensor) { e.Name = strings.Replace(e.Name, "layers.1.", "layers.7.", 1) }), `no tensor "base_model.model.model.layers.1.`},
		{"integers", rewrite(func(e *weightstest.Tensor) { e.DType = "I32" }), "is stored as I32, which does not read as float32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(golden.Path(t, "lora", "mini", "adapter_a"))); err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := Load(dir, base); err != nil {
				t.Fatal("before the damage:", err)
			}
			c.damage(t, dir)
			if _, _, _, err := Load(dir, base); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want an error with %q", err, c.err)
			}
		})
	}
}

// rewrite passes every tensor of an adapter through change.
func rewrite(change func(*weightstest.Tensor)) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) { weightstest.Rewrite(t, filepath.Join(dir, WeightsFile), change) }
}

func TestTooManyPatterns(t *testing.T) {
	base := config(t, "mini")
	many := map[string]int{}
	for i := range 7*base.NumHiddenLayers + 1 {
		many[fmt.Sprint("x", i)] = 4
	}
	_, err := New(base, Config{R: 4, Alpha: 8, Targets: []string{AllLinear}, RankPattern: many})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("rank_pattern has %d entries", len(many))) {
		t.Errorf("%v", err)
	}
}

// FuzzAdapterConfig reads any adapter_config.json: an error with words, or a set that can be laid out and
// whose own file reads back as the same.
func FuzzAdapterConfig(f *testing.F) {
	for _, dir := range []string{"adapter_a", "adapter_rslora"} {
		text, err := os.ReadFile(golden.Path(f, "lora", "mini", dir, ConfigFile))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":"model\\.layers\\.1\\..*_proj","rank_pattern":{"q_proj":2},"alpha_pattern":{"layers.0.*":1e30}}`))
	f.Add([]byte(`{"peft_type":"LORA","r":64,"lora_alpha":1e-300,"use_rslora":true,"target_modules":"all-linear","lora_dropout":0.999}`))
	base := weights.Config{NumHiddenLayers: 2, HiddenSize: 8, NumAttentionHeads: 2, NumKeyValueHeads: 1, HeadDim: 4, IntermediateSize: 12}
	f.Fuzz(func(t *testing.T, text []byte) {
		var c Config
		var from Base
		var err error
		allocs.Bound(t, len(text), func() { c, from, err = parseConfig(text) })
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Fatal("an error without words")
			}
			return
		}
		set, err := New(base, c)
		if err != nil {
			return
		}
		if set.Len() < 1 || set.Len() > MaxRank*2*7*(8+12) {
			t.Fatalf("%d parameters", set.Len())
		}
		own, err := set.peftJSON(from.Name)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := parseConfig(own)
		if err != nil {
			t.Fatalf("%s: %v", own, err)
		}
		second, err := New(base, again)
		if err != nil || !slices.Equal(second.modules, set.modules) {
			t.Fatalf("%s reads back as %+v, %v", own, again, err)
		}
	})
}

func TestNaNIsRefused(t *testing.T) {
	set, params, base, err := Load(golden.Path(t, "lora", "mini", "adapter_a"), config(t, "mini"))
	if err != nil {
		t.Fatal(err)
	}
	params[3] = float32(math.NaN())
	dir := t.TempDir()
	if err := set.Save(dir, params, base); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := Load(dir, config(t, "mini")); err == nil || !strings.Contains(err.Error(), "element 3 is NaN") {
		t.Errorf("%v", err)
	}
}

func TestBase(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"Qwen/Qwen2.5-7B-Instruct", "/data/x"}: "Qwen/Qwen2.5-7B-Instruct",
		{"", "/home/me/models/mini/"}:           "mini",
		{"", "x/SmolLM2.gguf"}:                  "SmolLM2",
	} {
		if got := PortableName(in[0], in[1]); got != want {
			t.Errorf("%v: %q, want %q", in, got, want)
		}
	}
	a := Base{Name: "mini", Fingerprint: "1111"}
	if CheckBase(a, "1111") != nil || CheckBase(a, "2222") == nil || CheckBase(Base{Name: "x"}, "2222") != nil {
		t.Error("CheckBase accepts another base, or refuses its own")
	}
	dir := t.TempDir()
	set, params, _, err := Load(golden.Path(t, "lora", "mini", "adapter_a"), config(t, "mini"))
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Save(dir, params, a); err != nil {
		t.Fatal(err)
	}
	if _, _, got, err := Load(dir, config(t, "mini")); err != nil || got != a {
		t.Errorf("base %+v, %v; want %+v", got, err, a)
	}
}
