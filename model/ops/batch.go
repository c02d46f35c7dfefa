package ops

import "fmt"

// HostBatch is one packed row of T tokens as the host builds it: S segments laid end to
// end, which do not attend to each other.
type HostBatch struct {
	IDs      []int32 // (T) token ids
	Pos      []int32 // (T) position within the sequence: rope angle, dropout counter
	Sample   []int32 // (T) training: the sample's index within the optimizer step; inference: the KV cache's sequence
	SegStart []int32 // (S+1) first token of each segment, then T
	Rows     []int32 // (N) token rows that predict a label, ascending
	Targets  []int32 // (N) the id each of them must predict

	Seed, Step uint32  // dropout stream, with Sample, Pos, module and column
	LossScale  float32 // gradient of the step's loss in one label's nll: 1 / label tokens of the whole step
	Noise      float32 // alpha of NEFTune on Embed's output; 0 for none, as outside training
	Smoothing  float32 // epsilon of HeadLoss, 0 to 1
}

// Batch is a HostBatch in a backend's memory, with room for MaxT, MaxS, MaxN. All of it lies
// in one block (header, then the six arrays), so that one copy brings a step to the card and
// launches depend on nothing but addresses.
type Batch struct {
	MaxT, MaxS, MaxN int
	T, S, N          int // of the batch loaded last

	Block    Tensor // int32 (BatchWords)
	IDs      Tensor // int32 (T)
	Pos      Tensor // int32 (T)
	Sample   Tensor // int32 (T)
	SegStart Tensor // int32 (S+1)
	Rows     Tensor // int32 (N)
	Targets  Tensor // int32 (N)

	Host HostBatch // the batch loaded last, for checks and for backends that live on the host
}

// BatchHeader words open a Block: T, S, N, Seed, Step, bits of LossScale, Noise and Smoothing.
const BatchHeader = 8

// BatchWords is the length of a Block with room for t tokens, s segments and n labels.
func BatchWords(t, s, n int) int { return BatchHeader + 3*t + (s + 1) + 2*n }

// NewBatch lays a batch out in block, an int32 tensor of BatchWords(maxT, maxS, maxN).
func NewBatch(block Tensor, maxT, maxS, maxN int) (*Batch, error) {
	if block.DType != I32 || block.Len() < BatchWords(maxT, maxS, maxN) {
		return nil, fmt.Errorf("ops: batch block %v is smaller than the %d int32 of T=%d S=%d N=%d", block, BatchWords(maxT, maxS, maxN), maxT, maxS, maxN)
	}
	return &Batch{MaxT: maxT, MaxS: maxS, MaxN: maxN, Block: block}, nil
}

// Load checks h, points the views of b at their places in the block, and returns the words to
// copy there. Backends call it from LoadBatch.
func (b *Batch) Load(h HostBatch) ([]int32, error) {
	t, s, n := len(h.IDs), len(h.SegStart)-1, len(h.Rows)
	switch {
	case t == 0 || t > b.MaxT || s < 1 || s > b.MaxS || n > b.MaxN:
		return nil, fmt.Errorf("ops: batch of T=%d S=%d N=%d does not fit the room of T=%d S=%d N=%d", t, s, n, b.MaxT, b.MaxS, b.MaxN)
	case len(h.Pos) != t || len(h.Sample) != t || len(h.Targets) != n:
		return nil, fmt.Errorf("ops: batch of T=%d N=%d has %d positions, %d samples and %d targets", t, n, len(h.Pos), len(h.Sample), len(h.Targets))
	case h.SegStart[0] != 0 || int(h.SegStart[s]) != t:
		return nil, fmt.Errorf("ops: segments run from %d to %d, not 0 to T=%d", h.SegStart[0], h.SegStart[s], t)
	}
	for i := range s {
		if h.SegStart[i+1] <= h.SegStart[i] {
			return nil, fmt.Errorf("ops: segment %d is empty (starts %d, %d)", i, h.SegStart[i], h.SegStart[i+1])
		}
	}
	for i, r := range h.Rows {
		if r < 0 || int(r) >= t || (i > 0 && r <= h.Rows[i-1]) {
			return nil, fmt.Errorf("ops: label row %d at index %d is outside 0..%d or not ascending", r, i, t-1)
		}
	}
	b.T, b.S, b.N, b.Host = t, s, n, h
	words := make([]int32, 0, BatchWords(t, s, n))
	words = append(words, int32(t), int32(s), int32(n), int32(h.Seed), int32(h.Step), float32bits(h.LossScale), float32bits(h.Noise), float32bits(h.Smoothing))
	view := func(dst *Tensor, name string, src []int32) {
		*dst = b.Block.Slice(name, len(words), len(src))
		words = append(words, src...)
	}
	view(&b.IDs, "ids", h.IDs)
	view(&b.Pos, "pos", h.Pos)
	view(&b.Sample, "sample", h.Sample)
	view(&b.SegStart, "seg_start", h.SegStart)
	view(&b.Rows, "rows", h.Rows)
	view(&b.Targets, "targets", h.Targets)
	return words, nil
}

// Tokens views tokens lo to hi of the loaded batch, for ops on each token alone: it has no segments and no label rows of
// its own. With lo a multiple of GradBlock, gradients added tile by tile have the bits of the whole.
func (b *Batch) Tokens(lo, hi int) *Batch {
	v := *b
	v.T, v.S, v.N = hi-lo, 1, 0
	v.IDs, v.Pos, v.Sample = b.IDs.Rows(lo, hi), b.Pos.Rows(lo, hi), b.Sample.Rows(lo, hi)
	v.Rows, v.Targets = b.Rows.Rows(0, 0), b.Targets.Rows(0, 0)
	h := &v.Host
	h.IDs, h.Pos, h.Sample = h.IDs[lo:hi], h.Pos[lo:hi], h.Sample[lo:hi]
	h.SegStart, h.Rows, h.Targets = []int32{0, int32(hi - lo)}, nil, nil
	return &v
}
