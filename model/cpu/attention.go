package cpu

import (
	"math"

	"qlora/model/ops"
)

// queryBlock is the queries whose scores are held at once; blocks are cut from the start of a segment, so that a token's
// result does not depend on where its segment lies.
const queryBlock = 128

// qkv is rows of q, k, v of a packed batch.
type qkv[T Float] struct {
	ops.Heads
	rows  []T
	ld    int
	scale T // 1/√D
}

func newQKV[T Float](rows []T, h ops.Heads) qkv[T] {
	return qkv[T]{h, rows, (h.H + 2*h.Hk) * h.D, T(1 / math.Sqrt(float64(h.D)))}
}

// q, k and v are the columns of a head, from token t on; k and v those that query head h reads.
func (a qkv[T]) q(t, h int) []T { return a.rows[t*a.ld+h*a.D:] }
func (a qkv[T]) k(t, h int) []T { return a.rows[t*a.ld+(a.H+h/(a.H/a.Hk))*a.D:] }
func (a qkv[T]) v(t, h int) []T { return a.rows[t*a.ld+(a.H+a.Hk+h/(a.H/a.Hk))*a.D:] }

// queries is a piece of attention's work: queries q0 to q1 of a segment that starts at token lo. They see the keys
// lo to q1, the last of them under the causal triangle.
type queries struct{ lo, q0, q1 int }

func (q queries) n() int    { return q.q1 - q.q0 }
func (q queries) keys() int { return q.q1 - q.lo }

// blocks cuts segment s into queries.
func blocks(h *ops.HostBatch, s int) []queries {
	lo, hi := int(h.SegStart[s]), int(h.SegStart[s+1])
	var cut []queries
	for q0 := lo; q0 < hi; q0 += queryBlock {
		cut = append(cut, queries{lo, q0, min(q0+queryBlock, hi)})
	}
	return cut
}

// Attention is causal softmax(q·kᵀ/√D)·v within each segment.
func (b *Backend[T]) Attention(o, lse, u, qkv ops.Tensor, h ops.Heads, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckAttention(o, lse, u, qkv, h, l, batch)) {
		return
	}
	defer b.finish()
	in, to := newQKV(b.in(qkv), h), b.out(o)
	sums := b.scratch.take(h.H * batch.T)
	if !lse.Nil() {
		sums = b.out(lse)
	}
	var cut []queries
	for s := range batch.S {
		cut = append(cut, blocks(&batch.Host, s)...)
	}
	b.parallel(len(cut)*h.H, func(task int, s *scratch[T]) {
		q, head := cut[len(cut)-1-task/h.H], task%h.H
		in.attend(to[q.q0*h.H*h.D+head*h.D:], sums[head*batch.T+q.q0:], q, head, s)
	})
	round(to, o.DType)
	if l != nil {
		b.loraDown(b.out(u), to, l, whole(batch))
	}
}

// attend writes o and lse of the queries of one head.
func (a qkv[T]) attend(o, lse []T, q queries, head int, s *scratch[T]) {
	n, keys, D := q.n(), q.keys(), a.D
	p := s.take(n * keys)
	mulT(p, keys, a.q(q.q0, head), a.ld, a.k(q.lo, head), a.ld, n, keys, D, false)
	inverse := s.take(n)
	for i := range n {
		row := p[i*keys : (i+1)*keys]
		seen := row[:q.q0-q.lo+i+1]
		scaleRow(seen, a.scale)
		top := largest(seen)
		sum := expSum(seen, top)
		clear(row[len(seen):])
		lse[i], inverse[i] = top+T(math.Log(float64(sum))), 1/sum
	}
	mul(o, a.H*D, p, keys, a.v(q.lo, head), a.ld, n, D, keys, false)
	for i, r := range inverse {
		scaleRow(o[i*a.H*D:][:D], r)
	}
}

// AttentionBack writes dqkv and duQKV from do + mask∘(duO·A), and leaves that sum in do.
func (b *Backend[T]) AttentionBack(dqkv, duQKV, do, duO, o, lse, qkv ops.Tensor, h ops.Heads, r *ops.Rope, lo, lqkv *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckAttentionBack(dqkv, duQKV, do, duO, o, lse, qkv, h, r, lo, lqkv, batch)) {
		return
	}
	defer b.finish()
	width := h.H * h.D
	g := attentionGrad[T]{qkv: newQKV(b.in(qkv), h), T: batch.T, do: b.inout(do), lse: b.in(lse), dqkv: b.out(dqkv)}
	if lo != nil {
		b.loraBack(g.do, b.in(duO), lo, whole(batch))
		round(g.do, do.DType)
	}
	g.delta, g.dk, g.dv = b.scratch.take(h.H*batch.T), b.scratch.take(batch.T*width), b.scratch.take(batch.T*width)
	out := b.in(o)
	b.rows(batch.T, func(t int) {
		for head := range h.H {
			at := t*width + head*h.D
			g.delta[head*batch.T+t] = dot(g.do[at:at+h.D], out[at:at+h.D])
		}
	})
	b.parallel(batch.S*h.H, func(task int, s *scratch[T]) { g.segment(blocks(&batch.Host, task/h.H), task%h.H, s) })
	parts := []int{width, h.Hk * h.D, h.Hk * h.D}
	var angles rope[T]
	if r != nil {
		angles = b.rope(r, ops.WeightSpec{Parts: parts, HeadDim: h.D})
	}
	b.rows(batch.T, func(t int) {
		row := g.dqkv[t*g.ld : (t+1)*g.ld]
		g.sumGroups(row, t)
		if r != nil {
			angles.rotate(row, int(batch.Host.Pos[t]), -1)
		}
		round(row, dqkv.DType)
	})
	if lqkv != nil {
		b.loraUp(b.out(duQKV), g.dqkv, lqkv, parts, whole(batch))
	}
}

// attentionGrad is the backward of attention. dk and dv are (T,H·D), a query head's each: every head is a task of its
// own, and the heads that share a key are summed afterwards, in order.
type attentionGrad[T Float] struct {
	qkv[T]
	T          int
	do         []T // (T,H·D)
	lse, delta []T // (H,T); delta = rowsum(do∘o)
	dqkv       []T // (T,(H+2Hk)·D)
	dk, dv     []T
}

// segment runs one head over the queries of one segment, p made again from lse:
//
//	dv += pᵀ·do    ds = p∘(do·vᵀ - delta)/√D    dq = ds·k    dk += dsᵀ·q
func (g *attentionGrad[T]) segment(cut []queries, head int, s *scratch[T]) {
	D, width := g.D, g.H*g.D
	for _, q := range cut {
		s.free()
		n, keys := q.n(), q.keys()
		for t := q.q0; t < q.q1; t++ { // keys that no query before these has seen
			clear(g.dk[t*width+head*D:][:D])
			clear(g.dv[t*width+head*D:][:D])
		}
		p, ds := s.take(n*keys), s.take(n*keys)
		do, dk, dv := g.do[q.q0*width+head*D:], g.dk[q.lo*width+head*D:], g.dv[q.lo*width+head*D:]
		mulT(p, keys, g.q(q.q0, head), g.ld, g.k(q.lo, head), g.ld, n, keys, D, false)
		mulT(ds, keys, do, width, g.v(q.lo, head), g.ld, n, keys, D, false)
		for i := range n {
			seen, at := q.q0-q.lo+i+1, head*g.T+q.q0+i
			prow, drow := p[i*keys:(i+1)*keys], ds[i*keys:(i+1)*keys]
			scaleRow(prow[:seen], g.scale)
			expSum(prow[:seen], g.lse[at])
			for j, x := range prow[:seen] {
				drow[j] = x * (drow[j] - g.delta[at]) * g.scale
			}
			clear(prow[seen:])
			clear(drow[seen:])
		}
		tMul(dv, width, p, keys, do, width, keys, D, n, true)
		mul(g.dqkv[q.q0*g.ld+head*D:], g.ld, ds, keys, g.k(q.lo, head), g.ld, n, D, keys, false)
		tMul(dk, width, ds, keys, g.q(q.q0, head), g.ld, keys, D, n, true)
	}
}

// sumGroups writes dk and dv of token t: sums over the query heads that read a key.
func (g *attentionGrad[T]) sumGroups(row []T, t int) {
	D, group := g.D, g.H/g.Hk
	for i, from := range [][]T{g.dk, g.dv} {
		for hk := range g.Hk {
			to := row[(g.H+i*g.Hk+hk)*D:][:D]
			clear(to)
			for h := hk * group; h < (hk+1)*group; h++ {
				addTo(to, from[(t*g.H+h)*D:][:D])
			}
		}
	}
}
