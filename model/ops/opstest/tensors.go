package opstest

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"math/rand/v2"

	"qlora/internal/bfloat16"
	"qlora/model/ops"
)

// round is v as stored in d, to the nearest, ties to even; of NF4 as it is quantised from.
func round(v float64, d ops.DType) float64 {
	switch d {
	case ops.F32:
		return float64(float32(v))
	case ops.BF16, ops.NF4:
		return float64(bfloat16.Round(float32(v)))
	}
	return v
}

// encode appends values as d stores them; perm, where given, says which of the model's columns
// stands at each column of the backend.
func encode(values []float64, d ops.DType, perm []int) []byte {
	b := make([]byte, 0, int64(len(values))*d.Size())
	for i := range values {
		v := values[i]
		if perm != nil {
			n := len(perm)
			v = values[i/n*n+perm[i%n]]
		}
		switch d {
		case ops.F64:
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		case ops.F32:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
		case ops.BF16:
			b = binary.LittleEndian.AppendUint16(b, bfloat16.Bits(float32(v)))
		case ops.I32:
			b = binary.LittleEndian.AppendUint32(b, uint32(int32(v)))
		case ops.U8:
			b = append(b, byte(v))
		}
	}
	return b
}

// decode is the inverse of encode.
func decode(b []byte, d ops.DType, perm []int) []float64 {
	size := int(d.Size())
	values := make([]float64, len(b)/size)
	for i := range values {
		p := b[i*size:]
		var v float64
		switch d {
		case ops.F64:
			v = math.Float64frombits(binary.LittleEndian.Uint64(p))
		case ops.F32:
			v = float64(math.Float32frombits(binary.LittleEndian.Uint32(p)))
		case ops.BF16:
			v = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(p)) << 16))
		case ops.I32:
			v = float64(int32(binary.LittleEndian.Uint32(p)))
		case ops.U8:
			v = float64(p[0])
		}
		at := i
		if perm != nil {
			n := len(perm)
			at = i/n*n + perm[i%n]
		}
		values[at] = v
	}
	return values
}

// gen makes element i of a tensor. It is called for i = 0, 1, 2 ...
type gen func(i int) float64

// normal draws from a bell of the given standard deviation (four uniform numbers of 16 bits, added),
// the same values for the same name.
func normal(name string, deviation float64) gen {
	r := rng(name)
	scale := deviation * math.Sqrt(3) / 0x1p16
	return func(int) float64 {
		w := r.Uint64()
		sum := w&0xffff + w>>16&0xffff + w>>32&0xffff + w>>48
		return scale * (float64(sum) - 2*0xffff)
	}
}

func rng(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(h.Sum64(), 20240919))
}

func constant(v float64) gen { return func(int) float64 { return v } }

func values(v []float64) gen { return func(i int) float64 { return v[i] } }

// take makes n values, rounded to d.
func take(g gen, n int, d ops.DType) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = round(g(i), d)
	}
	return v
}

// batch lays out S segments over T tokens, of lengths as uneven as their numbers allow. labels is how
// many tokens predict: that many, spread over the row.
func batch(T, S, labels, V int) ops.HostBatch {
	h := ops.HostBatch{Seed: 42, Step: 3, LossScale: 1 / float32(max(labels, 1)), Rows: []int32{}, Targets: []int32{}}
	for s := range S + 1 {
		// quadratic: the first segment is the shortest
		h.SegStart = append(h.SegStart, int32(max(s, T*s*(s+1)/(S*(S+1)))))
	}
	h.SegStart[S] = int32(T)
	r := rng("batch")
	for s := range S {
		for p := range int(h.SegStart[s+1] - h.SegStart[s]) {
			h.IDs = append(h.IDs, int32(r.IntN(V)))
			h.Pos = append(h.Pos, int32(p))
			h.Sample = append(h.Sample, int32(s))
		}
	}
	for i := range labels {
		h.Rows = append(h.Rows, int32(i*T/labels))
		h.Targets = append(h.Targets, int32(r.IntN(V)))
	}
	return h
}

// segment is segment s of h alone, as it would be packed by itself.
func segment(h ops.HostBatch, s int) ops.HostBatch {
	lo, hi := h.SegStart[s], h.SegStart[s+1]
	one := h
	one.IDs, one.Pos, one.Sample, one.SegStart = h.IDs[lo:hi], h.Pos[lo:hi], h.Sample[lo:hi], []int32{0, hi - lo}
	one.Rows, one.Targets = []int32{}, []int32{}
	for i, r := range h.Rows {
		if r >= lo && r < hi {
			one.Rows = append(one.Rows, r-lo)
			one.Targets = append(one.Targets, h.Targets[i])
		}
	}
	return one
}
