package export

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"qlora/internal/atomicfile"
	"qlora/internal/golden"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/tokenizer"
	"qlora/model/weights"
)

const maxShard = 5e9

// source is a model of the tests' data with golden adapters of the mini model, each of weight 1.
func source(t *testing.T, path string, adapters ...string) *Source {
	t.Helper()
	m, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	v := tokenizer.Vocab{Pre: "gpt-2", BOS: tokenizer.None, EOS: 1, Pad: tokenizer.None,
		Tokens: []string{"<|im_start|>", "<|im_end|>", "a", "b", "ab"}, Types: []int32{3, 3, 1, 1, 1}, Merges: []string{"a b"}}
	tok, err := tokenizer.FromVocab(v)
	if err != nil {
		t.Fatal(err)
	}
	s := &Source{Model: m, Tok: tok, Jinja: "{{ a template }}", Name: "test"}
	if s.Template, err = data.TemplateNamed("qwen2_5"); err != nil {
		t.Fatal(err)
	}
	if len(adapters) > 0 {
		s.Update = update(t, m.Config, adapters...)
	}
	return s
}

func update(t *testing.T, base weights.Config, names ...string) *lora.Update {
	t.Helper()
	var all []*lora.Adapter
	ones := make([]float64, len(names))
	for i, name := range names {
		a := &lora.Adapter{Name: name}
		var err error
		if a.Set, a.Params, a.Base, err = lora.Load(golden.Path(t, "lora", "mini", "adapter_"+name), base); err != nil {
			t.Fatal(err)
		}
		all, ones[i] = append(all, a), 1
	}
	u, err := lora.NewUpdate(all, ones)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func mini(t *testing.T, adapters ...string) *Source {
	return source(t, golden.Path(t, "models", "mini"), adapters...)
}

func values(t *testing.T, m *weights.Model, name string) []float32 {
	t.Helper()
	tensor, err := m.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	v := make([]float32, tensor.Rows()*tensor.RowLen())
	if err := tensor.ReadRowsF32(v, 0, tensor.Rows()); err != nil {
		t.Fatal(err)
	}
	return v
}

func open(t *testing.T, path string) *weights.Model {
	t.Helper()
	m, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// merged is what a tensor of a source is to become, computed apart from the package: W + s·B·A in float64.
func merged(t *testing.T, s *Source, name string) []float64 {
	t.Helper()
	from := values(t, s.Model, name)
	want := make([]float64, len(from))
	for i, v := range from {
		want[i] = float64(v)
	}
	module := strings.TrimSuffix(name, ".weight")
	if s.Update == nil || !slices.Contains(s.Update.Names(), module) {
		return want
	}
	rank, a, b := s.Update.Factors(module, 0)
	in, out := s.Update.Shape(module)
	for o := range out {
		for i := range in {
			for r := range rank {
				want[o*in+i] += float64(b[o*rank+r]) * float64(a[r*in+i])
			}
		}
	}
	return want
}

// A merged folder has every tensor of its base, rounded once from the sum, in shards that its index lists.
func TestFolder(t *testing.T) {
	for name, c := range map[string]struct {
		source *Source
		d      weights.DType
		shard  int64
		ulp    float64 // relative, half a step of the type and the error of the sum
	}{
		"float32":          {mini(t, "a"), weights.F32, maxShard, 1e-6},
		"bfloat16, shards": {mini(t, "a", "rslora"), weights.BF16, 40_000, 1.0/256 + 1e-6},
		"float16":          {mini(t), weights.F16, maxShard, 1.0/2048 + 1e-6},
		"untied":           {source(t, golden.Path(t, "models", "mini_untied")), weights.F32, 100_000, 0},
		"a .gguf":          {source(t, "../../testdata/gguf/llama_tied.gguf"), weights.F32, maxShard, 0},
		"a tied .gguf":     {source(t, "../../testdata/gguf/qwen2_doubled.gguf"), weights.BF16, maxShard, 1.0 / 256},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "new", "folder")
			var last, total int64
			c.source.Progress = func(done, of int64) { last, total = done, of }
			if err := c.source.Folder(t.Context(), path, c.d, c.shard); err != nil {
				t.Fatal(err)
			}
			if last != total || total == 0 {
				t.Errorf("progress ended at %d of %d", last, total)
			}
			got := open(t, path)
			tensors, err := c.source.tensors()
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Names()) != len(tensors) {
				t.Errorf("%d tensors, want %d", len(got.Names()), len(tensors))
			}
			for _, from := range tensors {
				v, want := values(t, got, from.Name), merged(t, c.source, from.Name)
				for i := range want {
					if math.Abs(float64(v[i])-want[i]) > c.ulp*math.Abs(want[i])+1e-7 {
						t.Fatalf("%s: element %d is %v, want %v", from.Name, i, v[i], want[i])
					}
				}
			}
			was, is := c.source.Model.Config, got.Config
			is.DType, was.DType = "", ""
			if is.HiddenSize != was.HiddenSize || is.TieWordEmbeddings != was.TieWordEmbeddings || is.RopeTheta != was.RopeTheta || is.RMSNormEps != was.RMSNormEps ||
				is.NumKeyValueHeads != was.NumKeyValueHeads || is.HeadDim != was.HeadDim || is.AttentionBias != was.AttentionBias || !slices.Equal(is.EOSTokenID, was.EOSTokenID) {
				t.Errorf("config %+v, want %+v", is, was)
			}
			if shards, _ := filepath.Glob(filepath.Join(path, "model-*.safetensors")); (c.shard < maxShard) != (len(shards) > 1) {
				t.Errorf("%d shards", len(shards))
			}
		})
	}
}

// Our own reader reads a GGUF as the model it was made of: names, rope order, tokenizer, configuration.
func TestGGUFRoundTrip(t *testing.T) {
	for _, path := range []string{golden.Path(t, "models", "mini"), golden.Path(t, "models", "mini_untied"), "../../testdata/gguf/llama.gguf", "../../testdata/gguf/llama_tied.gguf"} {
		s := source(t, path)
		if strings.HasSuffix(path, "mini") {
			s.Update = update(t, s.Model.Config, "a", "b")
		}
		dir := t.TempDir()
		if err := s.GGUF(t.Context(), filepath.Join(dir, "m.gguf"), weights.F32); err != nil {
			t.Fatal(err)
		}
		got := open(t, filepath.Join(dir, "m.gguf"))
		tensors, err := s.tensors()
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range tensors {
			v, want := values(t, got, from.Name), merged(t, s, from.Name)
			for i := range want {
				if math.Abs(float64(v[i])-want[i]) > 1e-6*math.Abs(want[i])+1e-7 {
					t.Fatalf("%s: %s: element %d is %v, want %v", path, from.Name, i, v[i], want[i])
				}
			}
		}
		was, is := s.Model.Config, got.Config
		if is.HiddenSize != was.HiddenSize || is.TieWordEmbeddings != was.TieWordEmbeddings || is.RopeTheta != was.RopeTheta || is.RMSNormEps != was.RMSNormEps || is.HeadDim != was.HeadDim || is.AttentionBias != was.AttentionBias {
			t.Errorf("%s: config %+v, want %+v", path, is, was)
		}
		v, err := got.GGUF().Tokenizer()
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Tokens) != was.VocabSize || v.Tokens[4] != "ab" || v.ChatTemplate != s.Jinja || v.EOS != 1 {
			t.Errorf("%s: tokenizer of %d tokens, eos %d, template %q", path, len(v.Tokens), v.EOS, v.ChatTemplate)
		}
	}
}

// An adapter as GGUF computes, by llama.cpp's rule, the update it was made of.
func TestAdapterGGUF(t *testing.T) {
	for _, path := range []string{golden.Path(t, "models", "mini"), "llama"} {
		s := mini(t, "a", "rslora")
		s.Update = update(t, s.Model.Config, "a", "rslora") // unequal ranks and scales
		if path == "llama" {
			s.Model.Config.ModelType = "llama"
		}
		file := filepath.Join(t.TempDir(), "a.gguf")
		if err := s.AdapterGGUF(file); err != nil {
			t.Fatal(err)
		}
		g, err := weights.OpenGGUF(file)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if len(g.Names()) != 2*len(s.Update.Names()) {
			t.Fatalf("%d tensors for %d modules", len(g.Names()), len(s.Update.Names()))
		}
		read := func(name string) (*weights.Tensor, []float32) {
			x, err := g.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			v := make([]float32, x.Rows()*x.RowLen())
			if err := x.ReadRowsF32(v, 0, x.Rows()); err != nil {
				t.Fatal(err)
			}
			return x, v
		}
		alpha := 0.0 // the largest rank
		for _, module := range s.Update.Names() {
			alpha = max(alpha, float64(s.Update.Rank(module)))
		}
		for _, module := range s.Update.Names() {
			name, ok := weights.GGUFName(module + ".weight")
			if !ok {
				t.Fatal(module)
			}
			ta, a := read(name + ".lora_a")
			_, b := read(name + ".lora_b")
			rank, in := ta.Shape[0], ta.Shape[1]
			out := len(b) / rank
			want := make([]float32, out*in)
			s.Update.Add(module, want, 0, out)
			d := s.Model.Config.HeadDim
			for o := range out {
				row := o
				if path == "llama" && (strings.HasSuffix(module, "q_proj") || strings.HasSuffix(module, "k_proj")) {
					h, j, i := o/d*d, o%d/(d/2), o%d%(d/2)
					row = h + 2*i + j
				}
				for i := range in {
					sum := 0.0
					for r := range rank {
						sum += float64(b[row*rank+r]) * float64(a[r*in+i])
					}
					if got := alpha / float64(rank) * sum; math.Abs(got-float64(want[o*in+i])) > 1e-5 {
						t.Fatalf("%s %s: (%d, %d) is %v, want %v", path, module, o, i, got, want[o*in+i])
					}
				}
			}
		}
	}
}

// What exists is not replaced, a full disk is foreseen, and whatever fails leaves nothing.
func TestNothingIsLostOrLeft(t *testing.T) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	if err := os.WriteFile(kept, []byte("mine"), 0o666); err != nil {
		t.Fatal(err)
	}
	s := mini(t, "a")
	for name, err := range map[string]error{
		"folder": s.Folder(t.Context(), kept, weights.F32, maxShard), "gguf": s.GGUF(t.Context(), kept, weights.F16),
		"adapter": s.AdapterGGUF(kept), "peft": s.Adapter(kept, lora.Base{}),
	} {
		if text, _ := os.ReadFile(kept); err == nil || !strings.Contains(err.Error(), "is there already") || string(text) != "mine" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Room(filepath.Join(dir, "large"), math.MaxInt64/2); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("no room: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.Progress = func(done, total int64) { cancel() }
	if err := s.Folder(ctx, filepath.Join(dir, "cut"), weights.F32, maxShard); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	s.Progress = nil
	defer func() { atomicfile.Intercept = nil }()
	for n := 1; ; n++ {
		calls := 0
		atomicfile.Intercept = func(op, path string) error {
			if calls++; calls == n {
				return syscall.EIO
			}
			return nil
		}
		err := s.Folder(t.Context(), filepath.Join(dir, "out"), weights.F32, 100_000)
		atomicfile.Intercept = nil
		if err == nil {
			if calls >= n {
				t.Fatalf("call %d failed, and nothing was said", n)
			}
			break
		}
		if _, found := os.Stat(filepath.Join(dir, "out")); found == nil {
			// the rename was done, and only flushing it failed
			if err := os.RemoveAll(filepath.Join(dir, "out")); err != nil {
				t.Fatal(err)
			}
		}
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("call %d: %v", n, err)
		}
		os.RemoveAll(atomicfile.TempPath(filepath.Join(dir, "out"))) // of a removal that failed itself
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 { // kept, out
		t.Errorf("left behind: %v", entries)
	}
}

// An adapter of another shape is refused before anything is written.
func TestUpdateOfAnotherModel(t *testing.T) {
	s := source(t, "../../testdata/gguf/llama.gguf")
	s.Update = update(t, open(t, golden.Path(t, "models", "mini")).Config, "a")
	path := filepath.Join(t.TempDir(), "x")
	if err := s.Folder(t.Context(), path, weights.F32, maxShard); err == nil || !strings.Contains(err.Error(), "adapter") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("something was written")
	}
}

// Two runs write the same bytes.
func TestExportIsRepeatable(t *testing.T) {
	var all [][]byte
	for range 2 {
		s := mini(t, "a", "b")
		path := filepath.Join(t.TempDir(), "m.gguf")
		if err := s.GGUF(t.Context(), path, weights.Q8_0); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text)
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("the bytes differ")
	}
}
