package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// safetensorsBytes makes a file of a header and n bytes of data.
func safetensorsBytes(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

func lengthOnly(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// one is a header of one F32 tensor of shape [2], with another part in place.
func one(old, new string) string {
	return strings.Replace(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, old, new, 1)
}

func f32Pair(first, second string) string {
	return `{"a":{"dtype":"F32","shape":[2],"data_offsets":` + first + `},"b":{"dtype":"F32","shape":[2],"data_offsets":` + second + `}}`
}

func TestSafetensorsRefuses(t *testing.T) {
	cases := []struct {
		name string
		file []byte
		msg  string // with the place
	}{
		{"7 bytes", make([]byte, 7), "byte 7: 7 bytes: too short"},
		{"length 0", lengthOnly(0), "byte 0: the header length is 0"},
		{"length 2^64-1", append(lengthOnly(1<<64-1), '{', '}'), "byte 0: the header length 18446744073709551615 is over the limit"},
		{"length over the cap", lengthOnly(100_000_001), "byte 0: the header length 100000001 is over the limit"},
		{"length past the end", lengthOnly(100_000_000), "byte 0: the header length 100000000 reaches past the end"},
		{"not UTF-8", safetensorsBytes("{\"\xff\":1}", 0), "byte 10: header: invalid UTF-8"},
		{"not JSON", safetensorsBytes("{nonsense}", 0), "byte 10: header: invalid character 'n'"},
		{"not an object", safetensorsBytes("[]", 0), "byte 8: the header begins with '['"},
		{"leading space", safetensorsBytes(" {}", 0), "byte 8: the header begins with ' '"},
		{"10001 brackets", safetensorsBytes(`{"a":`+strings.Repeat("[", 10001), 0), "header: "},
		{"9999 brackets", safetensorsBytes(`{"a":`+strings.Repeat("[", 9999)+strings.Repeat("]", 9999)+"}", 0), "byte 76: header: nested deeper than 64"},
		{"tensor twice", safetensorsBytes(`{"a":{},"a":{}}`, 0), `byte 16: header: key "a" occurs twice`},
		{"metadata twice", safetensorsBytes(`{"__metadata__":{},"__metadata__":{}}`, 0), `key "__metadata__" occurs twice`},
		{"metadata not text", safetensorsBytes(`{"__metadata__":{"a":1}}`, 0), `byte 29: header: __metadata__: "a" is not text: 1`},
		{"metadata a list", safetensorsBytes(`{"__metadata__":[]}`, 0), "byte 24: header: __metadata__: not an object"},
		{"entry a number", safetensorsBytes(`{"a":3}`, 0), `byte 13: header: tensor "a": not an object`},
		{"entry null", safetensorsBytes(`{"a":null}`, 0), `byte 13: header: tensor "a": not an object`},
		{"no dtype", safetensorsBytes(one(`"dtype":"F32",`, ""), 8), `byte 13: header: tensor "a": dtype is missing`},
		{"no shape", safetensorsBytes(one(`"shape":[2],`, ""), 8), "shape is missing"},
		{"no offsets", safetensorsBytes(one(`,"data_offsets":[0,8]`, ""), 8), "data_offsets is missing"},
		{"null offsets", safetensorsBytes(one(`[0,8]`, "null"), 8), "data_offsets is missing"},
		{"key in other case", safetensorsBytes(one(`dtype`, "Dtype"), 8), `byte 22: header: tensor "a": key "Dtype" must be spelled "dtype"`},
		{"key twice", safetensorsBytes(one(`"dtype"`, `"shape":[2],"dtype"`), 8), `key "shape" occurs twice`},
		{"unknown dtype", safetensorsBytes(one("F32", "F31"), 8), `unknown dtype "F31"`},
		{"GGUF dtype", safetensorsBytes(one("F32", "Q4_0"), 8), `unknown dtype "Q4_0"`},
		{"0 offsets", safetensorsBytes(one("[0,8]", "[]"), 8), "data_offsets has 0 numbers"},
		{"1 offset", safetensorsBytes(one("[0,8]", "[0]"), 8), "data_offsets has 1 numbers"},
		{"3 offsets", safetensorsBytes(one("[0,8]", "[0,8,8]"), 8), "data_offsets has 3 numbers"},
		{"negative offset", safetensorsBytes(one("[0,8]", "[-8,0]"), 8), `byte 55: header: tensor "a": "-8" is not a whole number`},
		{"exponent", safetensorsBytes(one("[0,8]", "[0,8e0]"), 8), `"8e0" is not a whole number`},
		{"text offset", safetensorsBytes(one("[0,8]", `["0",8]`), 8), `"\"0\"" is not a whole number`},
		{"offsets a number", safetensorsBytes(one("[0,8]", `8`), 8), `"8" is not a list`},
		{"backwards", safetensorsBytes(one("[0,8]", "[8,0]"), 8), "data_offsets [8, 0] run backwards"},
		{"offsets too wide", safetensorsBytes(one("[0,8]", "[0,12]"), 12), "hold 12 bytes, but F32 [2] takes 8"},
		{"shape 2^63", safetensorsBytes(one("[2]", "[9223372036854775808,2]"), 8), `"9223372036854775808" is not a whole number`},
		{"shape 0, 2^63", safetensorsBytes(one("[2]", "[0,9223372036854775808]"), 8), "is not a whole number"},
		{"elements overflow", safetensorsBytes(one("[2]", "[4294967296,4294967296]"), 8), "too many elements"},
		{"empty, but overflows", safetensorsBytes(one("[2]", "[0,9223372036854775807,2]"), 8), "too many elements"},
		{"bytes overflow", safetensorsBytes(one("[2]", "[4611686018427387905]"), 8), "do not fill whole bytes, or too many"},
		{"rank 10^6", safetensorsBytes(one("[2]", "[1"+strings.Repeat(",1", 1e6)+"]"), 8), "more than 8 numbers"},
		{"rank 9", safetensorsBytes(one("[2]", "[1"+strings.Repeat(",1", 8)+"]"), 8), "more than 8 numbers"},
		{"half a byte", safetensorsBytes(`{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}`, 2), "3 elements of F4 do not fill whole bytes"},
		{"overlap", safetensorsBytes(f32Pair("[0,8]", "[4,12]"), 12), `byte 120: tensor "b" overlaps`},
		{"same place", safetensorsBytes(f32Pair("[0,8]", "[0,8]"), 8), `tensor "b" overlaps`},
		{"gap", safetensorsBytes(f32Pair("[0,8]", "[12,20]"), 20), `byte 125: 4 bytes before tensor "b" belong to none`},
		{"gap at the start", safetensorsBytes(one("[0,8]", "[8,16]"), 16), `8 bytes before tensor "a"`},
		{"trailing byte", safetensorsBytes(one("", ""), 9), "1 bytes follow the last tensor"},
		{"bytes but no tensor", safetensorsBytes("{}", 1), "byte 10: 1 bytes follow"},
		{"missing byte", safetensorsBytes(one("", ""), 7), `tensor "a" is cut off: it ends 1 bytes past`},
		{"far past the end", safetensorsBytes(one("[0,8]", "[9223372036854775799,9223372036854775807]"), 8), "cut off"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadSafetensors(bytes.NewReader(c.file), int64(len(c.file)), "x.safetensors")
			var fault *FormatError
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), c.msg) || !strings.HasPrefix(err.Error(), "x.safetensors: byte ") {
				t.Errorf("got %v, want %q", err, c.msg)
			}
		})
	}
}

func TestSafetensorsTakes(t *testing.T) {
	for name, header := range map[string]string{
		"descending":          f32Pair("[8,16]", "[0,8]"),
		"empty tensors":       `{"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"f":{"dtype":"F32","shape":[0],"data_offsets":[16,16]}}`,
		"space, unknown key":  `{ "a" : {"x":[{}], "shape": [ 4 ] ,"dtype":"F32","data_offsets":[0,16]}}  ` + "\n\t",
		"scalar":              `{"a":{"dtype":"C64","shape":[],"data_offsets":[0,8]},"b":{"dtype":"F4","shape":[16],"data_offsets":[8,16]}}`,
		"metadata and 6 bits": `{"__metadata__":{"format":"pt"},"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[13],"data_offsets":[3,16]}}`,
	} {
		file := safetensorsBytes(header, 16)
		if _, err := ReadSafetensors(bytes.NewReader(file), int64(len(file)), name); err != nil {
			t.Error(err)
		}
	}
}

// A file that shrinks while it is open gives an error that names it.
func TestShrinkingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	if err := os.WriteFile(path, safetensorsBytes(one("", ""), 8), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := OpenSafetensors(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(path, 66); err != nil {
		t.Fatal(err)
	}
	a, err := f.Tensor("a")
	if err != nil {
		t.Fatal(err)
	}
	err = a.ReadRowsF32(make([]float32, 2), 0, 1)
	if err == nil || err.Error() != path+": byte 66: the file ends inside a: it has become shorter since it was opened" {
		t.Errorf("got %v", err)
	}
}

func TestOpenSafetensorsRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenSafetensors(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := OpenSafetensors(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	f, err := OpenSafetensors("../../testdata/safetensors/types.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Tensor("none"); err == nil || !strings.Contains(err.Error(), `no tensor "none"`) {
		t.Errorf("a missing tensor: %v", err)
	}
}

// Values written are the values read.
func TestF32Entry(t *testing.T) {
	values := make([]float32, 3*5001)
	for i := range values {
		values[i] = float32(i)*0.37 - 1000
	}
	var buf bytes.Buffer
	if err := EncodeSafetensors(&buf, PTMetadata, []Entry{F32Entry("v", []int{3, 5001}, values)}); err != nil {
		t.Fatal(err)
	}
	f, err := ReadSafetensors(bytes.NewReader(buf.Bytes()), int64(buf.Len()), "v")
	if err != nil {
		t.Fatal(err)
	}
	v, err := f.Tensor("v")
	if err != nil || !maps.Equal(f.Metadata, PTMetadata) {
		t.Fatal(f.Metadata, err)
	}
	row := make([]float32, 5001)
	if err := v.ReadRowsF32(row, 2, 1); err != nil || !slices.Equal(row, values[2*5001:]) {
		t.Errorf("row 2 differs, %v", err)
	}
	failing := Entry{"a", F32, []int{1}, func(io.Writer) error { return io.ErrClosedPipe }}
	path := filepath.Join(t.TempDir(), "a.safetensors")
	if err := WriteSafetensors(path, nil, []Entry{failing}); !errors.Is(err, io.ErrClosedPipe) || !strings.Contains(err.Error(), path) {
		t.Errorf("a failing entry: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed write leaves a file: %v", err)
	}
}
