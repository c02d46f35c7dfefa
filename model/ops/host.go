package ops

import (
	"encoding/binary"
	"fmt"
	"math"
)

// WriteF32 copies host values into a float32 tensor.
func WriteF32(b Memory, t Tensor, v []float32) error {
	if t.DType != F32 || t.Len() != len(v) {
		return fmt.Errorf("ops: %d float32 values do not fill %v", len(v), t)
	}
	raw := make([]byte, 0, 4*len(v))
	for _, f := range v {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(f))
	}
	return b.Write(t, raw)
}

// ReadF32 copies a float32 tensor to the host, after the work before it.
func ReadF32(b Memory, t Tensor) ([]float32, error) {
	raw, err := readWords(b, t, F32)
	if err != nil {
		return nil, err
	}
	v := make([]float32, len(raw)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return v, nil
}

// ReadI32 copies an int32 tensor to the host, after the work before it.
func ReadI32(b Memory, t Tensor) ([]int32, error) {
	raw, err := readWords(b, t, I32)
	if err != nil {
		return nil, err
	}
	v := make([]int32, len(raw)/4)
	for i := range v {
		v[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return v, nil
}

func readWords(b Memory, t Tensor, want DType) ([]byte, error) {
	if t.DType != want {
		return nil, fmt.Errorf("ops: %v is not %v", t, want)
	}
	raw := make([]byte, t.Bytes())
	return raw, b.Read(raw, t)
}
