package main

import (
	"github.com/mmcloughlin/avo/operand"

	"qlora/model/cpu/internal/asmgen"
)

func (g generator) fromBF16() {
	g.begin("fromBF16", "func(dst *float32, src *uint16, n int)", "widens src to float32.")
	dst, src := g.stream("dst", 4), g.stream("src", 2)
	g.loop(lanes, []stream{dst, src}, func() {
		g.VPMOVZXWD(asmgen.At(src.p, 0), y[0])
		g.VPSLLD(operand.U8(16), y[0], y[0])
		g.VMOVUPS(y[0], asmgen.At(dst.p, 0))
	})
	g.end()
}

// toBF16 rounds by adding half a unit less the bit that decides a tie; a NaN gets its quiet bit instead.
func (g generator) toBF16() {
	g.begin("toBF16", "func(dst *uint16, src *float32, n int)", "rounds src to nearest, ties to even.")
	dst, src := g.stream("dst", 2), g.stream("src", 4)
	g.loop(lanes, []stream{dst, src}, func() {
		x, sum, nan, quiet := y[0], y[1], y[2], y[3]
		g.VMOVUPS(asmgen.At(src.p, 0), x)
		g.VPSRLD(operand.U8(16), x, sum)
		g.VPAND(g.constant("lowBit", operand.U32(1)), sum, sum)
		g.VPADDD(g.constant("halfLess", operand.U32(0x7fff)), sum, sum)
		g.VPADDD(x, sum, sum)
		g.VCMPPS(operand.U8(3), x, x, nan) // unordered
		g.VPOR(g.constant("quietBit", operand.U32(0x400000)), x, quiet)
		g.VBLENDVPS(nan, quiet, sum, sum)
		g.VPSRLD(operand.U8(16), sum, sum)
		g.VEXTRACTI128(operand.U8(1), sum, x.AsX())
		g.VPACKUSDW(x.AsX(), sum.AsX(), sum.AsX())
		g.VMOVUPS(sum.AsX(), asmgen.At(dst.p, 0))
	})
	g.end()
}
