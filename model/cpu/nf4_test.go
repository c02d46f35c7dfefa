package cpu

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"qlora/internal/golden"
	"qlora/internal/nf4"
	"qlora/model/ops"
)

// TestNF4Golden quantises and dequantises what bitsandbytes did on its CPU device, and dequantises what it quantised on
// CUDA, with and without double quantisation: every bit must be the same.
func TestNF4Golden(t *testing.T) {
	text, err := os.ReadFile(golden.Path(t, "nf4", "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Cases map[string]any }
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(golden.Path(t, "nf4", "*.safetensors"))
	if err != nil || len(files) == 0 || len(files) != len(index.Cases) {
		t.Fatalf("%d golden files for %d cases in index.json: %v", len(files), len(index.Cases), err)
	}
	for name := range index.Cases {
		t.Run(name, func(t *testing.T) {
			b := New[float32]()
			g := goldenTensors(t, b, "nf4", name+".safetensors")
			for i, code := range view[float32](g["cpu.double.nested_code"]) {
				if math.Float32bits(code) != math.Float32bits(nf4.NestedCode[i]) {
					t.Fatalf("entry %d of the nested code is %.9g, want %.9g", i, nf4.NestedCode[i], code)
				}
			}
			for _, double := range []bool{false, true} {
				testQuantNF4(t, b, g, double)
				for _, device := range []string{"cpu", "cuda"} {
					testDequantNF4(t, b, g, device, double)
				}
			}
		})
	}
}

func goldenNF4(g map[string]ops.Tensor, device string, double bool) (q ops.Quantized, prefix string) {
	if !double {
		prefix = device + ".single."
		return ops.Quantized{Codes: g[prefix+"packed"], Absmax: g[prefix+"absmax"]}, prefix
	}
	prefix = device + ".double."
	return ops.Quantized{Codes: g[prefix+"packed"], Absmax: g[prefix+"absmax_u8"], Nested: g[prefix+"nested_absmax"], Offset: g[prefix+"offset"]}, prefix
}

func testQuantNF4(t *testing.T, b ops.Backend, g map[string]ops.Tensor, double bool) {
	want, _ := goldenNF4(g, "cpu", double)
	like := func(w ops.Tensor) ops.Tensor {
		if w.Nil() {
			return w
		}
		return tensorOf(t, b, w.Name, w.DType, nil, w.Shape...)
	}
	got := ops.Quantized{Codes: like(want.Codes), Absmax: like(want.Absmax), Nested: like(want.Nested), Offset: like(want.Offset)}
	b.QuantNF4(got, g["input"])
	synced(t, b)
	sameBytes(t, got.Codes, want.Codes)
	sameBytes(t, got.Absmax, want.Absmax)
	if double {
		sameBytes(t, got.Offset, want.Offset)
		sameBytes(t, got.Nested, want.Nested)
	}
}

func testDequantNF4(t *testing.T, b ops.Backend, g map[string]ops.Tensor, device string, double bool) {
	q, prefix := goldenNF4(g, device, double)
	for _, name := range []string{"dequant_f32", "dequant_bf16"} {
		want := g[prefix+name]
		got := tensorOf(t, b, want.Name, want.DType, nil, want.Shape...)
		b.DequantNF4(got, q)
		synced(t, b)
		if device == "cuda" {
			flush(got) // CUDA gives zero for a product that is subnormal
			flush(want)
		}
		sameBytes(t, got, want)
	}
}

// flush replaces subnormal values by zeros of their sign.
func flush(x ops.Tensor) {
	if x.DType == ops.BF16 {
		for i, v := range view[uint16](x) {
			if v&0x7f80 == 0 {
				view[uint16](x)[i] = v & 0x8000
			}
		}
		return
	}
	for i, v := range view[float32](x) {
		if bits := math.Float32bits(v); bits&0x7f800000 == 0 {
			view[float32](x)[i] = math.Float32frombits(bits & 0x80000000)
		}
	}
}
