package weights

import (
	"bytes"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"qlora/internal/allocs"
)

// The densest files stay within the bound: of megabytes, so that what parsing allocates at any rate counts little.
func TestAllocationBound(t *testing.T) {
	object := func(n int, head, member, tail string) string {
		var b strings.Builder
		b.WriteString(head)
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strings.Replace(member, "%", strconv.FormatInt(int64(i), 36), 1))
		}
		return b.String() + tail
	}
	for name, header := range map[string]string{
		"many tensors":   object(50_000, "{", `"%":{"dtype":"F4","shape":[],"data_offsets":[0,0]}`, "}"),
		"many zeros":     object(50_000, "{", `"%":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}`, "}"),
		"all dimensions": object(30_000, "{", `"%":{"dtype":"F4","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]}`, "}"),
		"escaped names":  object(30_000, "{", `"\u0061%":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}`, "}"),
		"much metadata":  object(250_000, `{"__metadata__":{`, `"%":""`, "}}"),
		"many keys":      object(300_000, `{"a":{`, `"%":1`, "}}"),
		"escaped keys":   object(150_000, `{"a":{`, `"\n%":1`, "}}"),
		"top keys":       object(300_000, `{`, `"%":1`, "}"),
		"a long list":    object(1_000_000, `{"a":{"dtype":"F4","data_offsets":[0,0],"shape":[`, "1", "]}}"),
		"many objects":   object(500_000, `{"a":{"x":[`, "{}", "]}}"),
		"token ids":      object(1_000_000, `{"eos_token_id":[`, "1", "]}"),
		"architectures":  object(500_000, `{"architectures":[`, `""`, "]}"),
		"a weight_map":   object(100_000, `{"weight_map":{`, `"%":".safetensors"`, "}}"),
		"many shards":    object(100_000, `{"weight_map":{`, `"b%":"%.safetensors"`, "}}"),
	} {
		text, file := []byte(header), safetensorsBytes(header, 0)
		t.Run(name, func(t *testing.T) {
			allocs.Bound(t, len(file), func() {
				_, err := ReadSafetensors(bytes.NewReader(file), int64(len(file)), "x")
				if slices.Contains([]string{"many zeros", "all dimensions", "escaped names"}, name) && err != nil {
					t.Error(err)
				}
			})
			allocs.Bound(t, len(text), func() { _, _ = ParseConfig(text, "x") })
			allocs.Bound(t, len(text), func() { _, _ = ParseGenerationConfig(text, "x") })
			allocs.Bound(t, len(text), func() {
				_, err := parseIndex(text, "x")
				if slices.Contains([]string{"a weight_map", "many shards"}, name) && err != nil {
					t.Error(err)
				}
			})
		})
	}
	const n = 100_000
	values, tensors := ggufHeader(3, 0, n), ggufHeader(3, n, 0)
	for i := range n {
		name := strconv.FormatInt(int64(i), 36)
		values.put(name, uint32(ggufU8), uint8(200))
		tensors.put(name, uint32(1), uint64(1), uint32(0), uint64(32*i))
	}
	for name, file := range map[string]*ggufBytes{
		"strings":                     ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufString), uint64(n), make([]byte, 8*n)),
		"bools":                       ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufBool), uint64(8*n), make([]byte, 8*n)),
		"values":                      values,
		"tensors":                     tensors,
		"more tensors than there are": ggufHeader(3, n, 0).put(make([]byte, 32*n)),
		"more values than there are":  ggufHeader(3, 0, n).put(make([]byte, 13*n)),
	} {
		t.Run("gguf "+name, func(t *testing.T) {
			allocs.Bound(t, file.Len(), func() {
				_, err := ReadGGUF(bytes.NewReader(file.Bytes()), int64(file.Len()), name)
				if (err == nil) != slices.Contains([]string{"strings", "bools", "values"}, name) {
					t.Error(err)
				}
			})
		})
	}
}

func FuzzSafetensorsHeader(f *testing.F) {
	for _, header := range []string{"{}", one("", ""), one("2", "0"), f32Pair("[0,8]", "[8,16]"), f32Pair("[8,16]", "[0,8]"),
		`{"__metadata__":{"format":"pt"},"\u0061":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}} `} {
		f.Add(safetensorsBytes(header, 8))
		f.Add(safetensorsBytes(header, 16))
	}
	f.Add(readFile(f, "../../testdata/safetensors/types.safetensors"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var file *File
		var err error
		allocs.Bound(t, len(data), func() { file, err = ReadSafetensors(bytes.NewReader(data), int64(len(data)), "x") })
		if err != nil {
			return
		}
		// What is accepted can be read whole, and fills the file.
		sum := 0
		for _, name := range file.Names() {
			tensor, err := file.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			raw := make([]byte, tensor.size)
			if tensor.size > 0 {
				if err := tensor.readAt(raw, 0); err != nil {
					t.Fatal(err)
				}
				if decoders[tensor.DType] != nil {
					float32s(t, tensor)
				}
			}
			sum += len(raw)
		}
		if sum > len(data)-8 {
			t.Errorf("tensors of %d bytes in a file of %d", sum, len(data))
		}
	})
}

func FuzzGGUF(f *testing.F) {
	for _, name := range []string{"qwen2", "llama"} {
		f.Add(readFile(f, filepath.Join(ggufDir, name+".gguf")))
	}
	f.Add(ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufString), uint64(2), "a", "b").Bytes())
	f.Add(ggufHeader(2, 1, 0).put("w", uint32(2), uint64(32), uint64(1), uint32(2), uint64(0), make([]byte, 64)).Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		var g *GGUF
		var err error
		allocs.Bound(t, len(data), func() { g, err = ReadGGUF(bytes.NewReader(data), int64(len(data)), "x") })
		if err != nil {
			return
		}
		for _, name := range g.Names() {
			tensor, err := g.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			float32s(t, tensor)
		}
		if _, err := g.Tokenizer(); err != nil {
			_ = err.Error()
		}
		config, err := g.config()
		if err != nil {
			return
		}
		tensors, err := g.mapped(&config)
		if err != nil {
			return
		}
		for _, tensor := range tensors {
			float32s(t, tensor)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(qwenConfig()))
	f.Add([]byte(qwenConfig(`"rope_theta":1000000.0`, `"rope_parameters":{"rope_theta":5e5,"rope_type":"default"}`)))
	f.Add([]byte(`{"do_sample":true,"temperature":0.7,"top_p":0.8,"top_k":20,"eos_token_id":[1,2]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		allocs.Bound(t, len(data), func() {
			c, err := ParseConfig(data, "x")
			if err == nil && (c.HiddenSize < 1 || c.NumAttentionHeads%c.NumKeyValueHeads != 0 || c.HeadDim < 2 || !(c.RopeTheta > 0)) {
				t.Errorf("accepted: %+v", c)
			}
			g, err := ParseGenerationConfig(data, "x")
			if err == nil && (g.TopK < 0 || !(g.TopP > 0)) {
				t.Errorf("accepted: %+v", g)
			}
		})
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"../x"}}`))
	f.Add(readFile(f, filepath.Join(goldenDir(f, "models/mini_untied_sharded"), indexName)))
	f.Fuzz(func(t *testing.T, data []byte) {
		allocs.Bound(t, len(data), func() {
			index, err := parseIndex(data, "x")
			for _, p := range index {
				if err == nil && (p.shard != filepath.Base(p.shard) || p.shard == ".." || p.shard == "") {
					t.Errorf("accepted: shard %q", p.shard)
				}
			}
		})
	})
}
