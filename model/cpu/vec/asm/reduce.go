package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"qlora/model/cpu/internal/asmgen"
)

// Reductions keep chains accumulators, enough to hide the latency of an addition.
const chains = 4

// across folds the lanes of r, halves first, and stores the result as the function's.
func (g generator) across(op func(...operand.Op), r reg.VecPhysical) {
	x, t := r.AsX(), y[15].AsX()
	g.VEXTRACTF128(operand.U8(1), r, t)
	op(t, x, x)
	g.VPERMILPS(operand.U8(0b01_00_11_10), x, t)
	op(t, x, x)
	g.VPERMILPS(operand.U8(0b10_11_00_01), x, t)
	op(t, x, x)
	g.Store(x, g.ReturnIndex(0))
}

// fold combines the accumulators y[0..3] in pairs and then the lanes.
func (g generator) fold(op func(...operand.Op)) {
	op(y[1], y[0], y[0])
	op(y[3], y[2], y[2])
	op(y[2], y[0], y[0])
	g.across(op, y[0])
}

func (g generator) dot() {
	g.begin("dot", "func(x, y *float32, n int) float32", "returns Σ x[i]·y[i]; n is a multiple of 32.")
	s := g.floats("x", "y")
	a, b := s[0].p, s[1].p
	for i := range chains {
		g.VXORPS(y[i], y[i], y[i])
	}
	g.loop(chains*lanes, s, func() {
		for i := range chains {
			g.VMOVUPS(asmgen.At(a, 32*i), y[4+i])
			g.VFMADD231PS(asmgen.At(b, 32*i), y[4+i], y[i])
		}
	})
	g.fold(g.VADDPS)
	g.end()
}

func (g generator) max() {
	g.begin("max", "func(x *float32, n int) float32", "returns the largest x[i]; n is a multiple of 32.")
	s := g.floats("x")
	x := s[0].p
	for i := range chains {
		g.VMOVUPS(asmgen.At(x, 32*i), y[i])
	}
	g.loop(chains*lanes, s, func() {
		for i := range chains {
			g.VMAXPS(asmgen.At(x, 32*i), y[i], y[i])
		}
	})
	g.fold(g.VMAXPS)
	g.end()
}

func (g generator) axpy() {
	g.begin("axpy", "func(y *float32, a float32, x *float32, n int)", "adds a·x[i] to y[i].")
	s := g.floats("y", "x")
	to, x := s[0].p, s[1].p
	g.broadcast("a", y[0])
	g.loop(lanes, s, func() {
		g.VMOVUPS(asmgen.At(to, 0), y[1])
		g.VFMADD231PS(asmgen.At(x, 0), y[0], y[1])
		g.VMOVUPS(y[1], asmgen.At(to, 0))
	})
	g.end()
}

func (g generator) scale() {
	g.begin("scale", "func(dst *float32, a float32, x *float32, n int)", "sets dst[i] = a·x[i].")
	s := g.floats("dst", "x")
	to, x := s[0].p, s[1].p
	g.broadcast("a", y[0])
	g.loop(lanes, s, func() {
		g.VMULPS(asmgen.At(x, 0), y[0], y[1])
		g.VMOVUPS(y[1], asmgen.At(to, 0))
	})
	g.end()
}
