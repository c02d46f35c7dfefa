package main

import (
	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"qlora/model/cpu/internal/asmgen"
)

// dropout makes eight blocks of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) a
// turn, for 64 columns. A register holds one word of four blocks, each in the low half of 64 bits, where VPMULUDQ reads
// it and puts the product; what stands in the high halves does not matter. Two such sets a and b keep the multiplier busy.
func (g generator) dropout() {
	g.begin("dropout", "func(dst, x *float32, n int, seed, step, group, pos, sample, module, threshold uint32, scale float32)",
		"sets dst = scale·x where a column is kept and 0 elsewhere; n is a multiple of 64.")
	s := g.floats("dst", "x")
	a, b := y[0:4], y[4:8]
	keys, mult, t := y[8:10], y[10:12], y[12:16]
	group := g.GP32()
	g.Load(g.Param("group"), group)
	g.VPBROADCASTD(g.word("philoxM0", 0xD2511F53), mult[0])
	g.VPBROADCASTD(g.word("philoxM1", 0xCD9E8D57), mult[1])
	g.loop(64, s, func() {
		g.VMOVD(group, a[0].AsX())
		g.VPBROADCASTD(a[0].AsX(), b[0])
		g.VPADDD(g.counts("philoxGroupA", 0), b[0], a[0])
		g.VPADDD(g.counts("philoxGroupB", 4), b[0], b[0])
		for i, name := range []string{"pos", "sample", "module"} {
			g.broadcast(name, a[i+1])
			g.VMOVDQA(a[i+1], b[i+1])
		}
		g.broadcast("seed", keys[0])
		g.broadcast("step", keys[1])
		for round := range 10 {
			if round > 0 {
				g.VPADDD(g.constant("philoxW0", operand.U32(0x9E3779B9)), keys[0], keys[0])
				g.VPADDD(g.constant("philoxW1", operand.U32(0xBB67AE85)), keys[1], keys[1])
			}
			philoxRound(g, a, keys, mult, t[0], t[1])
			philoxRound(g, b, keys, mult, t[2], t[3])
		}
		g.broadcast("threshold", keys[0])
		g.broadcast("scale", keys[1])
		for half, words := range [][]reg.VecPhysical{a, b} {
			// (w0,w1) and (w2,w3) of each block side by side, then the four: two blocks a register.
			for i := range 2 {
				g.VPSLLQ(operand.U8(32), words[2*i+1], words[2*i+1])
				g.VPBLENDD(operand.U8(0xAA), words[2*i+1], words[2*i], words[2*i])
			}
			g.VPUNPCKLQDQ(words[2], words[0], t[0]) // blocks 0 and 2
			g.VPUNPCKHQDQ(words[2], words[0], t[1]) // blocks 1 and 3
			for block := range 4 {
				lanes, from := t[2], t[block%2]
				if block < 2 {
					g.VPMOVZXWD(from.AsX(), lanes)
				} else {
					g.VEXTRACTI128(operand.U8(1), from, lanes.AsX())
					g.VPMOVZXWD(lanes.AsX(), lanes)
				}
				at := (half*4 + block) * 32
				g.VPCMPGTD(lanes, keys[0], lanes) // all ones where the lane is below the threshold
				g.VMULPS(asmgen.At(s[1].p, at), keys[1], t[3])
				g.VPANDN(t[3], lanes, lanes)
				g.VMOVUPS(lanes, asmgen.At(s[0].p, at))
			}
		}
		g.ADDL(operand.U8(8), group)
	})
	g.end()
}

// philoxRound is c0, c1, c2, c3 = hi(M1·c2)^c1^k0, lo(M1·c2), hi(M0·c0)^c3^k1, lo(M0·c0).
func philoxRound(g generator, c, keys, mult []reg.VecPhysical, p0, p1 reg.VecPhysical) {
	g.VPMULUDQ(mult[0], c[0], p0)
	g.VPMULUDQ(mult[1], c[2], p1)
	g.VPSRLQ(operand.U8(32), p1, c[0])
	g.VPXOR(c[1], c[0], c[0])
	g.VPXOR(keys[0], c[0], c[0])
	g.VPSRLQ(operand.U8(32), p0, c[2])
	g.VPXOR(c[3], c[2], c[2])
	g.VPXOR(keys[1], c[2], c[2])
	g.VMOVDQA(p1, c[1])
	g.VMOVDQA(p0, c[3])
}

// word is one 32-bit constant.
func (g generator) word(name string, v uint32) operand.Mem {
	m := g.StaticGlobal(name)
	g.DataAttributes(attr.RODATA | attr.NOPTR)
	g.AppendDatum(operand.U32(v))
	return m
}

// counts is first, first+1, first+2, first+3 as 64-bit words.
func (g generator) counts(name string, first int) operand.Mem {
	m := g.StaticGlobal(name)
	g.DataAttributes(attr.RODATA | attr.NOPTR)
	for i := range 4 {
		g.AppendDatum(operand.U64(first + i))
	}
	return m
}
