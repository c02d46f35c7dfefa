package opstest

import (
	"math"

	"qlora/model/ops"
)

// The formulas of a few ops in the plainest code, in float64 with every intermediate passed through
// rnd: the identity gives the reference, rounding to bfloat16 the plain computation that
// FlashAttention's rule compares with.
type rounding func(float64) float64

func precise(v float64) float64 { return v }

func rounded(v float64) float64 { return round(v, ops.BF16) }

// mask is the factor dropout puts on column c of token t: 0, or 1 / the chance to be kept.
func mask(h *ops.HostBatch, m *ops.Module, t, c int) float64 {
	threshold := ops.DropThreshold(m.Drop)
	lanes := ops.DropLanes(h.Seed, h.Step, uint32(c/8), uint32(h.Pos[t]), uint32(h.Sample[t]), m.Stream)
	if uint32(lanes[c%8]) < threshold {
		return 0
	}
	return 65536 / float64(65536-threshold)
}

// lowRank is u = s·dropout(x)·Aᵀ (T,Rank), x (T,in); a holds A of each module.
func lowRank(h *ops.HostBatch, l *ops.LoRA, a [][]float64, x []float64, rnd rounding) []float64 {
	in, T := l.Weight.Cols, len(h.IDs)
	u := make([]float64, T*l.Width)
	for i := range l.Modules {
		m := &l.Modules[i]
		kept := make([]float64, in)
		for t := range T {
			for c := range kept {
				kept[c] = mask(h, m, t, c) * x[t*in+c]
			}
			for r := range m.Rank {
				u[t*l.Width+l.Col(i)+r] = rnd(float64(m.Scale) * dot(kept, a[i][r*in:]))
			}
		}
	}
	return u
}

// lowRankBack is x's gradient through u: Σ mask∘(du·A) (T,in).
func lowRankBack(h *ops.HostBatch, l *ops.LoRA, a [][]float64, du []float64) []float64 {
	in, T := l.Weight.Cols, len(h.IDs)
	dx := make([]float64, T*in)
	for i := range l.Modules {
		m := &l.Modules[i]
		for t := range T {
			for c := range in {
				sum := 0.0
				for r := range m.Rank {
					sum += du[t*l.Width+l.Col(i)+r] * a[i][r*in+c]
				}
				dx[t*in+c] += mask(h, m, t, c) * sum
			}
		}
	}
	return dx
}

// head views the row of token t in q (part 0), k (1) or v (2) of qkv (T,(H+2Hk)·D).
func headRow(qkv []float64, h ops.Heads, part, head, t int) []float64 {
	at := t*(h.H+2*h.Hk)*h.D + head*h.D
	if part > 0 {
		at += (h.H + (part-1)*h.Hk) * h.D
	}
	return qkv[at : at+h.D]
}

// attentionForward is o (T,H·D) and lse (H,T) of causal attention in each segment.
func attentionForward(qkv []float64, h ops.Heads, segStart []int32, rnd rounding) (o, lse []float64) {
	T := int(segStart[len(segStart)-1])
	o, lse = make([]float64, T*h.H*h.D), make([]float64, h.H*T)
	for head := range h.H {
		eachQuery(segStart, func(first, t int) {
			p, l := probabilities(qkv, h, head, first, t, rnd)
			lse[head*T+t] = l
			row := o[(t*h.H+head)*h.D:][:h.D]
			for j, pj := range p {
				for d, v := range headRow(qkv, h, 2, head*h.Hk/h.H, first+j) {
					row[d] += pj * v
				}
			}
			for d := range row {
				row[d] = rnd(row[d])
			}
		})
	}
	return o, lse
}

// probabilities are softmax of the scores of query t over keys first..t, and their log-sum-exp.
func probabilities(qkv []float64, h ops.Heads, head, first, t int, rnd rounding) ([]float64, float64) {
	s := make([]float64, t-first+1)
	most, sum := math.Inf(-1), 0.0
	for j := range s {
		s[j] = rnd(dot(headRow(qkv, h, 0, head, t), headRow(qkv, h, 1, head*h.Hk/h.H, first+j)) / math.Sqrt(float64(h.D)))
		most = max(most, s[j])
	}
	for _, v := range s {
		sum += math.Exp(v - most)
	}
	lse := most + math.Log(sum)
	for j, v := range s {
		s[j] = rnd(math.Exp(v - lse))
	}
	return s, lse
}

// attentionBackward is dqkv after rope, from do and o.
func attentionBackward(qkv, o, do []float64, h ops.Heads, segStart []int32, rnd rounding) []float64 {
	dqkv := make([]float64, len(qkv))
	scale := 1 / math.Sqrt(float64(h.D))
	for head := range h.H {
		kv := head * h.Hk / h.H
		eachQuery(segStart, func(first, t int) {
			p, _ := probabilities(qkv, h, head, first, t, rnd)
			g := do[(t*h.H+head)*h.D:][:h.D]
			delta := dot(g, o[(t*h.H+head)*h.D:][:h.D])
			dq := headRow(dqkv, h, 0, head, t)
			for j, pj := range p {
				ds := rnd(pj*(rnd(dot(g, headRow(qkv, h, 2, kv, first+j)))-delta)) * scale
				q, k := headRow(qkv, h, 0, head, t), headRow(qkv, h, 1, kv, first+j)
				dk, dv := headRow(dqkv, h, 1, kv, first+j), headRow(dqkv, h, 2, kv, first+j)
				for d := range h.D {
					dq[d] += ds * k[d]
					dk[d] += ds * q[d]
					dv[d] += pj * g[d]
				}
			}
		})
	}
	for i, v := range dqkv {
		dqkv[i] = rnd(v)
	}
	return dqkv
}

func eachQuery(segStart []int32, f func(first, t int)) {
	for s := range len(segStart) - 1 {
		for t := segStart[s]; t < segStart[s+1]; t++ {
			f(int(segStart[s]), int(t))
		}
	}
}

// rotate turns the pairs (i, i+D/2) of q and k by the angles of each token's position; back turns
// them the other way.
func rotate(qkv, cos, sin []float64, h ops.Heads, pos []int32, back bool) {
	half := h.D / 2
	for t, p := range pos {
		for head := range h.H + h.Hk {
			part, n := 0, head
			if head >= h.H {
				part, n = 1, head-h.H
			}
			row := headRow(qkv, h, part, n, t)
			for i := range half {
				c, s := cos[int(p)*half+i], sin[int(p)*half+i]
				if back {
					s = -s
				}
				row[i], row[i+half] = row[i]*c-row[i+half]*s, row[i]*s+row[i+half]*c
			}
		}
	}
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += v * b[i]
	}
	return sum
}

// upRankBack is du = s·dy·B (T,Rank); b holds B of each module, dy is (T,out) of the fused weight.
func upRankBack(l *ops.LoRA, b [][]float64, dy []float64, rnd rounding) []float64 {
	out := l.Weight.Rows()
	T := len(dy) / out
	du := make([]float64, T*l.Width)
	for i := range l.Modules {
		m := &l.Modules[i]
		row, rows := l.Row(i, l.Weight.Parts), l.Weight.Parts[m.Part]
		for t := range T {
			for r := range m.Rank {
				sum := 0.0
				for j := range rows {
					sum += dy[t*out+row+j] * b[i][j*m.Rank+r]
				}
				du[t*l.Width+l.Col(i)+r] = rnd(float64(m.Scale) * sum)
			}
		}
	}
	return du
}
