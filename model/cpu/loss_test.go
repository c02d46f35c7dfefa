package cpu

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"qlora/model/ops"
)

// lossGolden is testdata/loss/loss.json, which its make.py describes.
type lossGolden struct {
	Smoothing struct {
		T, C, V int
		X, W    []float64
		Labels  []int32
		Items   int
		Rows    []struct {
			Epsilon, Loss float64
			DX            []float64 `json:"dx"`
		}
	}
	NEFTune []struct {
		Alpha         float32
		Length, Width int
		Low, High     float64
	} `json:"neftune"`
}

func readLoss(t *testing.T) (g lossGolden) {
	t.Helper()
	text, err := os.ReadFile("../../testdata/loss/loss.json")
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err != nil || len(g.Smoothing.Rows) == 0 || len(g.NEFTune) == 0 {
		t.Fatalf("loss.json: %v", err)
	}
	return g
}

// Smoothed losses and their gradients are those of transformers.
func TestLabelSmoothing(t *testing.T) {
	g := readLoss(t).Smoothing
	h := ops.HostBatch{IDs: make([]int32, g.T), Pos: make([]int32, g.T), Sample: make([]int32, g.T), SegStart: []int32{0, int32(g.T)},
		LossScale: float32(1 / float64(g.Items))}
	for row, label := range g.Labels[1:] {
		if label >= 0 {
			h.Rows, h.Targets = append(h.Rows, int32(row)), append(h.Targets, label)
		}
	}
	b := New[float32]()
	arena, err := b.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	off := int64(0)
	place := func(name string, d ops.DType, shape ...int) ops.Tensor {
		x := ops.Tensor{Name: name, DType: d, Shape: shape, Buf: arena, Off: off}
		off += (x.Bytes() + ops.Align - 1) / ops.Align * ops.Align
		return x
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	spec := ops.WeightSpec{Name: "head", DType: ops.F32, Parts: []int{g.V}, Cols: g.C, Back: true}
	w, err := b.NewWeight(place("head", ops.U8, int(b.WeightBytes(spec))), spec, []ops.Source{{Name: "head", Rows: g.V, Cols: g.C, ReadF32: func(dst []float32, row, n int) error {
		for i := range dst[:n*g.C] {
			dst[i] = float32(g.W[row*g.C+i])
		}
		return nil
	}}}, nil)
	must(err)
	batch, err := ops.NewBatch(place("batch", ops.I32, ops.BatchWords(g.T, 1, g.T)), g.T, 1, g.T)
	must(err)
	dims := ops.Dims{T: g.T, S: 1, N: g.T, C: g.C, F: 8, V: g.V, H: 1, Hk: 1, D: 8, Width: 1, Training: true}
	b.SetWorkspace(place("work", ops.U8, int(b.WorkspaceBytes(dims))), dims)
	xn, dxn := place("xn", ops.F32, g.T, g.C), place("dxn", ops.F32, g.T, g.C)
	nll, hit := place("nll", ops.F32, len(h.Rows)), place("hit", ops.F32, len(h.Rows))
	x := make([]float32, len(g.X))
	for i, v := range g.X {
		x[i] = float32(v)
	}
	must(ops.WriteF32(b, xn, x))
	for _, row := range g.Rows {
		h.Smoothing = float32(row.Epsilon)
		must(b.LoadBatch(batch, h))
		b.HeadLoss(dxn, nll, hit, xn, w, batch)
		must(b.Sync())
		losses, err := ops.ReadF32(b, nll)
		must(err)
		sum := 0.0
		for _, v := range losses {
			sum += float64(v)
		}
		if got := sum / float64(g.Items); !(math.Abs(got-row.Loss) <= 1e-6*row.Loss) {
			t.Errorf("epsilon %g: loss %.9g, transformers %.9g", row.Epsilon, got, row.Loss)
		}
		dx, err := ops.ReadF32(b, dxn)
		must(err)
		for i, want := range row.DX {
			if !(math.Abs(float64(dx[i])-want) <= 1e-7) {
				t.Errorf("epsilon %g: gradient %d is %.9g, torch's %.9g", row.Epsilon, i, dx[i], want)
				break
			}
		}
	}
}

// The ends of the noise are those that transformers draws between.
func TestNoiseBounds(t *testing.T) {
	for _, c := range readLoss(t).NEFTune {
		for _, end := range []struct {
			lane uint16
			want float64
		}{{0, c.Low}, {65535, c.High}} {
			if got := float64(ops.NoiseStep(end.lane)) * ops.NoiseUnit(c.Alpha, c.Length, c.Width); !(math.Abs(got/end.want-1) <= 2e-5) {
				t.Errorf("%+v: lane %d is %.9g", c, end.lane, got)
			}
		}
	}
}
