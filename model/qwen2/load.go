package qwen2

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"qlora/internal/nf4"
	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/weights"
)

// weightPlace is a frozen weight to load: what it is made of and where it goes.
type weightPlace struct {
	dst   *ops.Weight
	mem   ops.Tensor
	spec  ops.WeightSpec
	names []string // tensors of its parts, less ".weight"
}

// normPlace is a norm's weight to load.
type normPlace struct {
	dst  *ops.Tensor
	name string
}

// weightBuffers lists the frozen weights, the norms and the table of rotary angles.
func (m *Model) weightBuffers(l *layout) {
	c, h := m.Config, m.heads
	width := c.HiddenSize
	m.layers = make([]layer, c.NumHiddenLayers)
	l.table(m, &m.embed, "model.embed_tokens")
	l.buffers[len(l.buffers)-1].Host = m.opt.Saving.HostEmbedding
	if !c.TieWordEmbeddings {
		l.table(m, &m.head, "lm_head")
	}
	for i := range m.layers {
		y, p := &m.layers[i], fmt.Sprintf("model.layers.%d.", i)
		attn, mlp := p+"self_attn.", p+"mlp."
		qkv := l.weight(m, &y.qkv, ops.QKV, c.AttentionBias, width, []string{attn + "q_proj", attn + "k_proj", attn + "v_proj"}, h.H*h.D, h.Hk*h.D, h.Hk*h.D)
		o := l.weight(m, &y.o, ops.Plain, false, h.H*h.D, []string{attn + "o_proj"}, width)
		gateup := l.weight(m, &y.gateup, ops.GateUp, false, width, []string{mlp + "gate_proj", mlp + "up_proj"}, c.IntermediateSize, c.IntermediateSize)
		down := l.weight(m, &y.down, ops.Plain, false, c.IntermediateSize, []string{mlp + "down_proj"}, width)
		for slot, spec := range [ops.Slots]ops.WeightSpec{qkv, o, gateup, down} {
			if a := m.lora(i, ops.Slot(slot)); a != nil {
				a.Weight = spec
			}
		}
		l.norm(m, &y.inNorm, p+"input_layernorm")
		l.norm(m, &y.postNorm, p+"post_attention_layernorm")
	}
	l.norm(m, &m.norm, "model.norm")
	positions := max(m.opt.MaxT, m.opt.Context)
	for _, t := range []*ops.Tensor{&m.rope.Cos, &m.rope.Sin} {
		l.add(t, "rope", memory.Weights, ops.F32, 0, m.end(), positions, h.D/2)
	}
}

// weight asks for room for one fused weight of a layer.
func (l *layout) weight(m *Model, dst *ops.Weight, kind ops.WeightKind, bias bool, cols int, names []string, parts ...int) ops.WeightSpec {
	w := &weightPlace{dst: dst, names: names, spec: ops.WeightSpec{Name: names[0], Kind: kind,
		Parts: parts, Cols: cols, HeadDim: m.heads.D, Bias: bias, Back: m.opt.Training}}
	w.spec.DType, w.spec.Single = m.storage(names)
	l.place(m, w)
	return w.spec
}

// table asks for room for the embedding or the head, which are never quantised.
func (l *layout) table(m *Model, dst *ops.Weight, name string) {
	dtype := m.opt.DType
	if dtype == ops.NF4 {
		dtype = ops.BF16
	}
	l.place(m, &weightPlace{dst: dst, names: []string{name}, spec: ops.WeightSpec{Name: name, Kind: ops.Plain, DType: dtype,
		Parts: []int{m.Config.VocabSize}, Cols: m.Config.HiddenSize, HeadDim: m.heads.D, Back: m.opt.Training}})
}

func (l *layout) place(m *Model, w *weightPlace) {
	l.weights = append(l.weights, w)
	l.add(&w.mem, w.spec.Name, memory.Weights, ops.U8, 0, m.end(), int(m.sizes.WeightBytes(w.spec)))
}

// storage is how a weight made of these tensors is stored: as the run asks for or, in a checkpoint that is quantised
// already, as it is. Where only some of its parts are NF4 there, those are dequantised, to the values they are computed with.
func (m *Model) storage(names []string) (d ops.DType, single bool) {
	if !m.src.Quantized {
		return m.opt.DType, m.opt.Single
	}
	for i, name := range names {
		t, err := m.src.Tensor(name + ".weight")
		if err != nil { // loading says so
			return ops.BF16, false
		}
		whole := len(t.Shape) == 2 && t.Shape[1]%nf4.Block == 0 // blocks run across rows elsewhere
		if t.DType != weights.NF4 || !whole || i > 0 && t.Double() == single {
			return ops.BF16, false
		}
		single = !t.Double()
	}
	return ops.NF4, single
}

// quantized says whether any weight is NF4.
func (l *layout) quantized() bool {
	return slices.ContainsFunc(l.weights, func(w *weightPlace) bool { return w.spec.DType == ops.NF4 })
}

func (l *layout) norm(m *Model, dst *ops.Tensor, name string) {
	l.norms = append(l.norms, normPlace{dst, name})
	l.add(dst, name, memory.Weights, ops.F32, 0, m.end(), m.Config.HiddenSize)
}

// load streams every weight to its place.
func (m *Model) load(l *layout) error {
	src := m.src
	if err := refuseUnknown(src, l, m.Config); err != nil {
		return err
	}
	var done, total int64
	for _, w := range l.weights {
		total += w.mem.Bytes()
	}
	for _, w := range l.weights {
		if err := m.loadWeight(src, w); err != nil {
			return err
		}
		if done += w.mem.Bytes(); m.opt.Progress != nil {
			m.opt.Progress(done, total)
		}
	}
	for _, n := range l.norms {
		v, err := readVector(src, n.name+".weight", m.Config.HiddenSize)
		if err != nil {
			return err
		}
		if err := ops.WriteF32(m.b, *n.dst, v); err != nil {
			return err
		}
	}
	return m.loadRope()
}

// refuseUnknown refuses a weight or bias that the config has no place for: the model that the file is of
// computes something else. The head of a model that ties it is one that some files have for nothing.
func refuseUnknown(src *weights.Model, l *layout, c weights.Config) error {
	known := map[string]bool{"lm_head.weight": c.TieWordEmbeddings}
	for _, w := range l.weights {
		for _, name := range w.names {
			known[name+".weight"] = true
			known[name+".bias"] = w.spec.Bias
		}
	}
	for _, n := range l.norms {
		known[n.name+".weight"] = true
	}
	for _, name := range src.Names() {
		if parameter := strings.HasSuffix(name, ".weight") || strings.HasSuffix(name, ".bias"); parameter && !known[name] {
			return fmt.Errorf("the model holds %s, which has no place in a %s of %d layers: its config.json is of another model",
				name, c.ModelType, c.NumHiddenLayers)
		}
	}
	return nil
}

func (m *Model) loadWeight(src *weights.Model, w *weightPlace) error {
	parts := make([]ops.Source, len(w.names))
	var bias []float32
	for i, name := range w.names {
		t, err := src.Tensor(name + ".weight")
		if err != nil {
			return err
		}
		rows := w.spec.Parts[i]
		if len(t.Shape) != 2 || t.Shape[0] != rows || t.Shape[1] != w.spec.Cols {
			return fmt.Errorf("%s.weight has shape %v, but the config makes it [%d %d]", name, t.Shape, rows, w.spec.Cols)
		}
		parts[i] = ops.Source{Name: name, Rows: rows, Cols: w.spec.Cols, ReadF32: finite(t), Random: t.Random}
		switch {
		case t.DType == weights.BF16:
			parts[i].ReadBF16 = finiteRaw(t)
		case t.DType == weights.NF4 && w.spec.DType == ops.NF4:
			scales, err := t.Scales()
			if err != nil {
				return err
			}
			parts[i].NF4 = &ops.NF4Source{Scales: scales, ReadCodes: t.ReadCodes}
		}
		if w.spec.Bias {
			b, err := readVector(src, name+".bias", rows)
			if err != nil {
				return err
			}
			bias = append(bias, b...)
		}
	}
	weight, err := m.b.NewWeight(w.mem, w.spec, parts, bias)
	if err != nil {
		return fmt.Errorf("loading %s: %w", w.spec.Name, err)
	}
	*w.dst = weight
	return nil
}

// finite reads rows of a tensor and refuses NaN and infinities, which the file formats allow.
func finite(t *weights.Tensor) func(dst []float32, row, n int) error {
	return func(dst []float32, row, n int) error {
		if err := t.ReadRowsF32(dst, row, n); err != nil {
			return err
		}
		const exponent = 0x7f800000 // all ones: not a finite number
		for i, v := range dst {
			if math.Float32bits(v)&exponent == exponent {
				return notFinite(t, row, i, v)
			}
		}
		return nil
	}
}

// finiteRaw is finite of the stored bytes of a bfloat16 tensor.
func finiteRaw(t *weights.Tensor) func(dst []byte, row, n int) error {
	return func(dst []byte, row, n int) error {
		if err := t.ReadRowsRaw(dst, row, n); err != nil {
			return err
		}
		// Of four numbers at once: an exponent of all ones, and no other, carries into the sign's place.
		const exponents, carry, signs = 0x7f80_7f80_7f80_7f80, 0x0080_0080_0080_0080, 0x8000_8000_8000_8000
		rest := dst
		for ; len(rest) >= 8; rest = rest[8:] {
			if (binary.LittleEndian.Uint64(rest)&exponents+carry)&signs != 0 {
				break
			}
		}
		for ; len(rest) > 0; rest = rest[2:] {
			bits := uint32(binary.LittleEndian.Uint16(rest)) << 16
			if bits&0x7f800000 == 0x7f800000 {
				return notFinite(t, row, (len(dst)-len(rest))/2, math.Float32frombits(bits))
			}
		}
		return nil
	}
}

// notFinite refuses element i, counted from a row on.
func notFinite(t *weights.Tensor, row, i int, v float32) error {
	return &weights.NonFinite{Tensor: t.Name, Place: fmt.Sprintf("row %d, column %d", row+i/t.RowLen(), i%t.RowLen()), Value: v}
}

// readVector reads a tensor of one dimension.
func readVector(src *weights.Model, name string, n int) ([]float32, error) {
	t, err := src.Tensor(name)
	if err != nil {
		return nil, err
	}
	if len(t.Shape) != 1 || t.Shape[0] != n {
		return nil, fmt.Errorf("%s has shape %v, but the config makes it [%d]", name, t.Shape, n)
	}
	v := make([]float32, n)
	return v, finite(t)(v, 0, 1)
}

// loadRope writes the table of rotary angles as transformers computes it: inverse frequencies
// and angles in float32.
func (m *Model) loadRope() error {
	positions, half := m.rope.Cos.Dim(0), m.rope.Cos.Dim(1)
	cos, sin := make([]float32, positions*half), make([]float32, positions*half)
	for i := range half {
		exponent := float32(2*i) / float32(2*half)
		inverse := 1 / float32(math.Pow(m.Config.RopeTheta, float64(exponent)))
		for p := range positions {
			s, c := math.Sincos(float64(float32(p) * inverse))
			cos[p*half+i], sin[p*half+i] = float32(c), float32(s)
		}
	}
	if err := ops.WriteF32(m.b, m.rope.Cos, cos); err != nil {
		return err
	}
	return ops.WriteF32(m.b, m.rope.Sin, sin)
}
