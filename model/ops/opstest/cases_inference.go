package opstest

import (
	"math"
	"strconv"

	"qlora/model/ops"
)

func count(n int) string { return strconv.Itoa(n) }

// decodeCases fill a cache by StoreKV, a prompt a sequence, and decode one token more of each: what
// lies in the cache is in the backend's own layout, so that only the output is compared.
func decodeCases() []Case {
	var all []Case
	add := func(m modelShape, prompt []int, positions int, a adapters) {
		n, T := len(prompt), 0
		for _, p := range prompt {
			T += p
		}
		h, narrow := m.h, m.h.H*m.h.D
		fill, next := decodeBatches(prompt)
		c := newCase("DecodeAttention", Small, m, fill, a.rank(), "sequences %d positions %d %v", n, positions, a)
		c.plan.dims.Context = positions
		if positions > 1000 {
			c.Size = Bench
		}
		if n*positions*m.h.Hk*m.h.D > 1<<31 {
			c.Size = Huge
		}
		c.FLOPs = 4*sum(T+n)*sum(narrow) + product2(n, a.rank(), narrow)
		c.Bytes = 4 * sum(T+n) * sum(h.Hk*h.D)
		c.plan.wire = func(r *rig) func() {
			spec := r.qkv("", h, m.C)
			reader := r.plain("", m.C, narrow)
			reader.Back = false
			l := r.lora("l", reader, a, 0)
			past := r.wide("past", input, anything, nil, T, spec)
			now := r.wide("now", input, anything, nil, n, spec)
			cache := ops.KVCache{
				K: r.place("k", scratch, r.act, n, positions, h.Hk*h.D).Tensor,
				V: r.place("v", scratch, r.act, n, positions, h.Hk*h.D).Tensor}
			tol, low := byRule, byProduct
			if r.coarsely() && r.as.period == 0 {
				tol.coarse = decodeReference(r.byName["past"].values, r.byName["now"].values, prompt, h, rounded)
				if l != nil {
					low = byRule
					low.coarse = lowRank(&next, l, r.factors(l), tol.coarse, rounded)
				}
			}
			o, u := r.out("o", tol, n, narrow), r.lowOut("u", n, l)
			if l != nil {
				r.byName["u"].tol = low
			}
			decode := func() { r.b.DecodeAttention(o, u, now, cache, h, l, r.batch) }
			store := func() {
				r.load(fill)
				r.b.StoreKV(cache, past, h, r.batch)
				r.load(next)
				r.b.StoreKV(cache, now, h, r.batch)
			}
			if r.timing && !r.sizing { // the op alone
				store()
				return decode
			}
			return func() {
				store()
				decode()
			}
		}
		all = append(all, c)
	}
	add(tinyOdd, []int{1}, 2, adapters{})
	add(tinyEven, []int{5, 31, 1}, 40, adapters{[]int{4}, 0})
	add(smolLM, []int{63, 64, 65, 129}, 256, adapters{[]int{16}, 0.05})
	add(qwen05B, []int{257}, 300, adapters{[]int{8}, 0})
	add(qwen15B, []int{7, 127}, 128, adapters{})
	add(qwen7B, []int{113}, 114, adapters{[]int{8}, 0})
	add(qwen7B, []int{2047}, 2048, adapters{})
	add(qwen7B, []int{4000, 4000, 4000, 4000, 4000, 4000, 4000, 4000}, 4096, adapters{[]int{8}, 0})
	add(qwen7B, []int{1 << 22, 2}, 1<<22+64, adapters{})
	return all
}

// decodeBatches are the batch that stores the prompts, and the one that decodes a token of each.
func decodeBatches(prompt []int) (fill, next ops.HostBatch) {
	fill.SegStart, next.SegStart = []int32{0}, []int32{0}
	for s, p := range prompt {
		for i := range p {
			fill.IDs, fill.Pos, fill.Sample = append(fill.IDs, 0), append(fill.Pos, int32(i)), append(fill.Sample, int32(s))
		}
		fill.SegStart = append(fill.SegStart, int32(len(fill.IDs)))
		next.IDs, next.Pos, next.Sample = append(next.IDs, 0), append(next.Pos, int32(p)), append(next.Sample, int32(s))
		next.SegStart = append(next.SegStart, int32(s+1))
	}
	return fill, next
}

// decodeReference is attention of the last token of each sequence over its prompt and itself.
func decodeReference(past, now []float64, prompt []int, h ops.Heads, rnd rounding) []float64 {
	wide := (h.H + 2*h.Hk) * h.D
	var o []float64
	row := 0
	for s, p := range prompt {
		whole := append(append([]float64(nil), past[row*wide:(row+p)*wide]...), now[s*wide:(s+1)*wide]...)
		all, _ := attentionForward(whole, h, []int32{0, int32(p + 1)}, rnd)
		o = append(o, all[p*h.H*h.D:]...)
		row += p
	}
	return o
}

func sampleCases() []Case {
	var all []Case
	add := func(name string, n, V int, a ops.SampleArgs) {
		c := Case{Op: "Sample", Name: "Sample/" + name + " N" + count(n) + " V" + count(V), FLOPs: 4 * sum(n) * sum(V), Bytes: 4 * sum(n) * sum(V)}
		c.plan = plan{name: c.Name, plain: true, dims: ops.Dims{T: n, S: n, N: n, C: 8, F: 8, V: V, H: 1, Hk: 1, D: 8, Width: 1}}
		for i := range n {
			a.Context = append(a.Context, []int32{int32(i % V), int32((i*7 + 3) % V), int32(i % V)})
			a.Sequence = append(a.Sequence, uint32(i))
		}
		c.plan.wire = func(r *rig) func() {
			logits := r.inState("logits", normal("logits", 3), n, V)
			s := r.place("next", output, ops.I32, n)
			s.tol = equal
			next := s.Tensor
			return func() { r.b.Sample(next, logits, a) }
		}
		all = append(all, c)
	}
	add("greedy", 3, 101, ops.SampleArgs{})
	add("greedy", 2, 151936, ops.SampleArgs{Limit: 151665})
	add("greedy penalty", 64, 37, ops.SampleArgs{RepetitionPenalty: 1.5})
	add("temperature", 64, 1000, ops.SampleArgs{Temperature: 0.7, Seed: 1, Step: 5})
	add("top-k", 64, 1000, ops.SampleArgs{Temperature: 1, TopK: 20, Seed: 1, Step: 6})
	add("top-k 1", 16, 1000, ops.SampleArgs{Temperature: 1, TopK: 1, Seed: 1, Step: 6})
	add("top-p", 64, 1000, ops.SampleArgs{Temperature: 1.3, TopP: 0.8, Seed: 2, Step: 7})
	add("all stages", 64, 1000, ops.SampleArgs{Temperature: 0.9, TopK: 50, TopP: 0.9, RepetitionPenalty: 1.1, Limit: 990, Seed: 3, Step: 8})
	return all
}

// nf4Cases go there and back: codes at a tie may differ between float32 and float64, what they stand for
// may not.
func nf4Cases() []Case {
	var all []Case
	add := func(n int, double bool) {
		c := Case{Op: "QuantNF4", Name: "QuantNF4/" + count(n), FLOPs: 4 * sum(n), Bytes: 4.5 * sum(n), Size: flatSize(n)}
		if double {
			c.Name += " double"
		}
		c.plan = plan{name: c.Name, plain: true, flat: n, dims: ops.Dims{T: 1, S: 1, N: 1, C: 8, F: 1 + n/8, V: 8, H: 1, Hk: 1, D: 8, Width: 1}}
		c.plan.wire = func(r *rig) func() {
			src := r.in("src", func(i int) float64 { return math.Sin(float64(i)*1.7) * float64(1+i/64%7) }, n)
			dst := r.out("dst", byProduct, n)
			n := src.Len()
			blocks := (n + 63) / 64
			part := func(name string, d ops.DType, n int) ops.Tensor {
				s := r.place(name, output, d, n)
				s.tol = anything
				return s.Tensor
			}
			q := ops.Quantized{Codes: part("codes", ops.U8, (n+1)/2)}
			if double {
				q.Absmax, q.Nested, q.Offset = part("absmax", ops.U8, blocks), part("nested", ops.F32, (blocks+255)/256), part("offset", ops.F32, 1)
			} else {
				q.Absmax = part("absmax", ops.F32, blocks)
			}
			return func() {
				r.b.QuantNF4(q, src)
				r.b.DequantNF4(dst, q)
			}
		}
		all = append(all, c)
	}
	for i, n := range []int{1, 2, 63, 64, 65, 1000, 20000} {
		add(n, i%2 == 0)
		add(n, i%2 == 1)
	}
	add(3584*18944, true)
	add(1<<31+192, true)
	return all
}
