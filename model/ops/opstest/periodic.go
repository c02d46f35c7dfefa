package opstest

import (
	"bytes"
	"slices"

	"qlora/model/ops"
)

// A tensor of more than 2³¹ elements cannot be made, nor its result computed, value by value on a host. So such a case is laid
// out with rows that repeat after a period: what an op makes of a token must repeat with it, to the bit, and the first period
// is a case of ordinary size (huge.go).

// tokens is the plan's tokens, or the elements of a flat one: the dimension that makes its tensors large.
func (p *plan) tokens() int {
	if p.plain {
		return p.flat
	}
	return len(p.host.IDs)
}

// shape is the shape at the lengths the rig is laid out with.
func (r *rig) shape(of []int) []int {
	tokens, labels := r.plan.tokens(), len(r.plan.host.Rows)
	to := slices.Clone(of)
	for i, d := range of {
		switch {
		case r.plan.plain && r.as.flat > 0 && d == tokens:
			to[i] = r.as.flat
		case !r.plan.plain && d == tokens:
			to[i] = len(r.as.host.IDs)
		case !r.plan.plain && labels > 0 && d == labels:
			to[i] = len(r.as.host.Rows)
		}
	}
	return to
}

func (r *rig) dims(d ops.Dims) ops.Dims {
	if !r.plan.plain {
		d.T, d.S, d.N = len(r.as.host.IDs), len(r.as.host.SegStart)-1, max(len(r.as.host.Rows), 1)
	}
	return d
}

// repeats says along which axis a tensor repeats, -1 where it does not.
func (r *rig) repeats(t ops.Tensor) int {
	if r.as.period == 0 {
		return -1
	}
	if r.plan.plain {
		if len(t.Shape) == 1 && t.Shape[0] == r.plan.tokens() {
			return 0
		}
		return -1
	}
	return slices.Index(t.Shape[:min(len(t.Shape), 2)], len(r.as.host.IDs))
}

// distinct is how many values a tensor is filled from.
func (r *rig) distinct(s *slot) int {
	if axis := r.repeats(s.Tensor); axis >= 0 {
		return s.Len() / s.Shape[axis] * r.as.period
	}
	return s.Len()
}

// fill writes the values of a slot, again and again where it repeats.
func (r *rig) fill(s *slot) error {
	block := encode(s.values, s.DType, s.perm)
	axis := r.repeats(s.Tensor)
	if axis < 0 {
		return r.b.Write(s.Tensor, block)
	}
	outer := 1 // rows that each repeat: (H,T)
	for _, d := range s.Shape[:axis] {
		outer *= d
	}
	for row := range outer {
		if err := r.fillRow(s, outer, row, block[row*len(block)/outer:(row+1)*len(block)/outer]); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) fillRow(s *slot, outer, row int, block []byte) error {
	n := int(s.Bytes()) / outer
	all := ops.Tensor{Name: s.Name, DType: ops.U8, Shape: []int{n}, Buf: s.Buf, Off: s.Off + int64(row)*int64(n)}
	many := bytes.Repeat(block, max(1, min(piece, n)/len(block)))
	for at := 0; at < n; at += len(many) {
		part := many[:min(len(many), n-at)]
		if err := r.b.Write(all.Slice(s.Name, at, len(part)), part); err != nil {
			return err
		}
	}
	return nil
}

// periodic is a batch of T tokens in segments of `period`, all alike. Labels are the first tokens of each period, so many that
// there are about `labels` in all; with fewer labels than periods, of some periods spread over the batch, the last among them.
func periodic(like ops.HostBatch, T, period, labels, V int) ops.HostBatch {
	h := ops.HostBatch{Seed: like.Seed, Step: like.Step, LossScale: like.LossScale, SegStart: []int32{0}, Rows: []int32{}, Targets: []int32{}}
	r := rng("periodic")
	ids, targets := make([]int32, period), make([]int32, period)
	for i := range ids {
		ids[i], targets[i] = int32(r.IntN(V)), int32(r.IntN(V))
	}
	periods := (T + period - 1) / period
	each := (labels + periods - 1) / periods
	if labels > 0 && each < 8 {
		each = min(8, period)
	}
	for p := range periods {
		n := min(period, T-p*period)
		for i := range n {
			h.IDs, h.Pos, h.Sample = append(h.IDs, ids[i]), append(h.Pos, int32(i)), append(h.Sample, 0)
		}
		h.SegStart = append(h.SegStart, int32(len(h.IDs)))
		if labels == 0 || n < period || !chosen(p, periods, max(labels/each, 1)) {
			continue
		}
		for i := range each {
			h.Rows, h.Targets = append(h.Rows, int32(p*period+i)), append(h.Targets, targets[i])
		}
	}
	return h
}

// chosen spreads about n of all: the first and the last among them.
func chosen(i, all, n int) bool { return i%max(all/n, 1) == 0 || i == all-1 }

// firstPeriod is the first segment of a periodic batch, with its labels.
func firstPeriod(h ops.HostBatch, period int) ops.HostBatch {
	if len(h.IDs) == 0 {
		return h
	}
	return segment(h, 0)
}
