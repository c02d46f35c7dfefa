package weights

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"qlora/internal/allocs"
)

// The densest headers stay within the bound.
func TestAllocationBound(t *testing.T) {
	repeat := func(n int, part, between, head, tail string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = strings.Replace(part, "%", strconv.FormatInt(int64(i), 36), 1)
		}
		return head + strings.Join(parts, between) + tail
	}
	for name, header := range map[string]string{
		"many tensors":  repeat(10_000, `"%":{"dtype":"F4","shape":[],"data_offsets":[0,0]}`, ",", "{", "}"),
		"many zeros":    repeat(10_000, `"%":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}`, ",", "{", "}"),
		"much metadata": repeat(25_000, `"%":""`, ",", `{"__metadata__":{`, "}}"),
		"many keys":     repeat(25_000, `"%":1`, ",", `{"a":{`, "}}"),
		"a long list":   repeat(100_000, `1`, ",", `{"a":{"dtype":"F4","data_offsets":[0,0],"shape":[`, "]}}"),
		"many objects":  repeat(60_000, `{}`, ",", `{"a":{"x":[`, "]}}"),
	} {
		t.Run(name, func(t *testing.T) {
			file := safetensorsBytes(header, 0)
			allocs.Bound(t, len(file), func() {
				_, err := ReadSafetensors(bytes.NewReader(file), int64(len(file)), "x")
				if name == "many zeros" && err != nil {
					t.Error(err)
				}
			})
			allocs.Bound(t, len(header), func() { _, _ = ParseConfig([]byte(header), "x") })
			allocs.Bound(t, len(header), func() { _, _ = parseIndex([]byte(header), "x") })
		})
	}
	index := repeat(20_000, `"%":"a.safetensors"`, ",", `{"weight_map":{`, "}}")
	allocs.Bound(t, len(index), func() {
		if _, err := parseIndex([]byte(index), "x"); err != nil {
			t.Error(err)
		}
	})
	for name, file := range map[string]*ggufBytes{
		"strings": ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufString), uint64(100_000), make([]byte, 800_000)),
		"bools":   ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufBool), uint64(800_000), make([]byte, 800_000)),
	} {
		allocs.Bound(t, file.Len(), func() {
			if _, err := ReadGGUF(bytes.NewReader(file.Bytes()), int64(file.Len()), name); err != nil {
				t.Error(err)
			}
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
			for _, shard := range index.WeightMap {
				if err == nil && (shard != filepath.Base(shard) || shard == ".." || shard == "") {
					t.Errorf("accepted: shard %q", shard)
				}
			}
		})
	})
}
