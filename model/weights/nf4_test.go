package weights

import (
	"encoding/json"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/internal/nf4"
)

// bnbFile writes what bitsandbytes stored of a golden case as a checkpoint does, less the parts named.
func bnbFile(t *testing.T, name string, double bool, without ...string) (path string, g map[string][]float32) {
	t.Helper()
	file, err := OpenSafetensors(golden.Path(t, "nf4", name+".safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	raw := func(name string) (*Tensor, []byte) {
		x, err := file.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, x.size)
		if err := x.readAt(data, 0); err != nil {
			t.Fatal(err)
		}
		return x, data
	}
	input, _ := raw("input")
	var entries []Entry
	add := func(as, from string) {
		for _, w := range without {
			if w == as {
				return
			}
		}
		x, data := raw(from)
		entries = append(entries, BytesEntry("w.weight"+as, x.DType, x.Shape, data))
	}
	state := quantStateFile{QuantType: "nf4", BlockSize: 64, DType: "bfloat16"}
	for _, n := range input.Shape {
		state.Shape = append(state.Shape, uint32(n))
	}
	prefix := "cpu.single."
	if double {
		prefix = "cpu.double."
		x, _ := raw(prefix + "offset")
		offset := float64(float32s(t, x)[0])
		state.NestedBlockSize, state.NestedDType, state.NestedOffset = 256, "float32", &offset
		add(".absmax", prefix+"absmax_u8")
		add(".nested_absmax", prefix+"nested_absmax")
		add(".nested_quant_map", prefix+"nested_code")
	} else {
		add(".absmax", prefix+"absmax")
	}
	add("", prefix+"packed")
	entries = append(entries, F32Entry("w.weight.quant_map", []int{16}, nf4.Code[:]))
	text, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	entries = append(entries, BytesEntry("w.weight"+quantState+"nf4", "U8", []int{len(text)}, text))
	path = filepath.Join(t.TempDir(), "model.safetensors")
	if err := WriteSafetensors(path, nil, entries); err != nil {
		t.Fatal(err)
	}
	x, _ := raw(prefix + "dequant_f32")
	return path, map[string][]float32{"values": float32s(t, x)}
}

// joined opens a file and joins its quantised tensors.
func joined(t *testing.T, path string) (map[string]*Tensor, error) {
	t.Helper()
	file, err := OpenSafetensors(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	tensors := file.tensors.byName()
	_, err = joinQuantized(tensors)
	return tensors, err
}

// A checkpoint of bitsandbytes reads as the values that bitsandbytes makes of it, in whatever rows it is read.
func TestReadNF4(t *testing.T) {
	for _, name := range []string{"randn.f32", "randn_7x33.f32", "outliers.f32", "randn_768blocks.bf16", "randn_odd_blocks.f32"} {
		if !golden.Has(t, "nf4", name+".safetensors") {
			continue
		}
		for _, double := range []bool{false, true} {
			path, g := bnbFile(t, name, double)
			tensors, err := joined(t, path)
			if err != nil {
				t.Fatal(err)
			}
			w := tensors["w.weight"]
			if len(tensors) != 1 || w.DType != NF4 || w.Double() != double {
				t.Fatalf("%d tensors, %s, double %v", len(tensors), w.DType, w.Double())
			}
			for _, step := range []int{w.Rows(), 1, 3} {
				for row := 0; row < w.Rows(); row += step {
					n := min(step, w.Rows()-row)
					got := make([]float32, n*w.RowLen())
					if err := w.ReadRowsF32(got, row, n); err != nil {
						t.Fatal(err)
					}
					for i, v := range g["values"][row*w.RowLen():][:len(got)] {
						if math.Float32bits(got[i]) != math.Float32bits(v) {
							t.Fatalf("%s double %v: row %d element %d is %g, bitsandbytes' %g", name, double, row, i, got[i], v)
						}
					}
				}
			}
		}
	}
}

// What is written reads back as it was.
func TestWriteNF4(t *testing.T) {
	const rows, cols = 5, 192
	for _, double := range []bool{false, true} {
		q, err := nf4.Quantize(rows, cols, double, func(dst []float32, row, _ int) error {
			for i := range dst {
				dst[i] = float32(math.Sin(float64(row*cols + i)))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		entries, err := NF4Entries("w.weight", rows, cols, q)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "x.safetensors")
		if err := WriteSafetensors(path, nil, entries); err != nil {
			t.Fatal(err)
		}
		tensors, err := joined(t, path)
		if err != nil {
			t.Fatal(err)
		}
		got, want := make([]float32, rows*cols), make([]float32, rows*cols)
		if err := tensors["w.weight"].ReadRowsF32(got, 0, rows); err != nil {
			t.Fatal(err)
		}
		q.Read(want, 0)
		for i := range want {
			if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
				t.Fatalf("double %v: element %d is %g, written %g", double, i, got[i], want[i])
			}
		}
		if _, err := NF4Entries("w.weight", rows, cols+64, q); err == nil {
			t.Error("a shape the codes do not fill was accepted")
		}
	}
}

// A checkpoint that lacks a part, or whose parts do not fit, is refused by the weight's name.
func TestNF4Refuses(t *testing.T) {
	for _, part := range []string{"", ".absmax", ".nested_quant_map"} {
		path, _ := bnbFile(t, "randn.f32", true, part)
		if _, err := joined(t, path); err == nil || !strings.Contains(err.Error(), "w.weight") {
			t.Errorf("without %q: %v", part, err)
		}
	}
	for name, state := range map[string]string{
		"another type":       `{"quant_type":"fp4","blocksize":64,"shape":[1,64]}`,
		"another block size": `{"quant_type":"nf4","blocksize":128,"shape":[1,64]}`,
		"no shape":           `{"quant_type":"nf4","blocksize":64}`,
		"another shape":      `{"quant_type":"nf4","blocksize":64,"shape":[2,64]}`,
		"a huge shape":       `{"quant_type":"nf4","blocksize":64,"shape":[4611686018427387904,2]}`,
		"a shape of nothing": `{"quant_type":"nf4","blocksize":64,"shape":[0,64]}`,
		"no JSON":            `{"quant_type":`,
	} {
		path := filepath.Join(t.TempDir(), "x.safetensors")
		err := WriteSafetensors(path, nil, []Entry{
			BytesEntry("w.weight", "U8", []int{32, 1}, make([]byte, 32)), F32Entry("w.weight.absmax", []int{1}, []float32{1}),
			F32Entry("w.weight.quant_map", []int{16}, nf4.Code[:]), BytesEntry("w.weight"+quantState+"nf4", "U8", []int{len(state)}, []byte(state)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := joined(t, path); err == nil || !strings.Contains(err.Error(), "w.weight") {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := nf4.Code
	other[3] = 0.5
	for name, change := range map[string]Entry{
		"another map":  F32Entry("w.weight.quant_map", []int{16}, other[:]),
		"a NaN absmax": F32Entry("w.weight.absmax", []int{1}, []float32{float32(math.NaN())}),
	} {
		state := `{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[1,64]}`
		entries := []Entry{BytesEntry("w.weight", "U8", []int{32, 1}, make([]byte, 32)), BytesEntry("w.weight"+quantState+"nf4", "U8", []int{len(state)}, []byte(state)), change}
		for _, e := range []Entry{F32Entry("w.weight.quant_map", []int{16}, nf4.Code[:]), F32Entry("w.weight.absmax", []int{1}, []float32{1})} {
			if e.Name != change.Name {
				entries = append(entries, e)
			}
		}
		path := filepath.Join(t.TempDir(), "x.safetensors")
		if err := WriteSafetensors(path, nil, entries); err != nil {
			t.Fatal(err)
		}
		tensors, err := joined(t, path)
		if err != nil {
			t.Fatal(err)
		}
		if err := tensors["w.weight"].ReadRowsF32(make([]float32, 64), 0, 1); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// The configuration of a quantised checkpoint is read back; other kinds of it are refused.
func TestQuantizationConfig(t *testing.T) {
	for _, double := range []bool{false, true} {
		text, err := json.Marshal(QuantizationConfig(double))
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := checkQuantization(text); !ok || err != nil {
			t.Errorf("double %v: %v, %v", double, ok, err)
		}
	}
	for _, text := range []string{`{"quant_method":"gptq","bits":4}`, `{"quant_method":"bitsandbytes","load_in_8bit":true}`,
		`{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"fp4"}`} {
		if _, err := checkQuantization([]byte(text)); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
}
