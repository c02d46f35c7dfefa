//go:build cuda

package yardstick

import (
	"errors"
	"unsafe"
)

// Kinds of descriptors, and what they are told: numbers of cudnn_graph.h.
const (
	kindPointwise, kindElementwise    = 0, 13 // what is done, and the operation that does it
	kindReduction, kindReduce         = 21, 22
	kindMatmul, kindProduct, kindView = 18, 19, 31
	kindTensor, kindGraph             = 17, 15
	kindConfig, kindHeuristic         = 3, 4
	kindPlan, kindPack                = 5, 16

	add, mul, div, sub, exp, log = 0, 1, 6, 9, 13, 15
	identity, atLeast            = 21, 303
	index, choose                = 501, 601

	total, largest = 0, 3 // reductions

	float32s, int32s, bfloat16s, booleans = 0, 4, 9, 11

	preferred = 3 // heuristic: as cuDNN advises
)

// shape is (batch, heads, rows, columns), or strides of it.
type shape [4]int64

// dense are the strides without gaps.
func (s shape) dense() shape { return shape{s[1] * s[2] * s[3], s[2] * s[3], s[3], 1} }

// byToken are the strides where a token's heads lie side by side.
func (s shape) byToken() shape { return shape{s[1] * s[2] * s[3], s[3], s[1] * s[3], 1} }

// turned swaps rows and columns.
func (s shape) turned() shape { return shape{s[0], s[1], s[3], s[2]} }

// node is a tensor of a graph.
type node struct {
	ref
	shape
}

// graph is a computation of which cuDNN makes a kernel or few.
type graph struct {
	maker
	ops    []ref
	next   int64
	uids   []int64          // of the tensors that lie in memory
	places []uintptr        // theirs; for those behind the plan's workspace, where they begin there
	beside []bool           // they lie behind the plan's workspace
	extra  int64            // bytes of those
	fixed  []unsafe.Pointer // constants
}

// tensor describes one.
func (g *graph) tensor(kind int, s, strides shape, more ...value) node {
	g.next++
	return node{g.make("a tensor", kindTensor, append([]value{
		attribute(901, ofDataType, int32(kind)), attribute(902, ofInt64, s[:]...), attribute(903, ofInt64, strides[:]...),
		attribute(906, ofInt64, g.next), attribute(900, ofInt64, int64(16)), // alignment
	}, more...)...), s}
}

// between is a tensor of which nothing is stored.
func (g *graph) between(kind int, s, strides shape) node {
	return g.tensor(kind, s, strides, attribute(907, ofBool, true))
}

// at is a tensor in memory.
func (g *graph) at(kind int, s, strides shape, place uintptr) node {
	n := g.tensor(kind, s, strides)
	g.uids, g.places, g.beside = append(g.uids, g.next), append(g.places, place), append(g.beside, false)
	return n
}

// aside is a tensor of float32 behind the plan's workspace.
func (g *graph) aside(s shape) node {
	n := g.at(float32s, s, s.dense(), uintptr(g.extra))
	g.beside[len(g.beside)-1] = true
	g.extra += aligned(4 * s[0] * s[1] * s[2] * s[3])
	return n
}

func aligned(bytes int64) int64 { return (bytes + 255) / 256 * 256 }

// constant is a number.
func (g *graph) constant(v float32) node {
	p := number(v)
	g.fixed = append(g.fixed, p)
	n := g.tensor(float32s, shape{1, 1, 1, 1}, shape{1, 1, 1, 1}, attribute(908, ofBool, true))
	g.uids, g.places, g.beside = append(g.uids, g.next), append(g.places, uintptr(p)), append(g.beside, false)
	return n
}

func (g *graph) op(what string, kind int, values ...value) {
	g.ops = append(g.ops, g.make(what, kind, values...))
}

func tensorOf(name int, n node) value { return attribute(name, ofDescriptor, n.ref) }

// each does the same to every element: y = mode(x...). It computes in a type.
func (g *graph) each(mode, in int, y node, x ...node) node {
	how := g.make("a pointwise operation", kindPointwise, attribute(0, ofPointwise, int32(mode)), attribute(1, ofDataType, int32(in)))
	return g.elementwise(how, y, x...)
}

// numbered is the number of every element's row, or column.
func (g *graph) numbered(x node, axis int64) node {
	how := g.make("an index", kindPointwise, attribute(0, ofPointwise, int32(index)), attribute(1, ofDataType, int32(int32s)), attribute(9, ofInt64, axis))
	return g.elementwise(how, g.between(int32s, x.shape, x.dense()), x)
}

func (g *graph) elementwise(how ref, y node, x ...node) node {
	values := []value{attribute(750, ofDescriptor, how), tensorOf(753, y)}
	for i, name := range []int{751, 752, 758}[:len(x)] {
		values = append(values, tensorOf(name, x[i]))
	}
	g.op("a pointwise operation", kindElementwise, values...)
	return y
}

// product is c = a·b.
func (g *graph) product(c, a, b node) node {
	how := g.make("a product", kindMatmul, attribute(1500, ofDataType, int32(float32s)))
	g.op("a product", kindProduct, tensorOf(1520, a), tensorOf(1521, b), tensorOf(1522, c), attribute(1523, ofDescriptor, how))
	return c
}

// reduce makes y of x, whose larger dimensions it takes together.
func (g *graph) reduce(mode int, y, x node) node {
	how := g.make("a reduction", kindReduction, attribute(1600, ofReduction, int32(mode)), attribute(1601, ofDataType, int32(float32s)))
	g.op("a reduction", kindReduce, attribute(1612, ofDescriptor, how), tensorOf(1610, x), tensorOf(1611, y))
	return y
}

// view is x with another shape.
func (g *graph) view(y, x node) node {
	g.op("a view", kindView, tensorOf(2200, x), tensorOf(2201, y))
	return y
}

// Plan is a graph as kernels.
type Plan struct {
	graph
	plan ref
	own  int64 // workspace of its kernels
	pack ref
}

// mostConfigs is how many ways cuDNN is asked for.
const mostConfigs = 8

// plan takes the first way of cuDNN's choice that works.
func (g *graph) plan() (*Plan, error) {
	whole := g.make("a graph", kindGraph, g.d.user(800), attribute(801, ofDescriptor, g.ops...))
	choice := g.make("a heuristic", kindHeuristic, attribute(201, ofDescriptor, whole), attribute(200, ofHeuristic, int32(preferred)))
	configs := make([]ref, mostConfigs)
	for i := range configs {
		configs[i] = g.open("a configuration", kindConfig)
	}
	n := get(&g.maker, "the heuristic", choice, 202, ofDescriptor, configs)
	err := g.err
	for _, c := range configs[:n] {
		g.err = nil
		p := &Plan{plan: g.make("a plan", kindPlan, g.d.user(400), attribute(401, ofDescriptor, c))}
		var own [1]int64
		get(&g.maker, "a plan's workspace", p.plan, 402, ofInt64, own[:])
		if g.err == nil {
			p.graph, p.own = *g, aligned(own[0])
			return p, nil
		}
		err = g.err
	}
	g.free()
	if err == nil {
		err = errors.New("cuDNN knows no way to compute it")
	}
	return nil, err
}

// WorkspaceBytes is the memory Run needs.
func (p *Plan) WorkspaceBytes() int64 { return p.own + p.extra }

// Bind sets the workspace of all runs.
func (p *Plan) Bind(workspace uintptr) error {
	places := make([]uintptr, len(p.places))
	for i, place := range p.places {
		places[i] = place
		if p.beside[i] {
			places[i] += workspace + uintptr(p.own)
		}
	}
	p.pack = p.make("the places of tensors", kindPack, attribute(1000, ofInt64, p.uids...), attribute(1001, ofPointer, places...), attribute(1003, ofPointer, workspace))
	return p.err
}

// Run enqueues the kernels.
func (p *Plan) Run() error { return p.d.execute(p.plan, p.pack) }

// Close gives the plan back.
func (p *Plan) Close() {
	p.free()
	for _, c := range p.fixed {
		forget(c)
	}
	p.fixed = nil
}
