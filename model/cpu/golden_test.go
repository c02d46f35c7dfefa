package cpu

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"qlora/internal/golden"
	"qlora/model/ops"
)

// goldenTensors reads a safetensors file into tensors of an arena of b.
func goldenTensors(t *testing.T, b ops.Backend, path ...string) map[string]ops.Tensor {
	t.Helper()
	name := golden.Path(t, path...)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	body := 8 + int(binary.LittleEndian.Uint64(data))
	var header map[string]json.RawMessage
	if err := json.Unmarshal(data[8:body], &header); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	tensors := map[string]ops.Tensor{}
	for key, text := range header {
		if key == "__metadata__" {
			continue
		}
		var h struct {
			DType   string
			Shape   []int
			Offsets [2]int `json:"data_offsets"`
		}
		if err := json.Unmarshal(text, &h); err != nil {
			t.Fatalf("%s: %s: %v", name, key, err)
		}
		dtype := map[string]ops.DType{"F32": ops.F32, "BF16": ops.BF16, "U8": ops.U8}[h.DType]
		tensors[key] = tensorOf(t, b, key, dtype, data[body+h.Offsets[0]:body+h.Offsets[1]], h.Shape...)
	}
	return tensors
}

// tensorOf is a tensor in an arena of its own, filled from raw bytes (nil: zeros).
func tensorOf(t testing.TB, b ops.Backend, name string, dtype ops.DType, data []byte, shape ...int) ops.Tensor {
	t.Helper()
	x := ops.Tensor{Name: name, DType: dtype, Shape: shape}
	buf, err := b.NewArena(x.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	x.Buf = buf
	if data != nil {
		if err := b.Write(x, data); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// sameBytes fails where two tensors differ in a bit.
func sameBytes(t *testing.T, got, want ops.Tensor) {
	t.Helper()
	a, b := raw(got), raw(want)
	if len(a) != len(b) {
		t.Errorf("%s: %d bytes, want %d", want.Name, len(a), len(b))
		return
	}
	size := int(want.DType.Size())
	bad, first := 0, -1
	for i := 0; i < len(a); i += size {
		if string(a[i:i+size]) != string(b[i:i+size]) {
			if bad == 0 {
				first = i / size
			}
			bad++
		}
	}
	if bad > 0 {
		t.Errorf("%s: %d of %d elements differ, first at %d: %s, want %s", want.Name, bad, len(a)/size, first,
			element(got, first), element(want, first))
	}
}

func element(t ops.Tensor, i int) string {
	switch t.DType {
	case ops.F32:
		return fmt.Sprintf("%.9g", view[float32](t)[i])
	case ops.BF16:
		return fmt.Sprintf("%.9g", math.Float32frombits(uint32(view[uint16](t)[i])<<16))
	case ops.F64:
		return fmt.Sprintf("%.17g", view[float64](t)[i])
	}
	return fmt.Sprintf("%#x", raw(t)[i])
}

func synced(t testing.TB, b ops.Backend) {
	t.Helper()
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
}
