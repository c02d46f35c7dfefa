package ops

// Backend runs the model's steps. Its methods are called from one goroutine, in order; they
// may return before the work is done. The first error stays until Sync returns it, and the
// calls between do nothing.
type Backend interface {
	// Name is "cpu" or "cuda"; Describe adds the processor or card and what is used of it.
	Name() string
	Describe() string

	Memory
	Layers
	Training
	Inference

	// Sync waits for all work and returns the first error since the last Sync.
	Sync() error
	Close() error
}

// Sizes are what a plan of a run's memory is made from. A backend tells its own; those of a card are known without one.
type Sizes interface {
	// Activation is the storage type of activations for weights of type w.
	Activation(w DType) DType
	// WeightBytes is what NewWeight will use.
	WeightBytes(spec WeightSpec) int64
	// LoRAPackBytes is the size of LoRA.Pack.
	LoRAPackBytes(l *LoRA) int64
	// WorkspaceBytes is the scratch memory the ops need for shapes up to d.
	WorkspaceBytes(d Dims) int64
}

// Memory makes arenas and moves data in and out of them.
type Memory interface {
	Sizes

	// NewArena makes the one block of memory a run lives in. NewHostArena makes a block in the host's memory, for tensors
	// that ops read or write where they lie, at the speed of the bus, or that Transfer brings to and fro.
	NewArena(bytes int64) (Buffer, error)
	NewHostArena(bytes int64) (Buffer, error)

	// NewWeight reads every source once, in order.
	NewWeight(mem Tensor, spec WeightSpec, parts []Source, bias []float32) (Weight, error)
	// PackLoRA fills LoRA.Pack of all from A and B, and is called after every change of the parameters.
	PackLoRA(all []*LoRA)
	// SetWorkspace gives the ops and NewWeight their scratch memory, WorkspaceBytes of d.
	SetWorkspace(t Tensor, d Dims)

	// Transfer copies src to dst, one of them in a host arena, behind the ops so far and beside those that follow: until
	// AwaitTransfers they must neither write src nor touch dst.
	Transfer(dst, src Tensor)
	// AwaitTransfers puts what follows behind all transfers so far.
	AwaitTransfers()

	LoadBatch(b *Batch, h HostBatch) error
	// Write copies src into t, Read t into dst: raw bytes in t's DType. Read waits for the work
	// before it.
	Write(t Tensor, src []byte) error
	Read(dst []byte, t Tensor) error
	Zero(t Tensor)
}

// Dims bounds the shapes of a run, for WorkspaceBytes.
type Dims struct {
	T, S, N   int
	C, F, V   int
	H, Hk, D  int
	Width     int // the largest of a LoRA
	Rank      int // the largest of a module
	Context   int // positions a sequence of the KV cache, 0 without one
	Training  bool
	Quantized bool // weights are NF4
	Tile      int  // tokens of the feed-forward at a time; 0: all
}

// Rope is the table of rotary angles (Su et al., RoFormer, 2021): cos and sin (positions, D/2)
// float32. Row p rotates the pairs (i, i+D/2) of a head at position p.
type Rope struct {
	Cos, Sin Tensor
}

// Epilogue is what Linear adds while the output tile is still in registers.
type Epilogue struct {
	Residual Tensor // added to y before the one rounding; may be y itself
	Rope     *Rope  // rotate q and k of a QKV weight, after bias and LoRA
}

// Layers is the forward of a decoder layer. What an op derives from its own output (u, du, hits of a
// threshold) it derives from the values as stored, after rounding.
type Layers interface {
	// Embed writes x[t] = table[ids[t]] + noise, the latter where the batch's Noise is not 0: see NoiseUnit.
	Embed(x Tensor, table Weight, b *Batch)

	// RMSNorm (Zhang and Sennrich, 2019) writes rho[t] = 1/sqrt(mean(x[t]²) + eps) and
	// xn = x·rho·w, and u of the modules that read xn. u is Nil and l nil where none does, or in the
	// backward, where xn is made again and u was kept. rho may be Nil.
	RMSNorm(xn, rho, u, x, w Tensor, eps float32, l *LoRA, b *Batch)

	// Linear writes y = x·Wᵀ + bias + u·Bᵀ + residual, rope last. l nil: no LoRA.
	Linear(y, x Tensor, w Weight, u Tensor, l *LoRA, e Epilogue, b *Batch)

	// Attention is causal softmax(q·kᵀ/√D)·v within each segment, query head h reading key/value
	// head h/(H/Hk). qkv is the output of a QKV Linear (T,(H+2Hk)·D), o (T,H·D), lse (H,T) float32 the
	// log-sum-exp of the scores; lse may be Nil in inference. u is that of o's reader, l its LoRA.
	Attention(o, lse, u, qkv Tensor, h Heads, l *LoRA, b *Batch)

	// SwiGLU (Shazeer, 2020) writes act = silu(gate)·up (T,F) of a GateUp Linear's output
	// (T,2F), and u of act's reader.
	SwiGLU(act, u, gateup Tensor, l *LoRA, b *Batch)
}

// Heads is the shape of attention.
type Heads struct {
	H, Hk, D int
}

// Training is the backward of a layer, the loss, and the optimizer.
type Training interface {
	// LinearBack writes dx = dy·W: plain, without the LoRA term and never dW.
	LinearBack(dx, dy Tensor, w Weight)

	// RMSNormBack writes dx = dres + norm'(dxn + Σ mask∘(du·A)), the sum over the modules of in that
	// read xn, and duOut = s·dx·B of the module (out) whose output was added to the residual stream
	// just before. u is what the forward made of in: with it the mean in norm' needs no product with A.
	// dres is Nil at the top of the model and may be dx; in, du, u and out, duOut may be absent.
	RMSNormBack(dx, duOut, dres, dxn, du, u, x, rho, w Tensor, in, out *LoRA, b *Batch)

	// AttentionBack writes dqkv, the gradient of q, k, v before rope, and duQKV = s·dqkv·B, from
	// do + mask∘(duO·A). do is overwritten with that sum.
	AttentionBack(dqkv, duQKV, do, duO, o, lse, qkv Tensor, h Heads, rope *Rope, lo, lqkv *LoRA, b *Batch)

	// SwiGLUBack rebuilds act from gateup and writes, in one pass over dact + mask∘(duDown·A):
	// dgate, dup in place of gateup; duGU = s·dgateup·B; and adds dA of down and dB of gate and up
	// to their gradients (uGU is what the forward kept).
	SwiGLUBack(gateup, duGU, dact, duDown, uGU Tensor, down, gu *LoRA, b *Batch)

	// LoRAGrad adds to dA or dB of the modules of each job. Token sums run over fixed blocks of
	// GradBlock tokens, added in index order, so that every memory mode gives the same bits.
	LoRAGrad(jobs []GradJob, b *Batch)

	// HeadLoss computes, for the N label rows alone and by chunks, logits = xn·Wᵀ, p = softmax(logits) and
	// nll[i] = -Σ q·log p, q being 1 at the target; with label smoothing ε (the batch's Smoothing; Szegedy et
	// al., 2016) 1-ε there and ε/V more at each of the V ids, the target too. hit[i] = 1 where the target has the
	// largest logit (the lowest id of equals), and dxn (T,C) = LossScale·(p - q)·W, zero on other rows. dxn is
	// Nil in evaluation.
	HeadLoss(dxn, nll, hit, xn Tensor, head Weight, b *Batch)

	// GradNorm writes norm[0] = the L2 norm of grads and norm[1] = how many are not finite.
	GradNorm(norm, grads Tensor)
	// AdamW (Loshchilov and Hutter, 2019) updates params, m, v in place, gradients scaled by
	// min(1, MaxNorm/(norm+1e-6)). Where norm[0] is not finite nothing at all is written.
	AdamW(params, m, v, grads, norm Tensor, a AdamWArgs)
}

// GradBlock is the number of tokens summed in one piece in a gradient of A or B.
const GradBlock = 256

// GradJob asks for the gradients of one side of a LoRA.
type GradJob struct {
	LoRA *LoRA
	Side Side
	Wide Tensor // SideA: x (T,in), the module's input before dropout; SideB: dy (T,out) of the fused weight
	Low  Tensor // SideA: du (T,Width); SideB: u (T,Width)
	Norm Norm   // SideA: where it is there, Wide is the norm's x, and xn is made of it again
}

// Norm is what RMSNorm made xn = x·rho·w with; the zero Norm is none.
type Norm struct {
	Rho, W Tensor // (T), (C)
}

// Side names a factor of a LoRA pair.
type Side uint8

const (
	SideA Side = iota // dA += duᵀ·dropout(x)
	SideB             // dB += dyᵀ·u
)

// AdamWArgs are the constants of one optimizer step.
type AdamWArgs struct {
	Step         int // 1-based, for bias correction
	Beta1, Beta2 float64
	Eps          float64
	MaxNorm      float64   // 0: no clipping
	Groups       []LRGroup // cover the flat parameters in order
}

// LRGroup is a run of the flat parameters with a learning rate of its own.
type LRGroup struct {
	Len         int
	LR          float64
	WeightDecay float64
}

// Inference is what evaluation and generation need beyond the forward.
type Inference interface {
	// Logits writes logits (N,V) float32 of the batch's Rows of xn.
	Logits(logits, xn Tensor, head Weight, b *Batch)
	// KL writes kl[i] = KL(softmax(base) ‖ softmax(tuned)) in nats at each label row.
	KL(kl, base, tuned Tensor, head Weight, b *Batch)

	// StoreKV copies k and v (after rope) of every token to its place (Sample, Pos) in the cache.
	StoreKV(c KVCache, qkv Tensor, h Heads, b *Batch)
	// DecodeAttention attends from every token, at (Sample, Pos), to its sequence's cached
	// positions 0..Pos, and writes o and u as Attention does. The token itself must be stored.
	DecodeAttention(o, u, qkv Tensor, c KVCache, h Heads, l *LoRA, b *Batch)

	// Sample writes next (N) int32, one id for each row of logits, by the stages of transformers:
	// repetition penalty, temperature, top-k, top-p, then the draw of SampleUniform. Temperature 0
	// takes the largest logit, the lowest id of equals. The id drawn is the first, in ascending order, at
	// which the sum of probabilities exceeds the uniform number; top-k keeps all that equal the k-th, and
	// of equals top-p drops the lower ids first. Where the largest logit is not finite, or one is NaN, the id is -1.
	Sample(next, logits Tensor, a SampleArgs)

	// QuantNF4 and DequantNF4 convert to and from bitsandbytes' NF4 (Dettmers et al., QLoRA, 2023).
	QuantNF4(q Quantized, src Tensor)
	DequantNF4(dst Tensor, q Quantized)
}

// KVCache is the keys and values of one layer: (sequences, positions, Hk·D).
type KVCache struct {
	K, V Tensor
}

// SampleArgs are the settings of a draw. Zero values switch a stage off.
type SampleArgs struct {
	Temperature       float64
	TopK              int
	TopP              float64
	RepetitionPenalty float64
	Context           [][]int32 // per row: all ids so far, prompt included, for the repetition penalty
	Limit             int       // ids at or above it are never drawn (padding rows of the vocabulary); 0: none
	Seed, Step        uint32
	Sequence          []uint32 // per row: its number in SampleUniform
}

// Penalised says whether the repetition penalty is on.
func (a SampleArgs) Penalised() bool { return a.RepetitionPenalty != 0 && a.RepetitionPenalty != 1 }

// Quantized is a tensor quantised in blocks of 64 with double quantisation: two codes a byte (the even
// element in the high nibble), absmax in 8 bits through Nested blocks of 256, all as bitsandbytes stores it.
// Without double quantisation Absmax is float32 and Nested and Offset are Nil.
type Quantized struct {
	Codes  Tensor // uint8 (ceil(n/2))
	Absmax Tensor // uint8, or float32 (ceil(n/64))
	Nested Tensor // float32 (ceil(n/64/256))
	Offset Tensor // float32 (1)
}
