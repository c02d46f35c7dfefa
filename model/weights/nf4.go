package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"

	"qlora/internal/nf4"
	"qlora/internal/strictjson"
)

// NF4 is bitsandbytes' 4-bit type. A checkpoint holds a quantised X.weight as bytes of codes, and beside it
//
//	X.weight.absmax                              float32, or uint8 with double quantisation
//	X.weight.quant_map                           the 16 values
//	X.weight.nested_absmax, nested_quant_map     with double quantisation
//	X.weight.quant_state.bitsandbytes__nf4       JSON, in bytes: shape, block sizes, the mean of absmax
//
// Here all of them are one Tensor of the shape in that JSON.
const NF4 DType = "NF4"

const (
	quantState    = ".quant_state.bitsandbytes__"
	maxQuantState = 1 << 16
)

// quantStateFile is the JSON. Offset is given with double quantisation.
type quantStateFile struct {
	QuantType       string   `json:"quant_type"`
	BlockSize       int      `json:"blocksize"`
	DType           string   `json:"dtype"`
	Shape           []uint32 `json:"shape"`
	NestedBlockSize int      `json:"nested_blocksize,omitempty"`
	NestedDType     string   `json:"nested_dtype,omitempty"`
	NestedOffset    *float64 `json:"nested_offset,omitempty"`
}

// quantized is what a Tensor has more where it is NF4. Its scales are read when they are first asked for.
type quantized struct {
	absmax, code       *Tensor
	nested, nestedCode *Tensor // nil without double quantisation
	offset             float32

	once   sync.Once
	scales nf4.Scales
	err    error
}

// joinQuantized makes one tensor of each that bitsandbytes has quantised and its parts, and reports whether there are any.
func joinQuantized(tensors map[string]*Tensor) (bool, error) {
	any := false
	for name, state := range tensors {
		base, kind, ok := strings.Cut(name, quantState)
		if !ok {
			continue
		}
		t, err := joinTensor(tensors, base, kind, state)
		if err != nil {
			return false, fmt.Errorf("%s: %s: %w", state.from.name, base, err)
		}
		tensors[base], any = t, true
		for _, part := range []string{quantState + kind, ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"} {
			delete(tensors, base+part)
		}
	}
	return any, nil
}

func joinTensor(tensors map[string]*Tensor, base, kind string, state *Tensor) (*Tensor, error) {
	if kind != "nf4" {
		return nil, fmt.Errorf("quantised as %s: only nf4 is supported", kind)
	}
	if state.size > maxQuantState {
		return nil, fmt.Errorf("a quant_state of %d bytes", state.size)
	}
	text := make([]byte, state.size)
	if err := state.readAt(text, 0); err != nil {
		return nil, err
	}
	var s quantStateFile
	if err := strictjson.Unmarshal(text, maxQuantState, &s); err != nil {
		return nil, fmt.Errorf("quant_state: %w", err)
	}
	if s.QuantType != "nf4" || s.BlockSize != nf4.Block || s.Shape == nil {
		return nil, fmt.Errorf("quant_state of type %q in blocks of %d: only nf4 in blocks of %d is supported", s.QuantType, s.BlockSize, nf4.Block)
	}
	shape := make([]int, len(s.Shape))
	for i, n := range s.Shape {
		shape[i] = int(n)
	}
	n, ok := elements(shape)
	codes := tensors[base]
	switch {
	case codes == nil:
		return nil, fmt.Errorf("its codes are missing")
	case !ok || n < 1 || codes.size != (n+1)/2:
		return nil, fmt.Errorf("%d bytes of codes for shape %v", codes.size, shape)
	}
	t := &Tensor{Name: base, DType: NF4, Shape: shape, from: &origin{name: codes.from.name, src: codes.from.src}, entry: codes.entry, offset: codes.offset, size: codes.size}
	blocks := (n + nf4.Block - 1) / nf4.Block
	q := &quantized{}
	part := func(to **Tensor, suffix string, dtype DType, length int64) error {
		p := tensors[base+suffix]
		if p == nil {
			return fmt.Errorf("%s is missing", suffix[1:])
		}
		if held, ok := elements(p.Shape); !ok || held != length || p.DType != dtype {
			return fmt.Errorf("%s is %s %v, not %d of %s", suffix[1:], p.DType, p.Shape, length, dtype)
		}
		*to = p
		return nil
	}
	if err := part(&q.code, ".quant_map", F32, int64(len(nf4.Code))); err != nil {
		return nil, err
	}
	t.from.quantized = q
	if tensors[base+".nested_absmax"] == nil {
		return t, part(&q.absmax, ".absmax", F32, blocks)
	}
	if s.NestedBlockSize != nf4.NestedBlock || s.NestedOffset == nil || s.NestedDType != "float32" {
		return nil, fmt.Errorf("nested blocks of %d in %q: only %d in float32, with an offset, are supported", s.NestedBlockSize, s.NestedDType, nf4.NestedBlock)
	}
	q.offset = float32(*s.NestedOffset)
	if err := part(&q.absmax, ".absmax", "U8", blocks); err != nil {
		return nil, err
	}
	if err := part(&q.nested, ".nested_absmax", F32, (blocks+nf4.NestedBlock-1)/nf4.NestedBlock); err != nil {
		return nil, err
	}
	return t, part(&q.nestedCode, ".nested_quant_map", F32, int64(len(nf4.NestedCode)))
}

// Double reports whether the absmax of an NF4 tensor is quantised too.
func (t *Tensor) Double() bool { return t.from.quantized != nil && t.from.quantized.nested != nil }

// Scales returns the absmax of an NF4 tensor.
func (t *Tensor) Scales() (nf4.Scales, error) {
	q := t.from.quantized
	if q == nil {
		return nf4.Scales{}, fmt.Errorf("%s: %s is stored as %s, not in NF4", t.from.name, t.Name, t.DType)
	}
	q.once.Do(func() {
		if q.scales, q.err = q.read(); q.err != nil {
			q.err = fmt.Errorf("%s: %s: %w", t.from.name, t.Name, q.err)
		}
	})
	return q.scales, q.err
}

func (q *quantized) read() (nf4.Scales, error) {
	if err := sameMap(q.code, nf4.Code[:]); err != nil {
		return nf4.Scales{}, err
	}
	if q.nested == nil {
		absmax, err := q.absmax.vector()
		return nf4.Scales{Absmax: absmax}, errors.Join(err, allFinite(q.absmax, absmax))
	}
	if err := sameMap(q.nestedCode, nf4.NestedCode[:]); err != nil {
		return nf4.Scales{}, err
	}
	nested, err := q.nested.vector()
	if err := errors.Join(err, allFinite(q.nested, append(nested, q.offset))); err != nil {
		return nf4.Scales{}, err
	}
	s := nf4.Scales{Absmax8: make([]byte, q.absmax.size), Nested: nested, Offset: q.offset}
	return s, q.absmax.readAt(s.Absmax8, 0)
}

// vector is a tensor of float32, whatever its shape.
func (t *Tensor) vector() ([]float32, error) {
	v := make([]float32, t.size/4)
	return v, t.readElements(v, 0)
}

func allFinite(t *Tensor, values []float32) error {
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return &NonFinite{t.Name, fmt.Sprintf("number %d", i), v}
		}
	}
	return nil
}

// sameMap holds a map of codes to the one that is computed with.
func sameMap(t *Tensor, want []float32) error {
	got, err := t.vector()
	if err != nil {
		return err
	}
	for i, v := range got {
		if math.Float32bits(v) != math.Float32bits(want[i]) {
			return fmt.Errorf("%s has %g at %d, and NF4's map %g", t.Name, v, i, want[i])
		}
	}
	return nil
}

// ReadCodes reads bytes of an NF4 tensor's codes from byte at on.
func (t *Tensor) ReadCodes(dst []byte, at int) error { return t.readAt(dst, int64(at)) }

// readNF4 fills dst with the elements from start on, code·absmax.
func (t *Tensor) readNF4(dst []float32, start int64) error {
	scales, err := t.Scales()
	if err != nil {
		return err
	}
	var block [nf4.Block]float32
	codes := make([]byte, min((len(dst)+1)/2+nf4.Block, chunkElems))
	for len(dst) > 0 {
		first := start / nf4.Block * nf4.Block // whole blocks from here on
		n := min(start+int64(len(dst)), first+int64(2*len(codes))/nf4.Block*nf4.Block) - first
		raw := codes[:(n+1)/2]
		if err := t.readAt(raw, first/2); err != nil {
			return err
		}
		for at := int64(0); at < n; at += nf4.Block {
			some := block[:min(nf4.Block, n-at)]
			nf4.Dequantize(some, raw[at/2:], scales.At(int((first+at)/nf4.Block)))
			done := copy(dst, some[max(start-first-at, 0):])
			dst, start = dst[done:], start+int64(done)
		}
	}
	return nil
}

// NF4Entries are the tensors of a checkpoint that hold a weight (rows, cols) of this name, such as
// model.layers.0.mlp.up_proj.weight, as bitsandbytes writes them.
func NF4Entries(name string, rows, cols int, t *nf4.Tensor) ([]Entry, error) {
	if err := t.Check(rows * cols); err != nil || len(t.Codes) != nf4.CodeBytes(rows*cols) {
		return nil, fmt.Errorf("%s (%d,%d): %d bytes of codes: %w", name, rows, cols, len(t.Codes), err)
	}
	shape := []uint32{uint32(rows), uint32(cols)}
	state := quantStateFile{QuantType: "nf4", BlockSize: nf4.Block, DType: "bfloat16", Shape: shape}
	entries := []Entry{
		BytesEntry(name, "U8", []int{len(t.Codes), 1}, t.Codes),
		F32Entry(name+".quant_map", []int{len(nf4.Code)}, nf4.Code[:]),
	}
	if t.Double() {
		offset := float64(t.Offset)
		state.NestedBlockSize, state.NestedDType, state.NestedOffset = nf4.NestedBlock, "float32", &offset
		entries = append(entries,
			BytesEntry(name+".absmax", "U8", []int{len(t.Absmax8)}, t.Absmax8),
			F32Entry(name+".nested_absmax", []int{len(t.Nested)}, t.Nested),
			F32Entry(name+".nested_quant_map", []int{len(nf4.NestedCode)}, nf4.NestedCode[:]))
	} else {
		entries = append(entries, F32Entry(name+".absmax", []int{len(t.Absmax)}, t.Absmax))
	}
	text, err := json.Marshal(state)
	if err != nil {
		return nil, err
	}
	return append(entries, BytesEntry(name+quantState+"nf4", "U8", []int{len(text)}, text)), nil
}

// QuantizationConfig is the quantization_config of config.json beside a checkpoint of NF4Entries.
func QuantizationConfig(double bool) map[string]any {
	return map[string]any{
		"quant_method": "bitsandbytes", "load_in_4bit": true, "_load_in_4bit": true, "load_in_8bit": false, "_load_in_8bit": false,
		"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": "bfloat16",
		"bnb_4bit_quant_storage": "uint8", "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
		"llm_int8_skip_modules": []string{"lm_head"}, "llm_int8_threshold": json.RawMessage("6.0"), // transformers refuses a whole number
	}
}

// checkQuantization refuses what a quantization_config of config.json asks for and is not read.
func checkQuantization(text json.RawMessage) (quantised bool, err error) {
	if len(text) == 0 || string(text) == "null" {
		return false, nil
	}
	var c struct {
		Method    string `json:"quant_method"`
		In4Bit    bool   `json:"load_in_4bit"`
		QuantType string `json:"bnb_4bit_quant_type"`
	}
	if err := strictjson.Unmarshal(text, maxConfig, &c); err != nil {
		return false, fmt.Errorf("quantization_config: %w", err)
	}
	if c.Method != "bitsandbytes" && c.Method != "" || !c.In4Bit || c.QuantType != "nf4" {
		return false, fmt.Errorf("quantization_config: %q (4-bit type %q) is not read, only bitsandbytes in 4 bits of nf4 is: use such a checkpoint, the original model, or a .gguf file", c.Method, c.QuantType)
	}
	return true, nil
}
