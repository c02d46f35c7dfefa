package plan

import (
	"math"

	"qlora/model/ops"
)

// Work is what the calls of an op came to.
type Work struct {
	Calls          int
	FLOPs, Bytes   float64
	Least, Seconds float64 // at the card's peaks, and at the shares measured
}

// Meter is a backend that computes nothing: it notes what each op would do, and how long a card would take for it. Its
// sizes are those of the run it stands for.
type Meter struct {
	ops.Sizes
	Card          Card
	Measured      *Measured
	HostEmbedding bool // the embedding's rows come over the bus

	Ops     map[string]*Work
	Seconds float64 // so far
	Waited  float64 // of it for transfers

	bus  float64 // when the transfers so far are done
	held [2]ops.Weight
}

// NewMeter is a meter at zero.
func NewMeter(sizes ops.Sizes, c Card, m *Measured) *Meter {
	return &Meter{Sizes: sizes, Card: c, Measured: m, Ops: map[string]*Work{}}
}

var _ ops.Backend = (*Meter)(nil)

// note adds a call. busy is the share of the multiprocessors that its tiles keep at work; rate scales the measured share.
func (m *Meter) note(op string, flops, bytes, busy, rate float64) {
	w := m.Ops[op]
	if w == nil {
		w = &Work{}
		m.Ops[op] = w
	}
	least := math.Max(flops/busy/(m.Card.TFLOPs*1e12), bytes/(m.Card.GBps*1e9))
	seconds := least / (m.Measured.share(op) * rate)
	w.Calls++
	w.FLOPs, w.Bytes, w.Least, w.Seconds = w.FLOPs+flops, w.Bytes+bytes, w.Least+least, w.Seconds+seconds
	m.Seconds += seconds + m.Measured.Launch
}

// busy is the share of the card that a product (M,N) of K sums keeps at work, by the best of the tiles there are, in whole waves.
func (m *Meter) busy(M, N, K int, back bool) float64 {
	if m.Card.Hopper {
		return hopperBusy(M, N, K, m.Card.Multiprocessors, back)
	}
	best := 0.0
	for _, width := range []int{128, 256} {
		tiles := (M + 127) / 128 * ((N + width - 1) / width)
		waves := (tiles + m.Card.Multiprocessors - 1) / m.Card.Multiprocessors
		best = max(best, float64(M)*float64(N)/(float64(waves*m.Card.Multiprocessors)*128*float64(width)))
	}
	return best
}

// hopperBusy counts cycles as kernels/tiles.h does: clusters of two blocks take tiles of 256 rows; 64 of K take 4 cycles a
// column, or as long as the cache needs for what they read; a tile's end takes about 1200.
func hopperBusy(M, N, K, multiprocessors int, back bool) float64 {
	widths := []int{112, 144, 176, 192, 224, 256}
	if back {
		widths = []int{128, 160, 192, 224, 256}
	}
	clusters, least := multiprocessors/2, math.Inf(1)
	steps := float64((K + 63) / 64)
	for _, width := range widths {
		tiles := (M + 255) / 256 * ((N + width - 1) / width)
		waves := (tiles + clusters - 1) / clusters
		least = min(least, float64(waves)*(max(4*float64(width), float64(256+width)*128/74)*steps+1200))
	}
	return float64(M) * float64(N) / 256 / float64(clusters) * 4 * float64(K) / 64 / least
}

func widthOf(l *ops.LoRA) float64 {
	if l == nil {
		return 0
	}
	return float64(l.Width)
}

// pairs is the query-key pairs of causal attention in the batch, in whole tiles.
func pairs(b *ops.Batch) (n float64) {
	const tile = 128
	s := b.Host.SegStart
	for i := range len(s) - 1 {
		tiles := float64((s[i+1] - s[i] + tile - 1) / tile)
		n += tiles * (tiles + 1) / 2 * tile * tile
	}
	return n
}

// weight dequantises a weight in NF4, unless its place holds it still.
func (m *Meter) weight(w ops.Weight) {
	spec := w.Spec()
	if spec.DType != ops.NF4 {
		return
	}
	place := &m.held[0]
	if spec.Kind == ops.Plain {
		place = &m.held[1]
	}
	if *place != w {
		m.note("Dequantise", 0, 2.516*float64(spec.Rows())*float64(spec.Cols), 1, 1)
		*place = w
	}
}

// Name is "meter".
func (m *Meter) Name() string { return "meter" }

// Describe names the card.
func (m *Meter) Describe() string { return m.Card.Title }

// arena is as large as it is asked to be, and holds nothing.
type arena int64

func (a arena) Bytes() int64 { return int64(a) }

// NewArena and NewHostArena make arenas without memory.
func (m *Meter) NewArena(bytes int64) (ops.Buffer, error)     { return arena(bytes), nil }
func (m *Meter) NewHostArena(bytes int64) (ops.Buffer, error) { return arena(bytes), nil }

// NewWeight is not called: a model that a meter runs is a sketch.
func (m *Meter) NewWeight(ops.Tensor, ops.WeightSpec, []ops.Source, []float32) (ops.Weight, error) {
	panic("plan: a meter loads no weights")
}

// SetWorkspace does nothing.
func (m *Meter) SetWorkspace(ops.Tensor, ops.Dims) {}

// LoadBatch keeps the batch.
func (m *Meter) LoadBatch(b *ops.Batch, h ops.HostBatch) error {
	_, err := b.Load(h)
	return err
}

// Write, Read, Zero and Sync do nothing.
func (m *Meter) Write(ops.Tensor, []byte) error { return nil }
func (m *Meter) Read([]byte, ops.Tensor) error  { return nil }
func (m *Meter) Zero(ops.Tensor)                {}
func (m *Meter) Sync() error                    { return nil }
func (m *Meter) Close() error                   { return nil }

// Transfer takes the bus, behind the transfers before it.
func (m *Meter) Transfer(_, src ops.Tensor) {
	m.bus = math.Max(m.bus, m.Seconds) + float64(src.Bytes())/(m.Card.Bus*1e9)
}

// AwaitTransfers waits for the bus.
func (m *Meter) AwaitTransfers() {
	if m.bus > m.Seconds {
		m.Waited += m.bus - m.Seconds
		m.Seconds = m.bus
	}
}

// PackLoRA reads A and B in float32 and writes the packs.
func (m *Meter) PackLoRA(all []*ops.LoRA) {
	var bytes float64
	for _, l := range all {
		bytes += float64(m.LoRAPackBytes(l))
		for i := range l.Modules {
			bytes += 4 * float64(l.Modules[i].A.Len()+l.Modules[i].B.Len())
		}
	}
	m.note("PackLoRA", 0, bytes, 1, 1)
}

// busShare is what rows read one by one over the bus reach of its rate.
const busShare = 0.4

// Embed copies rows of the table.
func (m *Meter) Embed(x ops.Tensor, _ ops.Weight, _ *ops.Batch) {
	m.note("Embed", 0, 2*float64(x.Bytes()), 1, 1)
	if m.HostEmbedding {
		m.Seconds += float64(x.Bytes()) / (busShare * m.Card.Bus * 1e9)
	}
}

// RMSNorm reads x and writes xn and u.
func (m *Meter) RMSNorm(xn, _, _, x, _ ops.Tensor, _ float32, l *ops.LoRA, b *ops.Batch) {
	T, C := float64(b.T), float64(x.Cols())
	m.note("RMSNorm", 2*T*C*widthOf(l), float64(x.Bytes()+xn.Bytes()), 1, 1)
}

// Linear is a product, with LoRA's columns in its inner sum.
func (m *Meter) Linear(y, x ops.Tensor, w ops.Weight, _ ops.Tensor, l *ops.LoRA, e ops.Epilogue, b *ops.Batch) {
	m.weight(w)
	spec := w.Spec()
	T, N, K := float64(b.T), float64(spec.Rows()), float64(spec.Cols)
	bytes := float64(x.Bytes()+y.Bytes()) + 2*N*K
	if !e.Residual.Nil() {
		bytes += float64(y.Bytes())
	}
	m.note("Linear", 2*T*N*(K+widthOf(l)), bytes, m.busy(b.T, spec.Rows(), spec.Cols, false), 1)
}

// Attention is two products of every pair.
func (m *Meter) Attention(o, _, _, qkv ops.Tensor, h ops.Heads, _ *ops.LoRA, b *ops.Batch) {
	m.note("Attention", 4*pairs(b)*float64(h.H*h.D), float64(o.Bytes()+qkv.Bytes()), 1, m.Measured.attention(float64(b.T), false))
}

// SwiGLU reads gate and up and writes act.
func (m *Meter) SwiGLU(act, _, gateup ops.Tensor, _ *ops.LoRA, _ *ops.Batch) {
	m.note("SwiGLU", 0, float64(act.Bytes()+gateup.Bytes()), 1, 1)
}

// LinearBack is a product.
func (m *Meter) LinearBack(dx, dy ops.Tensor, w ops.Weight) {
	m.weight(w)
	spec := w.Spec()
	T, N, K := float64(dy.Dim(0)), float64(spec.Rows()), float64(spec.Cols)
	m.note("LinearBack", 2*T*N*K, float64(dx.Bytes()+dy.Bytes())+2*N*K, m.busy(dy.Dim(0), spec.Cols, spec.Rows(), true), 1)
}

// RMSNormBack reads x, dxn and dres and writes dx.
func (m *Meter) RMSNormBack(dx, _, _, dxn, _, _, x, _, _ ops.Tensor, in, out *ops.LoRA, b *ops.Batch) {
	T, C := float64(b.T), float64(x.Cols())
	m.note("RMSNormBack", 2*T*C*(widthOf(in)+widthOf(out)), float64(2*dx.Bytes()+dxn.Bytes()+x.Bytes()), 1, 1)
}

// AttentionBack is five products of every pair.
func (m *Meter) AttentionBack(dqkv, _, do, _, o, _, qkv ops.Tensor, h ops.Heads, _ *ops.Rope, _, _ *ops.LoRA, b *ops.Batch) {
	m.note("AttentionBack", 10*pairs(b)*float64(h.H*h.D), float64(dqkv.Bytes()+do.Bytes()+o.Bytes()+qkv.Bytes()), 1, m.Measured.attention(float64(b.T), true))
}

// SwiGLUBack reads gate, up and dact and writes dgate and dup.
func (m *Meter) SwiGLUBack(gateup, _, dact, _, _ ops.Tensor, down, gu *ops.LoRA, b *ops.Batch) {
	T, F := float64(b.T), float64(dact.Cols())
	m.note("SwiGLUBack", 4*T*F*(widthOf(down)+widthOf(gu)), float64(2*gateup.Bytes()+dact.Bytes()), 1, 1)
}

// LoRAGrad reads the wide operand of each job.
func (m *Meter) LoRAGrad(jobs []ops.GradJob, b *ops.Batch) {
	flops, bytes := 0.0, 0.0
	for _, j := range jobs {
		flops += 2 * float64(b.T) * float64(j.Wide.Cols()) * float64(j.LoRA.Width)
		bytes += float64(j.Wide.Bytes())
	}
	m.note("LoRAGrad", flops, bytes, 1, 1)
}

// HeadLoss is two products over the label rows, one without a gradient.
func (m *Meter) HeadLoss(dxn, _, _, xn ops.Tensor, head ops.Weight, b *ops.Batch) {
	products := 1.0
	if !dxn.Nil() {
		products = 2
	}
	V, C, N := float64(head.Spec().Rows()), float64(xn.Cols()), float64(b.N)
	m.note("HeadLoss", products*2*N*V*C, products*2*V*C+6*N*V, 1, 1)
}

// GradNorm reads the gradients; AdamW reads and writes parameters and moments.
func (m *Meter) GradNorm(_, grads ops.Tensor) { m.note("GradNorm", 0, float64(grads.Bytes()), 1, 1) }
func (m *Meter) AdamW(params, _, _, _, _ ops.Tensor, _ ops.AdamWArgs) {
	m.note("AdamW", 0, 7*float64(params.Bytes()), 1, 1)
}

// What a training step does not call.

func (m *Meter) Logits(_, _ ops.Tensor, _ ops.Weight, _ *ops.Batch)     {}
func (m *Meter) KL(_, _, _ ops.Tensor, _ ops.Weight, _ *ops.Batch)      {}
func (m *Meter) StoreKV(ops.KVCache, ops.Tensor, ops.Heads, *ops.Batch) {}
func (m *Meter) Sample(_, _ ops.Tensor, _ ops.SampleArgs)               {}
func (m *Meter) QuantNF4(ops.Quantized, ops.Tensor)                     {}
func (m *Meter) DequantNF4(ops.Tensor, ops.Quantized)                   {}
func (m *Meter) DecodeAttention(_, _, _ ops.Tensor, _ ops.KVCache, _ ops.Heads, _ *ops.LoRA, _ *ops.Batch) {
}
