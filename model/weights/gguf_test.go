package weights

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"qlora/internal/strictjson"
)

const ggufDir = "../../testdata/gguf"

func float32s(t testing.TB, tensor *Tensor) []float32 {
	t.Helper()
	values := make([]float32, tensor.Rows()*tensor.RowLen())
	if err := tensor.ReadRowsF32(values, 0, tensor.Rows()); err != nil {
		t.Fatal(err)
	}
	return values
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// Every stored type decodes to the bits the Python package decodes it to, whole
// and by row.
func TestDequantise(t *testing.T) {
	g, err := OpenGGUF(filepath.Join(ggufDir, "blocks.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	want, err := OpenSafetensors(filepath.Join(ggufDir, "blocks.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	if diff := cmp.Diff(want.Names(), g.Names()); diff != "" {
		t.Fatal(diff)
	}
	seen := make(map[DType]bool)
	for _, name := range g.Names() {
		got, _ := g.Tensor(name)
		ref, _ := want.Tensor(name)
		seen[got.DType] = true
		if diff := cmp.Diff(ref.Shape, got.Shape); diff != "" {
			t.Errorf("%s: shape: %s", name, diff)
			continue
		}
		all := float32s(t, ref)
		if !sameBits(float32s(t, got), all) {
			t.Errorf("%s: not the reference's values", name)
		}
		width := got.RowLen()
		row := make([]float32, width)
		for r := range got.Rows() {
			if err := got.ReadRowsF32(row, r, 1); err != nil || !sameBits(row, all[r*width:][:width]) {
				t.Errorf("%s: row %d differs, %v", name, r, err)
			}
		}
	}
	for _, dtype := range ggufTypes {
		if !seen[dtype] {
			t.Errorf("the fixture has no %s", dtype)
		}
	}
}

func TestGGUFMetadata(t *testing.T) {
	g, err := OpenGGUF(filepath.Join(ggufDir, "blocks.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	want := map[string]any{
		"general.architecture": "test",
		"t.u8":                 int64(200), "t.i8": int64(-100), "t.u16": int64(60000), "t.i16": int64(-30000),
		"t.u32": int64(4000000000), "t.i32": int64(-2000000000), "t.f32": float32(1e-5), "t.bool": true, "t.string": "wörd",
		"t.u64": uint64(1<<63 + 5), "t.i64": int64(-1 << 62), "t.f64": 1e-300,
		"t.strings": []string{"a", "", "ü"}, "t.ints": []int32{1, -2, 3}, "t.floats": []float32{0.5, -1.5}, "t.bools": []bool{true, false},
	}
	if diff := cmp.Diff(want, metadataMap(g.meta)); diff != "" {
		t.Error(diff)
	}
}

// metadata makes sorted values of a map, metadataMap a map of them.
func metadata(m map[string]any) ggufValues {
	var all ggufValues
	for _, key := range slices.Sorted(maps.Keys(m)) {
		all = append(all, ggufValue{key: key, value: m[key]})
	}
	return all
}

func metadataMap(all ggufValues) map[string]any {
	m := map[string]any{}
	for _, v := range all {
		m[v.key] = v.value
	}
	return m
}

// Arrays of every type read as slices of that type.
func TestGGUFArrays(t *testing.T) {
	for code, want := range map[uint32]any{
		ggufU8: []uint8{1, 255}, ggufI8: []int8{-1, 2}, ggufU16: []uint16{1, 65535}, ggufI16: []int16{-1, 2},
		ggufU32: []uint32{1, 1 << 31}, ggufI32: []int32{-1, 2}, ggufU64: []uint64{1, 1 << 63}, ggufI64: []int64{-1, 2},
		ggufF32: []float32{0.5, -2}, ggufF64: []float64{1e-300, 2}, ggufBool: []bool{false, true},
	} {
		b := ggufHeader(3, 0, 1).put("k", uint32(ggufArray), code, uint64(2), want)
		g, err := ReadGGUF(bytes.NewReader(b.Bytes()), int64(b.Len()), "x")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, g.meta.find("k")); diff != "" {
			t.Error(diff)
		}
	}
}

// Metadata of another type than a model's are refused, not read as zero.
func TestGGUFMetadataTypes(t *testing.T) {
	g := &GGUF{File: "x", meta: metadata(map[string]any{"text": "a", "list": []int32{1}, "big": uint64(1 << 63), "u64": uint64(7), "f64": 0.1,
		"general.source.repo_url": "https://huggingface.co/org/name/", "tokenizer.ggml.model": "gpt2"})}
	for _, read := range []func(*ggufMeta){
		func(r *ggufMeta) { r.int("text", 0) }, func(r *ggufMeta) { r.int("list", 0) }, func(r *ggufMeta) { r.int("big", 0) },
		func(r *ggufMeta) { r.float("text", 0) }, func(r *ggufMeta) { r.text("list") }, func(r *ggufMeta) { r.text("none") },
	} {
		r := ggufMeta{g: g}
		if read(&r); r.err == nil || !strings.HasPrefix(r.err.Error(), "metadata ") {
			t.Errorf("got %v", r.err)
		}
	}
	r := ggufMeta{g: g}
	if r.int("u64", 0) != 7 || r.float("f64", 0) != 0.1 || r.err != nil {
		t.Errorf("u64 or f64 misread, %v", r.err)
	}
	if id := g.hubID(); id != "org/name" {
		t.Errorf("hub id %q", id)
	}
	for key, value := range map[string]any{
		"tokenizer.ggml.tokens": []int32{1}, "tokenizer.ggml.token_type": []int32{1, 1}, "tokenizer.ggml.scores": []float32{1, 1},
		"tokenizer.ggml.eos_token_id": int64(1), "tokenizer.ggml.model": int64(1),
	} {
		meta := metadataMap(g.meta)
		meta["tokenizer.ggml.tokens"] = []string{"a"}
		if _, err := (&GGUF{File: "x", meta: metadata(meta)}).Tokenizer(); err != nil {
			t.Error(err)
		}
		meta[key] = value
		if _, err := (&GGUF{File: "x", meta: metadata(meta)}).Tokenizer(); err == nil || !strings.HasPrefix(err.Error(), "x: ") {
			t.Errorf("%s: got %v", key, err)
		}
	}
	if _, err := g.Tokenizer(); err == nil || !strings.Contains(err.Error(), "no tokenizer") {
		t.Errorf("without tokens: %v", err)
	}
}

// Names that look like a layer's or the model's own but are not stay as they are.
func TestHuggingFaceName(t *testing.T) {
	for name, want := range map[string]string{
		"blk.12.ffn_down.weight": "model.layers.12.mlp.down_proj.weight", "token_embd.weight": "model.embed_tokens.weight",
		"output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight", "blk.0.attn_q.bias": "model.layers.0.self_attn.q_proj.bias",
		"blk.0.output.weight": "blk.0.output.weight", "attn_q.weight": "attn_q.weight", "blk.0.attn_qkv.weight": "blk.0.attn_qkv.weight",
		"blk.x.attn_q.weight": "blk.x.attn_q.weight", "blk.0.attn_q.scale": "blk.0.attn_q.scale",
	} {
		if got := huggingFaceName(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestOpenGGUFModel(t *testing.T) {
	var models map[string]struct {
		Tied    bool `json:"tied"`
		Bias    bool `json:"bias"`
		Tensors map[string]struct {
			Shape  []int  `json:"shape"`
			SHA256 string `json:"sha256"`
		} `json:"tensors"`
	}
	if err := strictjson.Unmarshal(readFile(t, filepath.Join(ggufDir, "models.json")), 1<<20, &models); err != nil {
		t.Fatal(err)
	}
	if len(models) != 4 {
		t.Fatalf("%d models", len(models))
	}
	for name, want := range models {
		t.Run(name, func(t *testing.T) {
			m := mustOpen(t, filepath.Join(ggufDir, name+".gguf"))
			arch, architecture := "llama", "LlamaForCausalLM"
			if strings.HasPrefix(name, "qwen2") {
				arch, architecture = "qwen2", "Qwen2ForCausalLM"
			}
			config := Config{Architectures: []string{architecture}, ModelType: arch, HiddenSize: 32, IntermediateSize: 64,
				NumHiddenLayers: 2, NumAttentionHeads: 4, NumKeyValueHeads: 2, HeadDim: 8, VocabSize: 48, MaxPositionEmbeddings: 128,
				RMSNormEps: 1e-5, RopeTheta: 1e6, TieWordEmbeddings: want.Tied, HiddenAct: "silu", AttentionBias: want.Bias,
				BOSTokenID: 46, EOSTokenID: IDs{47}, PadTokenID: -1}
			if diff := cmp.Diff(config, m.Config); diff != "" {
				t.Error(diff)
			}
			if m.HubID != "some-org/"+name {
				t.Errorf("hub id %q", m.HubID)
			}
			if len(m.Names()) != len(want.Tensors) {
				t.Errorf("%d tensors, want %d", len(m.Names()), len(want.Tensors))
			}
			for name, ref := range want.Tensors {
				checkSum(t, mustTensor(t, m, name), ref.Shape, ref.SHA256)
			}
			if _, err := m.ReadFile("tokenizer.json"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("reading a sidecar: %v", err)
			}
			tok, err := m.GGUF().Tokenizer()
			if err != nil {
				t.Fatal(err)
			}
			if tok.Model != "gpt2" || len(tok.Tokens) != 48 || tok.Tokens[47] != "t47" || tok.Types[47] != 3 || tok.Merges[1] != "t 1" ||
				tok.BOS != 46 || tok.EOS != 47 || tok.Pad != -1 || tok.Unknown != -1 || tok.AddBOS || tok.ChatTemplate != "{{ messages }}" {
				t.Errorf("tokenizer %+v", tok)
			}
		})
	}
}

// checkSum compares a tensor with the sha256 of its float32 values, and every range
// of rows with the whole.
func checkSum(t *testing.T, tensor *Tensor, shape []int, sum string) {
	t.Helper()
	values := float32s(t, tensor)
	hash := sha256.New()
	if err := binary.Write(hash, binary.LittleEndian, values); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum || !slices.Equal(tensor.Shape, shape) {
		t.Errorf("%s %v: sha256 %s, want %s %v", tensor.Name, tensor.Shape, got, sum, shape)
	}
	width := tensor.RowLen()
	for row := range tensor.Rows() {
		for n := range min(11, tensor.Rows()-row) + 1 {
			part := make([]float32, n*width)
			if err := tensor.ReadRowsF32(part, row, n); err != nil || !sameBits(part, values[row*width:][:n*width]) {
				t.Fatalf("%s: rows [%d, %d) differ, %v", tensor.Name, row, row+n, err)
			}
		}
	}
}

func TestReadRowsRefuses(t *testing.T) {
	m := mustOpen(t, filepath.Join(ggufDir, "llama.gguf"))
	w := mustTensor(t, m, "model.layers.0.mlp.up_proj.weight") // (64, 32)
	cases := []struct {
		elems, row, n int
		msg           string
	}{
		{32, -1, 1, "rows [-1, 0) of 64"},
		{32, 64, 1, "rows [64, 65) of 64"},
		{64, 63, 2, "rows [63, 65) of 64"},
		{31, 0, 1, "31 elements asked"},
		{0, math.MaxInt, 0, "of 64"},
	}
	for _, c := range cases {
		if err := w.ReadRowsF32(make([]float32, c.elems), c.row, c.n); err == nil || !strings.Contains(err.Error(), c.msg) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	for _, name := range []string{"model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"} {
		if err := mustTensor(t, m, name).ReadRowsRaw(nil, 0, 0); err == nil || !strings.Contains(err.Error(), "read it as float32") {
			t.Errorf("%s: raw: %v", name, err)
		}
	}
	if _, err := m.Tensor("lm_head.bias"); err == nil || !strings.Contains(err.Error(), `no tensor "lm_head.bias"`) {
		t.Errorf("missing tensor: %v", err)
	}
	f, err := OpenSafetensors("../../testdata/safetensors/types.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ints, err := f.Tensor("z.int32.3")
	if err != nil {
		t.Fatal(err)
	}
	if err := ints.ReadRowsF32(make([]float32, 3), 0, 1); err == nil || !strings.Contains(err.Error(), "stored as I32") {
		t.Errorf("int32 as float32: %v", err)
	}
}

// Many goroutines may read one tensor.
func TestConcurrentReads(t *testing.T) {
	m := mustOpen(t, filepath.Join(ggufDir, "llama.gguf"))
	w := mustTensor(t, m, "model.layers.1.self_attn.q_proj.weight")
	want := float32s(t, w)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			got := make([]float32, len(want))
			for range 50 {
				if err := w.ReadRowsF32(got, 0, w.Rows()); err != nil || !sameBits(got, want) {
					t.Errorf("differs, %v", err)
				}
			}
		})
	}
	wait.Wait()
}

// ggufBytes builds a GGUF file by hand.
type ggufBytes struct{ bytes.Buffer }

func (b *ggufBytes) put(values ...any) *ggufBytes {
	for _, v := range values {
		if s, ok := v.(string); ok {
			b.put(uint64(len(s)))
			b.WriteString(s)
		} else if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b
}

func ggufHeader(version uint32, tensors, values uint64) *ggufBytes {
	b := new(ggufBytes)
	b.WriteString("GGUF")
	return b.put(version, tensors, values)
}

func TestGGUFRefuses(t *testing.T) {
	tensor := func(dims []uint64, code uint32, offset uint64) *ggufBytes {
		return ggufHeader(3, 1, 0).put("w", uint32(len(dims)), dims, code, offset)
	}
	data := func(b *ggufBytes, n int) *ggufBytes {
		return b.put(make([]byte, (32-b.Len()%32)%32+n))
	}
	two := func(first, second uint64) *ggufBytes {
		return data(ggufHeader(3, 2, 0).put("a", uint32(1), uint64(8), uint32(0), first, "b", uint32(1), uint64(8), uint32(0), second), 64)
	}
	cases := []struct {
		name string
		file *ggufBytes
		msg  string
	}{
		{"empty", new(ggufBytes), "byte 0: 4 bytes declared, but only 0"},
		{"wrong letters", func() *ggufBytes { b := new(ggufBytes); b.WriteString("GGML0123456789"); return b }(), "does not begin with the letters GGUF"},
		{"version 1", ggufHeader(1, 0, 0), "version 1 "},
		{"big endian", ggufHeader(3<<24, 0, 0), "(0x3000000)"},
		{"header cut", func() *ggufBytes { b := ggufHeader(3, 0, 0); b.Truncate(20); return b }(), "8 bytes declared, but only 4"},
		{"many tensors", ggufHeader(3, 1<<60, 0), "tensors declared"},
		{"many values", ggufHeader(3, 0, 1<<60), "metadata values declared"},
		{"long key", ggufHeader(3, 0, 1).put(uint64(1<<62), uint32(0), uint8(0)), "4611686018427387904 bytes declared"},
		{"long string", ggufHeader(3, 0, 1).put("k", uint32(ggufString), uint64(1<<63)), "bytes declared"},
		{"long array", ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufF64), uint64(1<<61), uint64(0)), "array elements declared"},
		{"nested array", ggufHeader(3, 0, 1).put("k", uint32(ggufArray), uint32(ggufArray), uint64(1), uint64(0)), "arrays of metadata type 9"},
		{"unknown value type", ggufHeader(3, 0, 1).put("k", uint32(13), uint64(0)), "unknown metadata type 13"},
		{"not a bool", ggufHeader(3, 0, 1).put("k", uint32(ggufBool), uint8(2)), "2 is not a truth value"},
		{"key twice", ggufHeader(3, 0, 2).put("k", uint32(ggufU8), uint8(2), "k", uint32(ggufU8), uint8(2)), `"k" occurs twice`},
		{"tensor twice", ggufHeader(3, 2, 0).put("w", uint32(1), uint64(1), uint32(0), uint64(0), "w", uint32(1), uint64(1), uint32(0), uint64(0)), `"w" occurs twice`},
		{"no dimensions", tensor(nil, 0, 0).put(uint64(0)), "0 dimensions"},
		{"5 dimensions", tensor([]uint64{1, 1, 1, 1, 1}, 0, 0), "5 dimensions"},
		{"dimension 0", tensor([]uint64{0, 1 << 40}, 0, 0), "dimension of 0"},
		{"huge dimension", tensor([]uint64{1 << 63}, 0, 0), "dimension of 9223372036854775808"},
		{"overflow", tensor([]uint64{1 << 40, 1 << 40}, 0, 0), "too many"},
		{"wraps to 0", tensor([]uint64{1 << 32, 1 << 32}, 0, 0), "too many"},
		{"type Q2_K", tensor([]uint64{256}, 10, 0), "type Q2_K, which is not supported"},
		{"type 99", tensor([]uint64{256}, 99, 0), "type 99, which"},
		{"half a block", tensor([]uint64{16, 2}, 2, 0), "no multiple of the 32"},
		{"huge offset", tensor([]uint64{8}, 0, 1<<63), "offset 9223372036854775808"},
		{"larger than the file", data(tensor([]uint64{1 << 20}, 0, 0), 64), `"w" is cut off`},
		{"one byte short", data(tensor([]uint64{8}, 0, 0), 31), `"w" is cut off`},
		{"past the end", data(tensor([]uint64{8}, 0, 64), 64), `"w" is cut off`},
		{"not aligned", data(tensor([]uint64{8}, 0, 4), 64), "not aligned to 32"},
		{"overlap", two(0, 0), `"b" overlaps`},
		{"alignment 0", ggufHeader(3, 0, 1).put("general.alignment", uint32(ggufU32), uint32(0)), "general.alignment 0"},
		{"alignment 24", ggufHeader(3, 0, 1).put("general.alignment", uint32(ggufU32), uint32(24)), "general.alignment 24"},
		{"alignment text", ggufHeader(3, 0, 1).put("general.alignment", uint32(ggufString), "32"), "general.alignment 32"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadGGUF(bytes.NewReader(c.file.Bytes()), int64(c.file.Len()), "x.gguf")
			var fault *FormatError
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), c.msg) || !strings.HasPrefix(err.Error(), "x.gguf: byte ") {
				t.Errorf("got %v, want %q", err, c.msg)
			}
		})
	}
	for _, version := range []uint32{2, 3} {
		b := data(ggufHeader(version, 2, 0).put("a", uint32(1), uint64(8), uint32(0), uint64(32), "b", uint32(1), uint64(8), uint32(0), uint64(0)), 64)
		if _, err := ReadGGUF(bytes.NewReader(b.Bytes()), int64(b.Len()), "x.gguf"); err != nil {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// A model's metadata are held to what is implemented.
func TestGGUFModelRefuses(t *testing.T) {
	whole := readFile(t, filepath.Join(ggufDir, "qwen2.gguf"))
	cases := []struct{ name, old, new, msg string }{
		{"other architecture", "qwen2", "gemma", `architecture "gemma" is not supported`},
		{"no layer count", "qwen2.block_count", "qwen2.block_cOunt", "num_hidden_layers is missing or 0"},
		{"no epsilon", "layer_norm_rms_epsilon", "layer_norm_rms_epsilOn", "rms_norm_eps 0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.gguf")
			if err := os.WriteFile(path, bytes.Replace(whole, []byte(c.old), []byte(c.new), 1), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(path); err == nil || !strings.Contains(err.Error(), c.msg) {
				t.Errorf("got %v, want %q", err, c.msg)
			}
		})
	}
}

// Two tensors by the name that GGUF has for a weight, and by Hugging Face's.
func TestGGUFSameTensorTwice(t *testing.T) {
	g := &GGUF{File: "x.gguf", tensors: tensorList{{Name: "model.norm.weight", Shape: []int{8}}, {Name: "output_norm.weight", Shape: []int{8}, entry: 99}}}
	if _, err := g.mapped(&Config{}); err == nil || err.Error() != "x.gguf: byte 99: a second tensor for model.norm.weight" {
		t.Errorf("got %v", err)
	}
}

func BenchmarkReadRowsF32(b *testing.B) {
	for _, dtype := range []DType{F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K} {
		b.Run(string(dtype), func(b *testing.B) {
			const rows, width = 512, 1024
			size, _ := dtype.size(rows * width)
			t := &Tensor{DType: dtype, Shape: []int{rows, width}, from: &origin{name: "bench", src: bytes.NewReader(make([]byte, size))}, size: size}
			dst := make([]float32, rows*width)
			b.SetBytes(4 * rows * width)
			for b.Loop() {
				if err := t.ReadRowsF32(dst, 0, rows); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(rows*width)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gelem/s")
		})
	}
}
