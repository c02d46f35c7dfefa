package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"qlora/model/cpu/internal/asmgen"
)

// The exponential: x = n·ln2 + r with |r| <= ln2/2, e^x = 2^n·e^r, and e^r = 1 + r + r²·P(r) with the minimax P of
// the Cephes library's expf (S. L. Moshier). ln2 is split in two, so that n·ln2High is exact.
const (
	log2e   = 1.44269504088896341
	ln2High = 0.693359375
	ln2Low  = -2.12194440e-4
	expMax  = 89   // e^89 overflows to +Inf
	expMin  = -104 // e^-104 rounds to 0
)

var expPoly = [6]float32{1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1}

// expOf replaces x by e^x, through three more registers. A NaN stays a NaN: of a NaN and a number, the minimum and
// maximum take the operand written first here.
func (g generator) expOf(x, n, p, t reg.VecPhysical) {
	g.VMOVUPS(g.float("expMin", expMin), t)
	g.VMAXPS(x, t, x)
	g.VMOVUPS(g.float("expMax", expMax), t)
	g.VMINPS(x, t, x)
	g.VMULPS(g.float("log2e", log2e), x, n)
	g.VCVTPS2DQ(n, n)
	g.VCVTDQ2PS(n, p)
	g.VFNMADD231PS(g.float("ln2High", ln2High), p, x)
	g.VFNMADD231PS(g.float("ln2Low", ln2Low), p, x)

	g.VMOVUPS(g.float("expPoly0", expPoly[0]), p)
	for i, name := range []string{"expPoly1", "expPoly2", "expPoly3", "expPoly4", "expPoly5"} {
		g.VFMADD213PS(g.float(name, expPoly[i+1]), x, p)
	}
	g.VMULPS(x, x, t)
	g.VFMADD213PS(x, t, p)
	g.VADDPS(g.float("one", 1), p, p)

	// 2^n in two factors, each in range also where the result is subnormal or infinite.
	g.VPSRAD(operand.U8(1), n, t)
	g.VPSUBD(t, n, n)
	for _, half := range []reg.VecPhysical{t, n} {
		g.VPADDD(g.constant("bias", operand.U32(127)), half, half)
		g.VPSLLD(operand.U8(23), half, half)
		g.VMULPS(half, p, p)
	}
	g.VMOVAPS(p, x)
}

// sigmoidOf sets s to 1/(1+e^-x) and leaves x.
func (g generator) sigmoidOf(x, s, n, p, t reg.VecPhysical) {
	g.VXORPS(g.constant("signBit", operand.U32(1<<31)), x, s)
	g.expOf(s, n, p, t)
	g.VMOVUPS(g.float("one", 1), t)
	g.VADDPS(t, s, s)
	g.VDIVPS(s, t, s)
}

func (g generator) exp() {
	g.begin("exp", "func(dst, x *float32, n int)", "sets dst[i] = e^x[i].")
	s := g.floats("dst", "x")
	dst, x := s[0].p, s[1].p
	g.loop(lanes, s, func() {
		g.VMOVUPS(asmgen.At(x, 0), y[0])
		g.expOf(y[0], y[1], y[2], y[3])
		g.VMOVUPS(y[0], asmgen.At(dst, 0))
	})
	g.end()
}

func (g generator) swiGLU() {
	g.begin("swiGLU", "func(act, gate, up *float32, n int)", "sets act = gate·sigmoid(gate)·up.")
	s := g.floats("act", "gate", "up")
	act, gate, up := s[0].p, s[1].p, s[2].p
	g.loop(lanes, s, func() {
		g.VMOVUPS(asmgen.At(gate, 0), y[0])
		g.sigmoidOf(y[0], y[1], y[2], y[3], y[4])
		g.VMULPS(y[1], y[0], y[0])
		g.VMULPS(asmgen.At(up, 0), y[0], y[0])
		g.VMOVUPS(y[0], asmgen.At(act, 0))
	})
	g.end()
}

func (g generator) swiGLUBack() {
	g.begin("swiGLUBack", "func(dgate, dup, dact, gate, up *float32, n int)",
		"sets dup = dact·gate·s and dgate = dact·up·s·(1+gate·(1-s)), s = sigmoid(gate).")
	s := g.floats("dgate", "dup", "dact", "gate", "up")
	dgate, dup, dact, gate, up := s[0].p, s[1].p, s[2].p, s[3].p, s[4].p
	g.loop(lanes, s, func() {
		g.VMOVUPS(asmgen.At(gate, 0), y[0])
		g.VMOVUPS(asmgen.At(dact, 0), y[5])
		g.VMULPS(asmgen.At(up, 0), y[5], y[6])
		g.sigmoidOf(y[0], y[1], y[2], y[3], y[4])
		g.VMULPS(y[1], y[5], y[5])
		g.VMULPS(y[0], y[5], y[5])
		g.VMULPS(y[1], y[6], y[6])
		g.VMOVUPS(g.float("one", 1), y[2])
		g.VSUBPS(y[1], y[2], y[3])
		g.VFMADD213PS(y[2], y[0], y[3])
		g.VMULPS(y[3], y[6], y[6])
		g.VMOVUPS(y[5], asmgen.At(dup, 0))
		g.VMOVUPS(y[6], asmgen.At(dgate, 0))
	})
	g.end()
}

func (g generator) expSum() {
	g.begin("expSum", "func(dst, x *float32, shift float32, n int) float32", "sets dst[i] = e^(x[i]-shift) and returns the sum.")
	s := g.floats("dst", "x")
	dst, x := s[0].p, s[1].p
	g.broadcast("shift", y[4])
	g.VXORPS(y[5], y[5], y[5])
	g.loop(lanes, s, func() {
		g.VMOVUPS(asmgen.At(x, 0), y[0])
		g.VSUBPS(y[4], y[0], y[0])
		g.expOf(y[0], y[1], y[2], y[3])
		g.VADDPS(y[0], y[5], y[5])
		g.VMOVUPS(y[0], asmgen.At(dst, 0))
	})
	g.across(g.VADDPS, y[5])
	g.end()
}
