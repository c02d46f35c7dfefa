package cpu

import (
	"bytes"
	"math"
	"runtime"
	"strings"
	"testing"

	"qlora/model/ops"
)

var (
	// small has widths off the vector lengths, and lengths whose segments end inside and outside the blocks that work
	// and sums are cut into.
	small        = shape{C: 100, F: 168, H: 10, Hk: 2, D: 10, V: 203}
	smallLengths = []int{5, 130, 300, 1, 64, 128}
)

// perToken are the tensors that have a row for each token, by name.
func (l *layer) perToken() map[string]ops.Tensor {
	return map[string]ops.Tensor{
		"x": l.x, "xn": l.xn, "mid": l.mid, "out": l.out, "rho": l.rho, "qkv": l.qkv, "o": l.o, "gu": l.gu, "act": l.act, "dx": l.dx, "dxn": l.dxn,
		"dqkv": l.dqkv, "dact": l.dact, "uq": l.uq, "uo": l.uo, "ugu": l.ugu, "ud": l.ud, "duq": l.duq, "duo": l.duo, "dugu": l.dugu, "dud": l.dud,
	}
}

// TestPackedAsAlone runs a layer forward and backward on packed segments, and on each of them alone: after every op, a
// token's rows must have the same bits.
func TestPackedAsAlone(t *testing.T) {
	packed := newLayer(t, small, 0.1, smallLengths...)
	alone := make([]*layer, len(smallLengths))
	for s, length := range smallLengths {
		alone[s] = newLayer(t, small, 0.1, length)
		h := alone[s].batch.Host
		for i := range h.Sample {
			h.Sample[i] = int32(s)
		}
		if err := alone[s].b.LoadBatch(alone[s].batch, h); err != nil {
			t.Fatal(err)
		}
		lo, hi := segment(packed, s)
		for name, to := range alone[s].perToken() {
			copy(raw(to), raw(packed.perToken()[name].Rows(lo, hi)))
		}
	}
	for i, step := range packed.steps() {
		step.run()
		synced(t, packed.b)
		for s := range smallLengths {
			alone[s].steps()[i].run()
			synced(t, alone[s].b)
			lo, hi := segment(packed, s)
			for name, got := range alone[s].perToken() {
				if want := packed.perToken()[name].Rows(lo, hi); !bytes.Equal(raw(got), raw(want)) {
					t.Fatalf("after %s: %s of the segment of %d tokens differs from that in the packed row", step.name, name, smallLengths[s])
				}
			}
		}
	}
	if raw := view[float32](packed.dx); raw[0] == 0 || math.IsNaN(float64(raw[0])) {
		t.Fatalf("the gradient of x begins with %g", raw[0])
	}
}

func segment(l *layer, s int) (lo, hi int) {
	return int(l.batch.Host.SegStart[s]), int(l.batch.Host.SegStart[s+1])
}

// TestProcessors runs a whole step on one processor and on more: activations, losses and gradients must have the same
// bits.
func TestProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var want map[string][]byte
	for _, procs := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(procs)
		l := newLayer(t, small, 0.1, smallLengths...)
		for _, s := range l.steps() {
			s.run()
		}
		synced(t, l.b)
		got := map[string][]byte{"nll": raw(l.nll), "hit": raw(l.hit)}
		for name, x := range l.perToken() {
			got[name] = raw(x)
		}
		for name, lora := range map[string]*ops.LoRA{"qkv": l.qkvL, "o": l.oL, "gateup": l.guL, "down": l.downL} {
			for _, m := range lora.Modules {
				got["dA of "+name] = append(got["dA of "+name], raw(m.DA)...)
				got["dB of "+name] = append(got["dB of "+name], raw(m.DB)...)
			}
		}
		if want == nil {
			want = got
		}
		for name := range want {
			if !bytes.Equal(got[name], want[name]) {
				t.Errorf("%s differs between 1 and %d processors", name, procs)
			}
		}
	}
}

// TestGradBlocks holds the matrix products to the block of tokens that the seam promises: a gradient summed in pieces
// cut at multiples of it has the bits of the whole.
func TestGradBlocks(t *testing.T) {
	l := newLayer(t, small, 0.1, 700)
	in, m := l.x.Cols(), l.downL
	x, du := view[float32](l.act), view[float32](l.ud)
	whole, pieces := m.Modules[0].DA, make([]float32, m.Width*small.F)
	l.b.gradA(x, du, m, span{&l.batch.Host, 0, 700})
	want := append([]float32(nil), view[float32](whole)...)
	l.b.Zero(whole)
	for lo := 0; lo < 700; lo += ops.GradBlock {
		hi := min(lo+ops.GradBlock, 700)
		l.b.gradA(x[lo*small.F:], du[lo*m.Width:], m, span{&l.batch.Host, lo, hi})
	}
	synced(t, l.b)
	copy(pieces, view[float32](whole))
	for i := range want {
		if math.Float32bits(want[i]) != math.Float32bits(pieces[i]) {
			t.Fatalf("element %d of dA is %g in one piece and %g in three", i, want[i], pieces[i])
		}
	}
	if in == 0 || want[0] == 0 {
		t.Fatal("nothing was summed")
	}
}

// TestErrorsStick: the first error comes out of Sync, ops after it do nothing, and Sync clears it.
func TestErrorsStick(t *testing.T) {
	l := newLayer(t, small, 0, 7)
	steps := l.steps()
	before := bytes.Clone(raw(l.qkv))
	l.b.RMSNorm(l.xn.Rows(0, 3), l.rho, ops.Tensor{}, l.x, l.w, 1e-5, nil, l.batch)
	steps[1].run()
	l.b.Embed(ops.Tensor{}, nil, nil)
	if !bytes.Equal(before, raw(l.qkv)) {
		t.Error("an op after an error wrote its output")
	}
	if err := l.b.Sync(); err == nil || !strings.Contains(err.Error(), "RMSNorm") {
		t.Errorf("Sync returned %v, want the error of RMSNorm", err)
	}
	steps[1].run()
	synced(t, l.b)
	if bytes.Equal(before, raw(l.qkv)) {
		t.Error("an op after Sync did nothing")
	}
}

// TestForeignWeight: a weight that another backend made is refused, and so is float64 storage under float32 arithmetic.
func TestForeignWeight(t *testing.T) {
	l := newLayer(t, small, 0, 7)
	spec := l.downW.Spec()
	source := ops.Source{Name: "w", Rows: spec.Parts[0], Cols: spec.Cols, ReadF32: func(dst []float32, _, _ int) error {
		clear(dst)
		return nil
	}}
	w, err := New[float64]().NewWeight(ops.Tensor{}, spec, []ops.Source{source}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.b.LinearBack(l.dact, l.dx, w)
	if err := l.b.Sync(); err == nil || !strings.Contains(err.Error(), "another backend") {
		t.Errorf("Sync returned %v", err)
	}
	wide := tensorOf(t, l.b, "x", ops.F64, nil, 7, small.C)
	l.b.RMSNorm(tensorOf(t, l.b, "xn", ops.F64, nil, 7, small.C), ops.Tensor{}, ops.Tensor{}, wide, l.w, 1e-5, nil, l.batch)
	if err := l.b.Sync(); err == nil || !strings.Contains(err.Error(), "float64") {
		t.Errorf("Sync returned %v", err)
	}
}

// TestNotFinite: a NaN or an infinity in the residual stream reaches the loss, whatever the vector loops do with one.
func TestNotFinite(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		l := newLayer(t, small, 0, 70)
		for _, s := range l.steps() {
			if s.name == "RMSNorm head" {
				row := int(l.batch.Host.Rows[3])
				view[float32](l.out)[row*small.C+17] = float32(bad)
			}
			s.run()
			if s.name == "HeadLoss" {
				break
			}
		}
		synced(t, l.b)
		for i, v := range view[float32](l.nll) {
			if finite := !math.IsNaN(float64(v)) && !math.IsInf(float64(v), 0); finite != (i != 3) {
				t.Errorf("%g in the row of label 3: the loss of label %d is %g", bad, i, v)
			}
		}
	}
}

// TestBF16Rounding compares with the definition: the nearest of the two neighbours, in float64, ties to the even one.
func TestBF16Rounding(t *testing.T) {
	widen := func(b uint16) float64 { return float64(math.Float32frombits(uint32(b) << 16)) }
	for b := uint32(0); b < 0x7f7f; b += 7 {
		lo, hi := widen(uint16(b)), widen(uint16(b+1))
		tie := (lo + hi) / 2
		even := uint16(b + b&1)
		for _, c := range []struct {
			x    float64
			want uint16
		}{
			{lo, uint16(b)}, {hi, uint16(b + 1)}, {tie, even},
			{math.Nextafter(tie, lo), uint16(b)}, {math.Nextafter(tie, hi), uint16(b + 1)},
		} {
			if got := toBF16(c.x); got != c.want {
				t.Fatalf("%g becomes %g, want %g", c.x, widen(got), widen(c.want))
			}
			if got := toBF16(-c.x); got != c.want|0x8000 {
				t.Fatalf("%g becomes %g, want %g", -c.x, widen(got), -widen(c.want))
			}
		}
	}
	if got := toBF16(math.NaN()); widen(got) == widen(got) {
		t.Errorf("NaN becomes %g", widen(got))
	}
}
