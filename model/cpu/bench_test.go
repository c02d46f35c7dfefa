package cpu

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"qlora/model/ops"
)

// layer is a decoder layer with LoRA on all its weights, a head, and a batch, with room for all tensors of a step.
type layer struct {
	b                             *Backend[float32]
	batch                         *ops.Batch
	heads                         ops.Heads
	rope                          ops.Rope
	qkvW, oW, guW, downW, headW   ops.Weight
	qkvL, oL, guL, downL          *ops.LoRA
	x, xn, mid, out, rho, w, qkv  ops.Tensor
	o, lse, gu, act, dx, dxn      ops.Tensor
	dqkv, dact, uq, uo, ugu, ud   ops.Tensor
	duq, duo, dugu, dud, nll, hit ops.Tensor
}

type shape struct{ C, F, H, Hk, D, V int }

var smolLM2 = shape{C: 576, F: 1536, H: 9, Hk: 3, D: 64, V: 49152}

const layers = 30

// newLayer makes a layer of some shape. Weights and adapters depend on the shape alone. The batch is of segments of these
// lengths; every third token or so has a label.
func newLayer(tb testing.TB, d shape, drop float32, lengths ...int) *layer {
	const R = 8
	C, F, H, Hk, D, V := d.C, d.F, d.H, d.Hk, d.D, d.V
	l := &layer{b: New[float32](), heads: ops.Heads{H: H, Hk: Hk, D: D}}
	b, rng := l.b, rand.New(rand.NewPCG(1, 2))
	tensor := func(name string, scale float32, shape ...int) ops.Tensor {
		t := ops.Tensor{Name: name, DType: ops.F32, Shape: shape}
		buf, err := b.NewArena(t.Bytes())
		if err != nil {
			tb.Fatal(err)
		}
		t.Buf = buf
		for i := range view[float32](t) {
			view[float32](t)[i] = scale * float32(rng.NormFloat64())
		}
		return t
	}
	weight := func(kind ops.WeightKind, cols int, parts ...int) ops.Weight {
		spec := ops.WeightSpec{Name: "w", Kind: kind, DType: ops.F32, Parts: parts, Cols: cols, HeadDim: D, Back: true}
		var sources []ops.Source
		for _, p := range parts {
			sources = append(sources, ops.Source{Name: "w", Rows: p, Cols: cols, ReadF32: func(dst []float32, _, _ int) error {
				for i := range dst {
					dst[i] = (rng.Float32() - 0.5) * 0.1
				}
				return nil
			}})
		}
		w, err := b.NewWeight(ops.Tensor{}, spec, sources, nil)
		if err != nil {
			tb.Fatal(err)
		}
		return w
	}
	stream := uint32(0)
	lora := func(w ops.Weight) *ops.LoRA {
		spec := w.Spec()
		lo := &ops.LoRA{Weight: spec}
		for i, p := range spec.Parts {
			stream++
			lo.Modules = append(lo.Modules, ops.Module{
				Part: i, Rank: R, Scale: 2, Drop: drop, Stream: stream,
				A: tensor("A", 0.05, R, spec.Cols), B: tensor("B", 0.05, p, R),
				DA: tensor("dA", 0, R, spec.Cols), DB: tensor("dB", 0, p, R),
			})
			lo.Width += R
		}
		return lo
	}
	width := (H + 2*Hk) * D
	l.qkvW, l.oW = weight(ops.QKV, C, H*D, Hk*D, Hk*D), weight(ops.Plain, H*D, C)
	l.guW, l.downW, l.headW = weight(ops.GateUp, C, F, F), weight(ops.Plain, F, C), weight(ops.Plain, C, V)
	l.qkvL, l.oL, l.guL, l.downL = lora(l.qkvW), lora(l.oW), lora(l.guW), lora(l.downW)
	l.rope = ops.Rope{Cos: tensor("cos", 0.5, 512, D/2), Sin: tensor("sin", 0.5, 512, D/2)}
	l.w = tensor("w", 1, C)
	h := ops.HostBatch{Seed: 1, Step: 1, LossScale: 0.01, SegStart: []int32{0}}
	for s, length := range lengths {
		for p := range length {
			if p%4 == 1 {
				h.Rows, h.Targets = append(h.Rows, int32(len(h.IDs))), append(h.Targets, int32(p*p%V))
			}
			h.IDs, h.Pos, h.Sample = append(h.IDs, int32(p*7919%V)), append(h.Pos, int32(p)), append(h.Sample, int32(s))
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
	}
	T, S, N := len(h.IDs), len(lengths), len(h.Rows)
	for _, t := range []*ops.Tensor{&l.x, &l.xn, &l.mid, &l.out, &l.dx, &l.dxn} {
		*t = tensor("x", 1, T, C)
	}
	l.rho, l.lse = tensor("rho", 1, T), tensor("lse", 1, H, T)
	l.qkv, l.dqkv, l.o = tensor("qkv", 1, T, width), tensor("dqkv", 1, T, width), tensor("o", 1, T, H*D)
	l.gu, l.act, l.dact = tensor("gu", 1, T, 2*F), tensor("act", 1, T, F), tensor("dact", 1, T, F)
	l.uq, l.uo, l.ugu, l.ud = tensor("u", 1, T, 3*R), tensor("u", 1, T, R), tensor("u", 1, T, 2*R), tensor("u", 1, T, R)
	l.duq, l.duo, l.dugu, l.dud = tensor("du", 1, T, 3*R), tensor("du", 1, T, R), tensor("du", 1, T, 2*R), tensor("du", 1, T, R)
	l.nll, l.hit = tensor("nll", 0, N), tensor("hit", 0, N)
	words := ops.BatchWords(T, S, N)
	block := ops.Tensor{Name: "batch", DType: ops.I32, Shape: []int{words}}
	var err error
	if block.Buf, err = b.NewArena(block.Bytes()); err != nil {
		tb.Fatal(err)
	}
	if l.batch, err = ops.NewBatch(block, T, S, N); err != nil {
		tb.Fatal(err)
	}
	if err := b.LoadBatch(l.batch, h); err != nil {
		tb.Fatal(err)
	}
	return l
}

// step is one op of a step and how often a step runs it.
type step struct {
	name  string
	times int
	run   func()
}

// steps are the ops of a training step in order.
func (l *layer) steps() []step {
	const L = layers
	b, t, none := l.b, l.batch, ops.Tensor{}
	eps := float32(1e-5)
	return []step{
		{"RMSNorm qkv", L, func() { b.RMSNorm(l.xn, l.rho, l.uq, l.x, l.w, eps, l.qkvL, t) }},
		{"Linear qkv", L, func() { b.Linear(l.qkv, l.xn, l.qkvW, l.uq, l.qkvL, ops.Epilogue{Rope: &l.rope}, t) }},
		{"Attention", L, func() { b.Attention(l.o, l.lse, l.uo, l.qkv, l.heads, l.oL, t) }},
		{"Linear o", L, func() { b.Linear(l.mid, l.o, l.oW, l.uo, l.oL, ops.Epilogue{Residual: l.x}, t) }},
		{"RMSNorm gateup", L, func() { b.RMSNorm(l.xn, l.rho, l.ugu, l.mid, l.w, eps, l.guL, t) }},
		{"Linear gateup", L, func() { b.Linear(l.gu, l.xn, l.guW, l.ugu, l.guL, ops.Epilogue{}, t) }},
		{"SwiGLU", L, func() { b.SwiGLU(l.act, l.ud, l.gu, l.downL, t) }},
		{"Linear down", L, func() { b.Linear(l.out, l.act, l.downW, l.ud, l.downL, ops.Epilogue{Residual: l.mid}, t) }},
		{"RMSNorm head", 1, func() { b.RMSNorm(l.xn, l.rho, none, l.out, l.w, eps, nil, t) }},
		{"HeadLoss", 1, func() { b.HeadLoss(l.dxn, l.nll, l.hit, l.xn, l.headW, t) }},
		{"RMSNormBack head", 1, func() { b.RMSNormBack(l.dx, l.dud, none, l.dxn, none, none, l.out, l.rho, l.w, nil, l.downL, t) }},
		{"LinearBack down", L, func() { b.LinearBack(l.dact, l.dx, l.downW) }},
		{"LoRAGrad down", L, func() { b.LoRAGrad([]ops.GradJob{{LoRA: l.downL, Side: ops.SideB, Wide: l.dx, Low: l.ud}}, t) }},
		{"SwiGLUBack", L, func() { b.SwiGLUBack(l.gu, l.dugu, l.dact, l.dud, l.ugu, l.downL, l.guL, t) }},
		{"LinearBack gateup", L, func() { b.LinearBack(l.dxn, l.gu, l.guW) }},
		{"RMSNorm gateup again", L, func() { b.RMSNorm(l.xn, l.rho, none, l.mid, l.w, eps, nil, t) }},
		{"LoRAGrad gateup", L, func() { b.LoRAGrad([]ops.GradJob{{LoRA: l.guL, Side: ops.SideA, Wide: l.xn, Low: l.dugu}}, t) }},
		{"RMSNormBack gateup", L, func() { b.RMSNormBack(l.dx, l.duo, l.dx, l.dxn, l.dugu, l.ugu, l.mid, l.rho, l.w, l.guL, l.oL, t) }},
		{"LinearBack o", L, func() { b.LinearBack(l.dxn, l.dx, l.oW) }},
		{"AttentionBack", L, func() {
			b.AttentionBack(l.dqkv, l.duq, l.dxn, l.duo, l.o, l.lse, l.qkv, l.heads, &l.rope, l.oL, l.qkvL, t)
		}},
		{"RMSNorm qkv again", L, func() { b.RMSNorm(l.xn, l.rho, none, l.x, l.w, eps, nil, t) }},
		{"LoRAGrad qkv o", L, func() {
			b.LoRAGrad([]ops.GradJob{
				{LoRA: l.qkvL, Side: ops.SideA, Wide: l.xn, Low: l.duq}, {LoRA: l.qkvL, Side: ops.SideB, Wide: l.dqkv, Low: l.uq},
				{LoRA: l.oL, Side: ops.SideA, Wide: l.o, Low: l.duo}, {LoRA: l.oL, Side: ops.SideB, Wide: l.dx, Low: l.uo},
			}, t)
		}},
		{"LinearBack qkv", L, func() { b.LinearBack(l.dxn, l.dqkv, l.qkvW) }},
		{"RMSNormBack qkv", L, func() { b.RMSNormBack(l.dx, none, l.dx, l.dxn, l.duq, l.uq, l.x, l.rho, l.w, l.qkvL, nil, t) }},
	}
}

// optimizer are the last ops of a step, over the flat parameters of all layers.
func (l *layer) optimizer(tb testing.TB) []step {
	n := 0
	for _, lora := range []*ops.LoRA{l.qkvL, l.oL, l.guL, l.downL} {
		for _, m := range lora.Modules {
			n += layers * (m.A.Len() + m.B.Len())
		}
	}
	flat := func(name string) ops.Tensor { return tensorOf(tb, l.b, name, ops.F32, nil, n) }
	params, m, v, grads, norm := flat("params"), flat("m"), flat("v"), flat("grads"), tensorOf(tb, l.b, "norm", ops.F32, nil, 2)
	for i := range n {
		view[float32](grads)[i] = float32(i%17) - 8
	}
	args := ops.AdamWArgs{Step: 3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, MaxNorm: 1, Groups: []ops.LRGroup{{Len: n, LR: 1e-4, WeightDecay: 0.1}}}
	return []step{
		{"GradNorm", 1, func() { l.b.GradNorm(norm, grads) }},
		{"AdamW", 1, func() { l.b.AdamW(params, m, v, grads, norm, args) }},
	}
}

// BenchmarkStep times a training step of SmolLM2-135M on 585 tokens in 8 segments, 150 of them labels: each op in
// milliseconds, the best of five runs, and all of them in seconds, those of a layer thirty times.
func BenchmarkStep(b *testing.B) {
	for _, drop := range []float32{0, 0.05} {
		b.Run(fmt.Sprintf("dropout=%g", drop), func(b *testing.B) {
			l := newLayer(b, smolLM2, drop, 74, 73, 73, 73, 73, 73, 73, 73)
			steps := append(l.steps(), l.optimizer(b)...)
			best := make([]time.Duration, len(steps))
			for b.Loop() {
				for run := range 5 {
					for i, s := range steps {
						start := clock()
						s.run()
						if d := clock() - start; run == 0 || d < best[i] {
							best[i] = d
						}
					}
				}
			}
			synced(b, l.b)
			var total time.Duration
			for i, s := range steps {
				total += best[i] * time.Duration(s.times)
				b.ReportMetric(best[i].Seconds()*1e3, strings.ReplaceAll(s.name, " ", "-")+"-ms")
			}
			b.ReportMetric(total.Seconds(), "step-s")
		})
	}
}

var started = time.Now()

// clock is the time since the start of the tests.
var clock = func() time.Duration { return time.Since(started) }
