package main

import (
	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"qlora/model/cpu/internal/asmgen"
)

// copyPanel emits the copy of a row-major block, two registers wide, into a panel.
func copyPanel(c *build.Context, t tile) {
	name := "copyPanel" + t.Name
	c.Function(name)
	c.Attributes(attr.NOSPLIT)
	c.Doc(name + " copies rows (at least 1) of a panel's width from src, lds bytes apart, to consecutive rows at dst.")
	c.Pragma("noescape")
	c.SignatureExpr("func(dst, src *byte, lds uintptr, rows int)")
	dst, src, lds, rows := asmgen.Ptr(c, "dst"), asmgen.Ptr(c, "src"), asmgen.Ptr(c, "lds"), asmgen.Ptr(c, "rows")
	c.Label("row")
	for v := range 2 {
		c.VMOVUPS(asmgen.At(src, v*t.Bytes), t.Regs[v])
	}
	for v := range 2 {
		c.VMOVUPS(t.Regs[v], asmgen.At(dst, v*t.Bytes))
	}
	c.ADDQ(lds, src)
	c.ADDQ(operand.I32(2*t.Bytes), dst)
	c.DECQ(rows)
	c.JNZ(operand.LabelRef("row"))
	c.VZEROUPPER()
	c.RET()
}

// transpose emits the transposition of 8x8 blocks; it serves both widths.
func transpose(c *build.Context, s storage) {
	name := "transpose" + s.name
	c.Function(name)
	c.Attributes(attr.NOSPLIT)
	c.Doc(name+" writes the transpose of the (8*rowBlocks, 8*colBlocks) block at src to dst, as float32;",
		"lds and ldd are the bytes from row to row. It needs AVX2.")
	c.Pragma("noescape")
	c.SignatureExpr("func(dst *byte, ldd uintptr, src *byte, lds uintptr, rowBlocks, colBlocks int)")
	dst, ldd := asmgen.Ptr(c, "dst"), asmgen.Ptr(c, "ldd")
	src, lds := asmgen.Ptr(c, "src"), asmgen.Ptr(c, "lds")
	rows := asmgen.Ptr(c, "rowBlocks")
	from, to, cols := c.GP64(), c.GP64(), c.GP64()

	c.Label("rows")
	c.MOVQ(src, from)
	c.MOVQ(dst, to)
	c.Load(c.Param("colBlocks"), cols)
	c.Label("cols")
	row := c.GP64()
	c.MOVQ(from, row)
	for i := range 8 {
		s.load(c, asmgen.At(row, 0), asmgen.AVX2.Regs[i])
		if i < 7 {
			c.ADDQ(lds, row)
		}
	}
	transpose8x8(c)
	for i := range 8 {
		c.VMOVUPS(asmgen.AVX2.Regs[i], asmgen.At(to, 0))
		c.ADDQ(ldd, to)
	}
	c.ADDQ(operand.I32(8*s.bytes), from)
	c.DECQ(cols)
	c.JNZ(operand.LabelRef("cols"))
	c.LEAQ(operand.Mem{Base: src, Index: lds, Scale: 8}, src)
	c.ADDQ(operand.I32(32), dst)
	c.DECQ(rows)
	c.JNZ(operand.LabelRef("rows"))
	c.VZEROUPPER()
	c.RET()
}

// transpose8x8 transposes Y0..Y7 in place, through Y8..Y15: pairs of floats, then pairs of pairs, then the halves.
func transpose8x8(c *build.Context) {
	var r, w [8]reg.VecPhysical
	copy(r[:], asmgen.AVX2.Regs[:8])
	copy(w[:], asmgen.AVX2.Regs[8:])
	for i := 0; i < 8; i += 2 {
		c.VUNPCKLPS(r[i+1], r[i], w[i])
		c.VUNPCKHPS(r[i+1], r[i], w[i+1])
	}
	for i := 0; i < 8; i += 4 {
		c.VUNPCKLPD(w[i+2], w[i], r[i])
		c.VUNPCKHPD(w[i+2], w[i], r[i+1])
		c.VUNPCKLPD(w[i+3], w[i+1], r[i+2])
		c.VUNPCKHPD(w[i+3], w[i+1], r[i+3])
	}
	for i := range 4 {
		c.VPERM2F128(operand.U8(0x20), r[i+4], r[i], w[i])
		c.VPERM2F128(operand.U8(0x31), r[i+4], r[i], w[i+4])
	}
	for i := range 8 {
		c.VMOVAPS(w[i], r[i])
	}
}
