package cpu

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"qlora/model/ops"
)

// layerBench is one decoder layer of SmolLM2-135M, its head, and a batch of 8 segments: 585 tokens, 150 of them labels.
type layerBench struct {
	b                             *Backend[float32]
	batch                         *ops.Batch
	heads                         ops.Heads
	rope                          ops.Rope
	qkvW, oW, guW, downW, headW   ops.Weight
	qkvL, oL, guL, downL          *ops.LoRA
	x, xn, mid, rho, w, qkv, o    ops.Tensor
	lse, gu, act, dx, dxn, dqkv   ops.Tensor
	dgu, dact, uq, uo, ugu, ud    ops.Tensor
	duq, duo, dugu, dud, nll, hit ops.Tensor
	params, m, v, grads, norm     ops.Tensor
}

const benchLayers = 30

func newLayerBench(tb testing.TB, drop float32) *layerBench {
	const T, C, F, H, Hk, D, V, R, N, S = 585, 576, 1536, 9, 3, 64, 49152, 8, 150, 8
	l := &layerBench{b: New[float32](), heads: ops.Heads{H: H, Hk: Hk, D: D}}
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
			lo.Rank += R
		}
		return lo
	}
	width := (H + 2*Hk) * D
	l.qkvW, l.oW = weight(ops.QKV, C, H*D, Hk*D, Hk*D), weight(ops.Plain, H*D, C)
	l.guW, l.downW, l.headW = weight(ops.GateUp, C, F, F), weight(ops.Plain, F, C), weight(ops.Plain, C, V)
	l.qkvL, l.oL, l.guL, l.downL = lora(l.qkvW), lora(l.oW), lora(l.guW), lora(l.downW)
	l.rope = ops.Rope{Cos: tensor("cos", 0.5, 128, D/2), Sin: tensor("sin", 0.5, 128, D/2)}
	for _, t := range []*ops.Tensor{&l.x, &l.xn, &l.mid, &l.dx, &l.dxn} {
		*t = tensor("x", 1, T, C)
	}
	l.rho, l.w, l.lse = tensor("rho", 1, T), tensor("w", 1, C), tensor("lse", 1, H, T)
	l.qkv, l.dqkv, l.o = tensor("qkv", 1, T, width), tensor("dqkv", 1, T, width), tensor("o", 1, T, H*D)
	l.gu, l.dgu, l.act, l.dact = tensor("gu", 1, T, 2*F), tensor("dgu", 1, T, 2*F), tensor("act", 1, T, F), tensor("dact", 1, T, F)
	l.uq, l.uo, l.ugu, l.ud = tensor("u", 1, T, 3*R), tensor("u", 1, T, R), tensor("u", 1, T, 2*R), tensor("u", 1, T, R)
	l.duq, l.duo, l.dugu, l.dud = tensor("du", 1, T, 3*R), tensor("du", 1, T, R), tensor("du", 1, T, 2*R), tensor("du", 1, T, R)
	l.nll, l.hit, l.norm = tensor("nll", 0, N), tensor("hit", 0, N), tensor("norm", 0, 2)
	n := 81408 * benchLayers
	l.params, l.m, l.v, l.grads = tensor("p", 1, n), tensor("m", 0, n), tensor("v", 0, n), tensor("g", 1, n)

	h := ops.HostBatch{Seed: 1, Step: 1, LossScale: 1.0 / N, SegStart: []int32{0}}
	for s := range S {
		length := 73
		if s == 0 {
			length = T - 73*(S-1)
		}
		for p := range length {
			h.IDs, h.Pos, h.Sample = append(h.IDs, int32(rng.IntN(V))), append(h.Pos, int32(p)), append(h.Sample, int32(s))
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
	}
	for i := range N {
		h.Rows, h.Targets = append(h.Rows, int32(i*3+5)), append(h.Targets, int32(rng.IntN(V)))
	}
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

func (l *layerBench) steps() []step {
	const L = benchLayers
	b, t, none := l.b, l.batch, ops.Tensor{}
	eps := float32(1e-5)
	return []step{
		{"Embed", 1, func() { b.Embed(l.x, l.headW, t) }},
		{"RMSNorm qkv", L, func() { b.RMSNorm(l.xn, l.rho, l.uq, l.x, l.w, eps, l.qkvL, t) }},
		{"Linear qkv", L, func() { b.Linear(l.qkv, l.xn, l.qkvW, l.uq, l.qkvL, ops.Epilogue{Rope: &l.rope}, t) }},
		{"Attention", L, func() { b.Attention(l.o, l.lse, l.uo, l.qkv, l.heads, l.oL, t) }},
		{"Linear o", L, func() { b.Linear(l.mid, l.o, l.oW, l.uo, l.oL, ops.Epilogue{Residual: l.x}, t) }},
		{"RMSNorm gateup", L, func() { b.RMSNorm(l.xn, l.rho, l.ugu, l.mid, l.w, eps, l.guL, t) }},
		{"Linear gateup", L, func() { b.Linear(l.gu, l.xn, l.guW, l.ugu, l.guL, ops.Epilogue{}, t) }},
		{"SwiGLU", L, func() { b.SwiGLU(l.act, l.ud, l.gu, l.downL, t) }},
		{"Linear down", L, func() { b.Linear(l.dx, l.act, l.downW, l.ud, l.downL, ops.Epilogue{Residual: l.mid}, t) }},
		{"HeadLoss", 1, func() { b.HeadLoss(l.dxn, l.nll, l.hit, l.xn, l.headW, t) }},
		{"LinearBack down", L, func() { b.LinearBack(l.dact, l.dx, l.downW) }},
		{"SwiGLUBack", L, func() { b.SwiGLUBack(l.dgu, l.dugu, l.dact, l.dud, l.ugu, l.downL, l.guL, t) }},
		{"LinearBack gateup", L, func() { b.LinearBack(l.dxn, l.dgu, l.guW) }},
		{"RMSNorm again", 2 * L, func() { b.RMSNorm(l.xn, l.rho, none, l.x, l.w, eps, nil, t) }},
		{"RMSNormBack gateup", L, func() { b.RMSNormBack(l.dx, l.duo, l.dx, l.dxn, l.dugu, l.mid, l.rho, l.w, l.guL, l.oL, t) }},
		{"LinearBack o", L, func() { b.LinearBack(l.dxn, l.dx, l.oW) }},
		{"AttentionBack", L, func() {
			b.AttentionBack(l.dqkv, l.duq, l.dxn, l.duo, l.o, l.lse, l.qkv, l.heads, &l.rope, l.oL, l.qkvL, t)
		}},
		{"LinearBack qkv", L, func() { b.LinearBack(l.dxn, l.dqkv, l.qkvW) }},
		{"RMSNormBack qkv", L, func() { b.RMSNormBack(l.dx, l.dud, l.dx, l.dxn, l.duq, l.x, l.rho, l.w, l.qkvL, l.downL, t) }},
		{"LoRAGrad", L, func() {
			b.LoRAGrad([]ops.GradJob{
				{LoRA: l.qkvL, Side: ops.SideA, Wide: l.xn, Low: l.duq}, {LoRA: l.qkvL, Side: ops.SideB, Wide: l.dqkv, Low: l.uq},
				{LoRA: l.oL, Side: ops.SideA, Wide: l.o, Low: l.duo}, {LoRA: l.oL, Side: ops.SideB, Wide: l.dx, Low: l.uo},
				{LoRA: l.guL, Side: ops.SideA, Wide: l.xn, Low: l.dugu}, {LoRA: l.downL, Side: ops.SideB, Wide: l.dx, Low: l.ud},
			}, t)
		}},
		{"GradNorm", 1, func() { b.GradNorm(l.norm, l.grads) }},
		{"AdamW", 1, func() {
			b.AdamW(l.params, l.m, l.v, l.grads, l.norm, ops.AdamWArgs{Step: 3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, MaxNorm: 1,
				Groups: []ops.LRGroup{{Len: l.params.Len(), LR: 1e-4, WeightDecay: 0.1}}})
		}},
	}
}

var started = time.Now()

// clock is the time since the start of the test.
var clock = func() time.Duration { return time.Since(started) }

// BenchmarkStep times the ops of a training step of SmolLM2-135M, each the best of five, and adds them up.
func BenchmarkStep(b *testing.B) {
	for _, drop := range []float32{0, 0.05} {
		b.Run(fmt.Sprintf("dropout=%g", drop), func(b *testing.B) {
			l := newLayerBench(b, drop)
			for b.Loop() {
				var total time.Duration
				for _, s := range l.steps() {
					best := time.Hour
					for range 5 {
						start := clock()
						s.run()
						best = min(best, clock()-start)
					}
					total += best * time.Duration(s.times)
					b.ReportMetric(best.Seconds()*1e3, strings.ReplaceAll(s.name, " ", "-")+"-ms")
				}
				b.ReportMetric(total.Seconds(), "step-s")
			}
			if err := l.b.Sync(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
