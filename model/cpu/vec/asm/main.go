// Command asm writes the assembly of package vec. Run it through go generate in package vec.
package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"qlora/model/cpu/internal/asmgen"
)

func main() { asmgen.Main("vec", "kernels_amd64", generate) }

func generate(c *build.Context) {
	g := generator{c, map[string]operand.Mem{}}
	g.exp()
	g.swiGLU()
	g.swiGLUBack()
	g.expSum()
	g.dot()
	g.max()
	g.axpy()
	g.scale()
	g.fromBF16()
	g.toBF16()
	g.dropout()
}

const lanes = 8

var y = asmgen.AVX2.Regs

// generator adds to the avo context the constants, each kept once as a full register.
type generator struct {
	*build.Context
	constants map[string]operand.Mem
}

// constant is a register's worth of v.
func (g generator) constant(name string, v operand.Constant) operand.Mem {
	m, ok := g.constants[name]
	if !ok {
		m = g.StaticGlobal(name)
		g.DataAttributes(attr.RODATA | attr.NOPTR)
		for range lanes {
			g.AppendDatum(v)
		}
		g.constants[name] = m
	}
	return m
}

// float is a register's worth of v, kept by its bits: avo writes a whole number as an integer.
func (g generator) float(name string, v float32) operand.Mem {
	return g.constant(name, operand.U32(math.Float32bits(v)))
}

// begin opens a function of this name and signature.
func (g generator) begin(name, signature, doc string) {
	g.Function(name + "AVX2")
	g.Attributes(attr.NOSPLIT)
	g.Doc(name + "AVX2 " + doc)
	g.Pragma("noescape")
	g.SignatureExpr(signature)
}

// stream is a pointer argument that moves through memory with the loop.
type stream struct {
	p    reg.GPVirtual
	size int // bytes of an element
}

func (g generator) stream(name string, size int) stream {
	return stream{asmgen.Ptr(g.Context, name), size}
}

// floats are the streams of float32 arguments.
func (g generator) floats(names ...string) []stream {
	s := make([]stream, len(names))
	for i, name := range names {
		s[i] = g.stream(name, 4)
	}
	return s
}

// loop emits body for every step values of the argument n, a positive multiple of step, and moves the streams on.
func (g generator) loop(step int, streams []stream, body func()) {
	n := asmgen.Ptr(g.Context, "n")
	g.Label("loop")
	body()
	for _, s := range streams {
		g.ADDQ(operand.I32(step*s.size), s.p)
	}
	g.SUBQ(operand.I32(step), n)
	g.JNZ(operand.LabelRef("loop"))
}

// broadcast loads the argument name, of 4 bytes, into every lane of r.
func (g generator) broadcast(name string, r reg.VecPhysical) {
	a, err := g.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	g.VBROADCASTSS(a.Addr, r)
}

func (g generator) end() {
	g.VZEROUPPER()
	g.RET()
}
