package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"qlora/model/cpu/internal/asmgen"
)

// storage is the type of a panel's elements in memory; arithmetic is float32.
type storage struct {
	name  string
	bytes int
}

var (
	float32Storage = storage{"F32", 4}
	bf16Storage    = storage{"BF16", 2}
)

// load fills register r with consecutive elements at m. A bf16 is the upper half of the float32 it stands for.
func (s storage) load(c *build.Context, m operand.Mem, r reg.VecPhysical) {
	if s == float32Storage {
		c.VMOVUPS(m, r)
		return
	}
	c.VPMOVZXWD(m, r)
	c.VPSLLD(operand.U8(16), r, r)
}

// widePanels[rows] is the number of panels that a kernel of few rows takes at once: one row on one panel is a chain
// of two FMAs that waits for itself, and only several panels keep the memory busy.
var widePanels = [4]int{1: 4, 2: 2, 3: 2}

const unroll = 4 // steps of k in the main loop

// microKernel emits the register tile. Between two tiles a and y move down by rows; b stays.
func microKernel(c *build.Context, t tile, s storage, rows, panels int) {
	name := fmt.Sprintf("micro%dx%d%s%s", rows, panels, s.name, t.Name)
	c.Function(name)
	c.Attributes(attr.NOSPLIT)
	c.Doc(name + " computes, for each of tiles blocks of rows, y (+)= a·b (type micro says how).")
	c.Pragma("noescape")
	c.SignatureExpr("func(tiles int, a *byte, rs, ks uintptr, b *byte, ps uintptr, k int, y *byte, ldy uintptr, add int)")

	a, rs, ks := asmgen.Ptr(c, "a"), asmgen.Ptr(c, "rs"), asmgen.Ptr(c, "ks")
	y, ldy := asmgen.Ptr(c, "y"), asmgen.Ptr(c, "ldy")
	tilesLeft, err := c.Param("tiles").Resolve()
	if err != nil {
		panic(err)
	}
	acc := func(row, v int) reg.VecPhysical { return t.Regs[row*2*panels+v] }
	free := t.Regs[2*rows*panels:]

	c.Label("tile")
	for i := range 2 * rows * panels {
		t.Zero(c, t.Regs[i])
	}
	// Three rows are reached from one pointer: p, p+rs, p+2rs.
	ap := make([]reg.GPVirtual, (rows+2)/3)
	for i := range ap {
		ap[i] = c.GP64()
		if i == 0 {
			c.MOVQ(a, ap[0])
			continue
		}
		c.LEAQ(operand.Mem{Base: ap[i-1], Index: rs, Scale: 2}, ap[i])
		c.ADDQ(rs, ap[i])
	}
	rowAt := func(p []reg.GPVirtual, stride reg.Register, row int) operand.Mem {
		m := operand.Mem{Base: p[row/3]}
		if row%3 > 0 {
			m.Index, m.Scale = stride, uint8(row%3)
		}
		return m
	}
	b := []reg.GPVirtual{asmgen.Ptr(c, "b")}
	var ps reg.GPVirtual
	if panels > 1 {
		ps = asmgen.Ptr(c, "ps")
	}
	if panels > 3 {
		b = append(b, c.GP64())
		c.LEAQ(operand.Mem{Base: b[0], Index: ps, Scale: 2}, b[1])
		c.ADDQ(ps, b[1])
	}

	step := func(u int) {
		for p := range panels {
			for v := range 2 {
				m := rowAt(b, ps, p)
				m.Disp = (2*u + v) * t.Lanes() * s.bytes
				s.load(c, m, free[v])
			}
			for row := range rows {
				x := free[2+row%2]
				c.VBROADCASTSS(rowAt(ap, rs, row), x)
				c.VFMADD231PS(free[0], x, acc(row, 2*p))
				c.VFMADD231PS(free[1], x, acc(row, 2*p+1))
			}
		}
		for _, p := range ap {
			c.ADDQ(ks, p)
		}
	}
	advance := func(steps int) {
		for _, p := range b {
			c.ADDQ(operand.I32(steps*2*t.Lanes()*s.bytes), p)
		}
	}
	k := asmgen.Ptr(c, "k")
	c.SUBQ(operand.I32(unroll), k)
	c.JL(operand.LabelRef("rest"))
	c.Label("loop")
	for u := range unroll {
		step(u)
	}
	advance(unroll)
	c.SUBQ(operand.I32(unroll), k)
	c.JGE(operand.LabelRef("loop"))
	c.Label("rest")
	c.ADDQ(operand.I32(unroll), k)
	c.JZ(operand.LabelRef("done"))
	c.Label("single")
	step(0)
	advance(1)
	c.DECQ(k)
	c.JNZ(operand.LabelRef("single"))

	c.Label("done")
	add := asmgen.Ptr(c, "add")
	c.TESTQ(add, add)
	c.JZ(operand.LabelRef("store"))
	walk := c.GP64()
	c.MOVQ(y, walk)
	for row := range rows {
		for v := range 2 * panels {
			c.VADDPS(asmgen.At(walk, v*t.Bytes), acc(row, v), acc(row, v))
		}
		c.ADDQ(ldy, walk)
	}
	c.Label("store")
	for row := range rows {
		for v := range 2 * panels {
			c.VMOVUPS(acc(row, v), asmgen.At(y, v*t.Bytes))
		}
		c.ADDQ(ldy, y)
	}
	c.IMUL3Q(operand.I32(rows), rs, walk)
	c.ADDQ(walk, a)
	c.DECQ(tilesLeft.Addr)
	c.JNZ(operand.LabelRef("tile"))
	c.VZEROUPPER()
	c.RET()
}
