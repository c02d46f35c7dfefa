package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// encoded is an entry of values in a type.
func encoded(name string, d DType, shape []int, values []float32) Entry {
	return Entry{name, d, shape, func(w io.Writer) error {
		size, err := EncodedBytes(d, len(values))
		if err != nil {
			return err
		}
		buf := make([]byte, size)
		if err := Encode(d, buf, values); err != nil {
			return err
		}
		_, err = w.Write(buf)
		return err
	}}
}

// The file is, byte for byte, what the Python package gguf writes of the same values and metadata.
func TestWriteGGUFIsThePackages(t *testing.T) {
	in, err := OpenSafetensors(filepath.Join(ggufDir, "values.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	tensor, _ := in.Tensor("values")
	half, _ := in.Tensor("half")
	v, shape, cols := float32s(t, tensor), tensor.Shape, tensor.RowLen()
	var narrow []float32
	for r := range 3 {
		narrow = append(narrow, v[r*cols:][:192]...)
	}
	meta := []GGUFValue{
		{"general.architecture", "qwen2"}, {"general.type", "model"}, {"a.count", uint32(4_000_000_000)}, {"a.signed", int32(-5)},
		{"a.number", float32(1e-6)}, {"a.yes", true}, {"a.no", false}, {"a.texts", []string{"Ġone", "", "三"}},
		{"a.ints", []int32{1, -2, 3}}, {"a.floats", []float32{0.5, -1.5}}, {"a.text", "line\nnext"},
	}
	entries := []Entry{
		encoded("norm", F32, []int{cols}, v[:cols]), encoded("f32", F32, []int{3, 192}, narrow), encoded("f16", F16, shape, float32s(t, half)),
		encoded("bf16", BF16, shape, v), encoded("Q8_0", Q8_0, shape, v), encoded("Q4_0", Q4_0, shape, v),
	}
	var got bytes.Buffer
	if err := EncodeGGUF(&got, meta, entries); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(ggufDir, "written.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		at := 0
		for at < min(got.Len(), len(want)) && got.Bytes()[at] == want[at] {
			at++
		}
		t.Errorf("%d bytes, want %d; the first that differs is %d", got.Len(), len(want), at)
	}
	if _, err := ReadGGUF(bytes.NewReader(got.Bytes()), int64(got.Len()), "written"); err != nil {
		t.Error(err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		d     DType
		value float32
	}{
		{F32, nan}, {F32, -inf}, {F16, inf}, {F16, 65520}, {F16, nan}, {BF16, nan}, {BF16, 3.4e38}, {BF16, -3.4e38}, {Q8_0, nan}, {Q8_0, inf}, {Q8_0, 1e8}, {Q4_0, -inf}, {Q4_0, nan}, {Q4_0, 6e5},
	} {
		src := make([]float32, 64)
		src[40] = c.value
		size, err := EncodedBytes(c.d, len(src))
		if err != nil {
			t.Fatal(err)
		}
		var out *RangeError
		if err := Encode(c.d, make([]byte, size), src); !errors.As(err, &out) || out.Index != 40 {
			t.Errorf("%s of %v: %v", c.d, c.value, err)
		}
	}
	if err := Encode(Q4_K, make([]byte, 144), make([]float32, 256)); err == nil {
		t.Error("Q4_K was written")
	}
	if err := Encode(F32, make([]byte, 7), make([]float32, 2)); err == nil {
		t.Error("7 bytes took two float32")
	}
}

// Every float16 comes back as it was, and every number between two goes to the nearer.
func TestEncodeF16(t *testing.T) {
	for bits := range 1 << 16 {
		h := []byte{byte(bits), byte(bits >> 8)}
		v := half(h)
		if notFinite(v) {
			continue
		}
		var got [2]byte
		if err := Encode(F16, got[:], []float32{v}); err != nil || !slices.Equal(got[:], h) {
			t.Fatalf("%v (%04x) becomes %x, %v", v, bits, got, err)
		}
	}
	var got [4]byte
	if err := Encode(F16, got[:], []float32{1 + 1.0/2048, 1 + 3.0/2048}); err != nil || binary.LittleEndian.Uint16(got[:]) != 0x3c00 || binary.LittleEndian.Uint16(got[2:]) != 0x3c02 {
		t.Errorf("ties: %x, %v", got, err)
	}
}

func TestGGUFWriterRefuses(t *testing.T) {
	one := func(e Entry) []Entry { return []Entry{e} }
	f32 := encoded("a", F32, []int{4}, make([]float32, 4))
	for _, c := range []struct {
		want    string
		meta    []GGUFValue
		entries []Entry
	}{
		{"occurs twice", []GGUFValue{{"k", "1"}, {"k", "2"}}, nil},
		{"a []bool is not written", []GGUFValue{{"k", []bool{true}}}, nil},
		{"is taken", nil, []Entry{f32, f32}},
		{"GGUF has no type", nil, one(Entry{Name: "a", DType: "U8", Shape: []int{4}})},
		{"is no shape of Q8_0", nil, one(Entry{Name: "a", DType: Q8_0, Shape: []int{2, 48}})},
		{"is no shape of F32", nil, one(Entry{Name: "a", DType: F32, Shape: []int{2, 0}})},
		{"16 bytes written, but F32 [5] takes 20", nil, one(Entry{"a", F32, []int{5}, f32.Write})},
	} {
		if err := EncodeGGUF(io.Discard, c.meta, c.entries); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}
