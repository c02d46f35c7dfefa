package cpu_test

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

func float() ops.Backend  { return cpu.New[float32]() }
func oracle() ops.Backend { return cpu.New[float64]() }

var options = opstest.Options{Bitwise: true, Storage: []opstest.Storage{
	{Weights: ops.F32, Activations: ops.F32},
	{Weights: ops.BF16, Activations: ops.F32},
	{Weights: ops.BF16, Activations: ops.BF16},
	{Weights: ops.NF4, Activations: ops.F32},
}}

// TestConformance holds the float32 backend to the float64 one, and to itself.
func TestConformance(t *testing.T) { opstest.RunAll(t, float, oracle, options) }

// TestGradients holds the backward of the float64 backend to differences of its forward.
func TestGradients(t *testing.T) { opstest.RunGradients(t, oracle) }

// TestReference holds the forward of the float64 backend to the formulas.
func TestReference(t *testing.T) { opstest.RunReference(t, oracle) }

// TestInvariants holds both to what must be so to the bit.
func TestInvariants(t *testing.T) {
	opstest.RunInvariants(t, float, options)
	opstest.RunInvariants(t, oracle, opstest.Options{Bitwise: true, Storage: []opstest.Storage{{Weights: ops.F32, Activations: ops.F64}}})
}

// TestPeriodic holds the runner of the card's largest cases to ordinary ones: rows that repeat give results that do, and a
// fault far from the first period is seen.
func TestPeriodic(t *testing.T) {
	ordinary := func(c opstest.Case) bool {
		return strings.Contains(c.Name, " T192 ") || strings.Contains(c.Name, " T129 ") ||
			c.Name == "GradNorm/70001" || c.Name == "QuantNF4/20000 double"
	}
	opstest.RunPeriodic(t, float, oracle, opstest.Options{Storage: options.Storage[:1]}, ordinary)

	late := func() ops.Backend { return &faulty{Backend: float(), late: true} }
	if err := rmsnormCase(t, " T129 ").Periodic(late, oracle, options.Storage[0]); err == nil || !strings.Contains(err.Error(), "row 191 of 192") {
		t.Errorf("a fault in the last row alone: %v", err)
	}
}

// A faulty backend is the float32 one with a fault in one op. Each fault must be seen.
type faulty struct {
	ops.Backend
	scribble bool // RMSNorm writes a byte past the end of xn
	spoil    bool // RMSNorm rounds its input
	stale    bool // RMSNorm leaves the last element of xn as it was
	off      bool // RMSNorm scales xn by 1.0001
	late     bool // RMSNorm leaves the last element of xn as it was, past 64 tokens
	infinite bool // RMSNorm makes xn infinite
	unsteady int  // RMSNorm adds a millionth more to each call
}

func (f *faulty) RMSNorm(xn, rho, u, x, w ops.Tensor, eps float32, l *ops.LoRA, b *ops.Batch) {
	last := ops.Tensor{Name: "last", DType: xn.DType, Shape: []int{1}, Buf: xn.Buf, Off: xn.Off + xn.Bytes() - xn.DType.Size()}
	old := make([]byte, last.Bytes())
	f.must(f.Read(old, last))
	f.Backend.RMSNorm(xn, rho, u, x, w, eps, l, b)
	switch {
	case f.scribble:
		f.must(f.Write(ops.Tensor{DType: ops.U8, Shape: []int{1}, Buf: xn.Buf, Off: xn.Off + xn.Bytes()}, []byte{0}))
	case f.spoil:
		f.change(x, func(v float32) float32 { return v + 1e-3 })
	case f.stale, f.late && b.T > 64:
		f.must(f.Write(last, old))
	case f.off:
		f.change(xn, func(v float32) float32 { return v * 1.0001 })
	case f.infinite:
		f.change(xn, func(v float32) float32 { return float32(math.Inf(1)) })
	case f.unsteady > 0:
		f.unsteady++
		f.change(xn, func(v float32) float32 { return v * (1 + float32(f.unsteady)*1e-6) })
	}
}

func (f *faulty) change(t ops.Tensor, by func(float32) float32) {
	raw := make([]byte, t.Bytes())
	f.must(f.Read(raw, t))
	for i := 0; i < len(raw); i += 4 {
		v := math.Float32frombits(binary.LittleEndian.Uint32(raw[i:]))
		binary.LittleEndian.PutUint32(raw[i:], math.Float32bits(by(v)))
	}
	f.must(f.Write(t, raw))
}

func (f *faulty) must(err error) {
	if err != nil {
		panic(err)
	}
}

func TestConformanceSeesFaults(t *testing.T) {
	storage := opstest.Storage{Weights: ops.F32, Activations: ops.F32}
	calls := 0
	for _, c := range []struct {
		fault faulty
		want  string
	}{
		{faulty{}, ""},
		{faulty{scribble: true}, "a write outside"},
		{faulty{spoil: true}, "input x"},
		{faulty{stale: true}, "differs between two runs"},
		{faulty{off: true}, "NMSE"},
		{faulty{unsteady: 1}, "differs between two runs"},
	} {
		under := func() ops.Backend {
			calls++
			f := c.fault
			f.Backend, f.unsteady = float(), f.unsteady*calls
			return &f
		}
		err := rmsnormCase(t, " T31 ").Run(under, oracle, storage)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: got %v, want %q", c.fault, err, c.want)
		}
	}
}

func rmsnormCase(t *testing.T, tokens string) opstest.Case { return caseOf(t, "RMSNorm", tokens) }

// caseOf is the first case of an op with part in its name.
func caseOf(t *testing.T, op, part string) opstest.Case {
	t.Helper()
	for _, c := range opstest.Cases() {
		if c.Op == op && strings.Contains(c.Name, part) {
			return c
		}
	}
	t.Fatalf("no case of %s with %q", op, part)
	return opstest.Case{}
}

// interleaved is the float32 backend with gate and up side by side, as a card may lay them out: the
// cases must find that out by themselves.
type interleaved struct{ ops.Backend }

type interleavedWeight struct {
	ops.Weight
	spec ops.WeightSpec
}

func (w interleavedWeight) Spec() ops.WeightSpec { return w.spec }

func (b interleaved) NewWeight(mem ops.Tensor, spec ops.WeightSpec, parts []ops.Source, bias []float32) (ops.Weight, error) {
	if spec.Kind != ops.GateUp {
		return b.Backend.NewWeight(mem, spec, parts, bias)
	}
	F := spec.Parts[0]
	one := ops.Source{Name: "gate, up", Rows: 2 * F, Cols: spec.Cols, ReadF32: func(dst []float32, row, n int) error {
		for i := range n {
			if err := parts[(row+i)%2].ReadF32(dst[i*spec.Cols:(i+1)*spec.Cols], (row+i)/2, 1); err != nil {
				return err
			}
		}
		return nil
	}}
	mixed := make([]float32, len(bias))
	for i := range mixed {
		mixed[i] = bias[i%2*F+i/2]
	}
	inner := spec
	inner.Kind, inner.Parts = ops.Plain, []int{2 * F}
	w, err := b.Backend.NewWeight(mem, inner, []ops.Source{one}, mixed)
	return interleavedWeight{w, spec}, err
}

func (b interleaved) Linear(y, x ops.Tensor, w ops.Weight, u ops.Tensor, l *ops.LoRA, e ops.Epilogue, batch *ops.Batch) {
	if own, ok := w.(interleavedWeight); ok {
		w = own.Weight
	}
	b.Backend.Linear(y, x, w, u, l, e, batch)
}

func (b interleaved) LinearBack(dx, dy ops.Tensor, w ops.Weight) {
	if own, ok := w.(interleavedWeight); ok {
		w = own.Weight
	}
	b.Backend.LinearBack(dx, dy, w)
}

func TestConformanceFindsTheLayout(t *testing.T) {
	storage, run := opstest.Storage{Weights: ops.F32, Activations: ops.F32}, 0
	under := func() ops.Backend { return interleaved{float()} }
	for _, c := range opstest.Cases() {
		fused := strings.Contains(c.Name, "tiny") && strings.Contains(c.Name, "48->160") && strings.Contains(c.Name, "no LoRA")
		if !fused || c.Op != "Linear" && c.Op != "LinearBack" {
			continue
		}
		run++
		if err := c.Run(under, oracle, storage); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if run < 2 {
		t.Errorf("run %d cases of gate and up", run)
	}
}
