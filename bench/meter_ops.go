package bench

import "qlora/model/ops"

// The ops, each with the multiplications and additions it stands for and the tensors it must read and write. They are
// those of opstest's cases, and a test holds the two to each other.

// LoadBatch begins the forward of a row.
func (m *Meter) LoadBatch(b *ops.Batch, h ops.HostBatch) error {
	m.phase = phaseForward
	return m.Backend.LoadBatch(b, h)
}

// AwaitTransfers is timed: what activations take that come back from the host's memory, beyond what the ops hide.
func (m *Meter) AwaitTransfers() {
	m.time("AwaitTransfers", "", 0, func() { m.Backend.AwaitTransfers() })
}

// Embed is timed.
func (m *Meter) Embed(x ops.Tensor, table ops.Weight, b *ops.Batch) {
	m.time("Embed", shape(nil, x.Shape...), 0, func() { m.Backend.Embed(x, table, b) }, x, x)
}

// RMSNorm is timed.
func (m *Meter) RMSNorm(xn, rho, u, x, w ops.Tensor, eps float32, l *ops.LoRA, b *ops.Batch) {
	T, C := x.Dim(0), x.Cols()
	m.time("RMSNorm", shape(l, T, C), 4*mul(T, C)+2*mul(T, width(l), C), func() { m.Backend.RMSNorm(xn, rho, u, x, w, eps, l, b) }, xn, x, u)
}

// Linear is timed.
func (m *Meter) Linear(y, x ops.Tensor, w ops.Weight, u ops.Tensor, l *ops.LoRA, e ops.Epilogue, b *ops.Batch) {
	T, N, K := y.Dim(0), y.Cols(), x.Cols()
	m.time("Linear", shape(l, T, N, K), 2*mul(T, N, K)+2*mul(T, width(l), N), func() { m.Backend.Linear(y, x, w, u, l, e, b) }, y, x, weight(w), u, e.Residual)
}

// Attention is timed.
func (m *Meter) Attention(o, lse, u, qkv ops.Tensor, h ops.Heads, l *ops.LoRA, b *ops.Batch) {
	m.time("Attention", shape(l, b.T, h.H, h.D), 4*pairs(b)*mul(o.Cols())+2*mul(b.T, width(l), o.Cols()), func() { m.Backend.Attention(o, lse, u, qkv, h, l, b) }, o, qkv, u)
}

// SwiGLU is timed.
func (m *Meter) SwiGLU(act, u, gateup ops.Tensor, l *ops.LoRA, b *ops.Batch) {
	T, F := act.Dim(0), act.Cols()
	m.time("SwiGLU", shape(l, T, F), 6*mul(T, F)+2*mul(T, width(l), F), func() { m.Backend.SwiGLU(act, u, gateup, l, b) }, act, gateup, u)
}

// LinearBack is timed.
func (m *Meter) LinearBack(dx, dy ops.Tensor, w ops.Weight) {
	T, N, K := dy.Dim(0), dy.Cols(), dx.Cols()
	m.time("LinearBack", shape(nil, T, N, K), 2*mul(T, N, K), func() { m.Backend.LinearBack(dx, dy, w) }, dx, dy, weight(w))
}

// RMSNormBack is timed.
func (m *Meter) RMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w ops.Tensor, in, out *ops.LoRA, b *ops.Batch) {
	T, C := x.Dim(0), x.Cols()
	m.time("RMSNormBack", shape(in, T, C), 8*mul(T, C)+2*mul(T, width(in)+width(out), C), func() {
		m.Backend.RMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w, in, out, b)
	}, dx, dres, dxn, x, du, duOut)
}

// AttentionBack is timed.
func (m *Meter) AttentionBack(dqkv, duQKV, do, duO, o, lse, qkv ops.Tensor, h ops.Heads, rope *ops.Rope, lo, lqkv *ops.LoRA, b *ops.Batch) {
	T, narrow, wide := b.T, o.Cols(), qkv.Cols()
	m.time("AttentionBack", shape(lqkv, T, h.H, h.D), 10*pairs(b)*mul(narrow)+2*mul(T, width(lo), narrow)+2*mul(T, width(lqkv), wide), func() {
		m.Backend.AttentionBack(dqkv, duQKV, do, duO, o, lse, qkv, h, rope, lo, lqkv, b)
	}, dqkv, qkv, do, do, o, duO, duQKV)
}

// SwiGLUBack is timed.
func (m *Meter) SwiGLUBack(gateup, duGU, dact, duDown, uGU ops.Tensor, down, gu *ops.LoRA, b *ops.Batch) {
	T, F := dact.Dim(0), dact.Cols()
	m.time("SwiGLUBack", shape(gu, T, F), 12*mul(T, F)+4*mul(T, width(down), F)+4*mul(T, width(gu), F), func() {
		m.Backend.SwiGLUBack(gateup, duGU, dact, duDown, uGU, down, gu, b)
	}, gateup, gateup, dact, duDown, duGU, uGU)
}

// LoRAGrad is timed, all jobs together.
func (m *Meter) LoRAGrad(jobs []ops.GradJob, b *ops.Batch) {
	flops, columns := 0.0, 0
	var touched []ops.Tensor
	for _, j := range jobs {
		flops += 2 * mul(j.Wide.Dim(0), j.Low.Cols(), j.Wide.Cols())
		columns += j.Wide.Cols()
		touched = append(touched, j.Wide, j.Low)
	}
	m.time("LoRAGrad", shape(nil, b.T, columns), flops, func() { m.Backend.LoRAGrad(jobs, b) }, touched...)
}

// HeadLoss is timed; what follows it with a gradient is the backward.
func (m *Meter) HeadLoss(dxn, nll, hit, xn ops.Tensor, head ops.Weight, b *ops.Batch) {
	spec := head.Spec()
	products := 1
	if !dxn.Nil() {
		products = 2
	}
	m.phase = phaseHead
	m.time("HeadLoss", shape(nil, b.N, spec.Rows(), spec.Cols), 2*mul(products, b.N, spec.Rows(), spec.Cols), func() {
		m.Backend.HeadLoss(dxn, nll, hit, xn, head, b)
	}, weight(head), xn)
	m.phase = phaseBackward
}

// GradNorm is timed; it begins the optimizer.
func (m *Meter) GradNorm(norm, grads ops.Tensor) {
	m.phase = phaseOptimizer
	m.time("GradNorm", shape(nil, grads.Len()), 2*mul(grads.Len()), func() { m.Backend.GradNorm(norm, grads) }, grads)
}

// AdamW is timed: four tensors are read, and three of them written.
func (m *Meter) AdamW(params, moment1, moment2, grads, norm ops.Tensor, a ops.AdamWArgs) {
	m.time("AdamW", shape(nil, params.Len()), 12*mul(params.Len()), func() { m.Backend.AdamW(params, moment1, moment2, grads, norm, a) },
		params, params, moment1, moment1, moment2, moment2, grads)
}

// PackLoRA is timed, all adapters together.
func (m *Meter) PackLoRA(all []*ops.LoRA) {
	columns := 0
	var packs []ops.Tensor
	for _, l := range all {
		columns += l.Weight.Rows() + l.Weight.Cols
		packs = append(packs, l.Pack)
	}
	m.time("PackLoRA", shape(nil, len(all), columns), 0, func() { m.Backend.PackLoRA(all) }, packs...)
}

// Logits is timed.
func (m *Meter) Logits(logits, xn ops.Tensor, head ops.Weight, b *ops.Batch) {
	spec := head.Spec()
	m.time("Logits", shape(nil, b.N, spec.Rows(), spec.Cols), 2*mul(b.N, spec.Rows(), spec.Cols), func() { m.Backend.Logits(logits, xn, head, b) }, weight(head), logits)
}

// KL is timed.
func (m *Meter) KL(kl, base, tuned ops.Tensor, head ops.Weight, b *ops.Batch) {
	spec := head.Spec()
	m.time("KL", shape(nil, b.N, spec.Rows(), spec.Cols), 4*mul(b.N, spec.Rows(), spec.Cols), func() { m.Backend.KL(kl, base, tuned, head, b) }, weight(head), base, tuned)
}

// StoreKV is timed.
func (m *Meter) StoreKV(c ops.KVCache, qkv ops.Tensor, h ops.Heads, b *ops.Batch) {
	kv := ops.Tensor{DType: c.K.DType, Shape: []int{b.T, 2 * h.Hk * h.D}, Buf: present{}}
	m.time("StoreKV", shape(nil, b.T, h.Hk, h.D), 0, func() { m.Backend.StoreKV(c, qkv, h, b) }, kv, kv)
}

// DecodeAttention is timed.
func (m *Meter) DecodeAttention(o, u, qkv ops.Tensor, c ops.KVCache, h ops.Heads, l *ops.LoRA, b *ops.Batch) {
	positions := 0
	for _, p := range b.Host.Pos {
		positions += int(p) + 1
	}
	read := ops.Tensor{DType: c.K.DType, Shape: []int{positions, 2 * h.Hk * h.D}, Buf: present{}}
	m.time("DecodeAttention", shape(l, b.T, h.H, h.D), 4*mul(positions, o.Cols())+2*mul(b.T, width(l), o.Cols()), func() {
		m.Backend.DecodeAttention(o, u, qkv, c, h, l, b)
	}, read, o, u)
}

// Sample is timed.
func (m *Meter) Sample(next, logits ops.Tensor, a ops.SampleArgs) {
	m.time("Sample", shape(nil, logits.Shape...), 4*mul(logits.Len()), func() { m.Backend.Sample(next, logits, a) }, logits)
}

// QuantNF4 is timed.
func (m *Meter) QuantNF4(q ops.Quantized, src ops.Tensor) {
	m.time("QuantNF4", shape(nil, src.Len()), 3*mul(src.Len()), func() { m.Backend.QuantNF4(q, src) }, src, q.Codes, q.Absmax)
}

// DequantNF4 is timed.
func (m *Meter) DequantNF4(dst ops.Tensor, q ops.Quantized) {
	m.time("DequantNF4", shape(nil, dst.Len()), mul(dst.Len()), func() { m.Backend.DequantNF4(dst, q) }, dst, q.Codes, q.Absmax)
}
