//go:build cuda

package yardstick

import "math"

// Attention is causal attention of one segment: q, o, do and dq (T,H,D), k, v, dk and dv (T,Hk,D) in bfloat16, and the
// logarithms of the sums of exponentials (H,T) in float32.
type Attention struct {
	T, H, Hk, D                       int
	Q, K, V, O, Stats, DO, DQ, DK, DV uintptr
}

func (a Attention) wide() shape   { return shape{1, int64(a.H), int64(a.T), int64(a.D)} }
func (a Attention) narrow() shape { return shape{1, int64(a.Hk), int64(a.T), int64(a.D)} }
func (a Attention) square() shape { return shape{1, int64(a.H), int64(a.T), int64(a.T)} }
func (a Attention) column() shape { return shape{1, int64(a.H), int64(a.T), 1} }

// turned is k or v as (D,T) a head.
func (a Attention) turned(g *graph, place uintptr) node {
	return g.at(bfloat16s, a.narrow().turned(), a.narrow().byToken().turned(), place)
}

// attending is a graph with names for the tensors of attention that are stored nowhere.
type attending struct {
	*graph
	Attention
}

// squared is (T,T) a head in float32.
func (g attending) squared() node { return g.between(float32s, g.square(), g.square().dense()) }

// columned is (T,1) a head in float32.
func (g attending) columned() node { return g.between(float32s, g.column(), g.column().dense()) }

// scale is what products of q and k are multiplied by.
func (g attending) scale() node { return g.constant(float32(1 / math.Sqrt(float64(g.D)))) }

// causal is s where a row is no earlier than its column, and minus infinity elsewhere.
func (g attending) causal(s node) node {
	never := float32(math.Inf(-1))
	if g.d.version < 91000 {
		never = -math.MaxFloat32
	}
	row, column := g.numbered(s, 2), g.numbered(s, 3)
	seen := g.each(atLeast, booleans, g.between(booleans, s.shape, s.dense()), row, column)
	return g.each(choose, float32s, g.squared(), s, g.constant(never), seen)
}

// Forward plans o and the statistics.
func (d *DNN) Forward(a Attention) (*Plan, error) {
	g := attending{&graph{maker: maker{d: d}}, a}
	q, v := g.at(bfloat16s, a.wide(), a.wide().byToken(), a.Q), g.at(bfloat16s, a.narrow(), a.narrow().byToken(), a.V)
	s := g.product(g.squared(), q, a.turned(g.graph, a.K))
	s = g.causal(g.each(mul, float32s, g.squared(), s, g.scale()))
	most := g.reduce(largest, g.columned(), s)
	e := g.each(exp, float32s, g.squared(), g.each(sub, float32s, g.squared(), s, most))
	sum := g.reduce(total, g.columned(), e)
	g.each(add, float32s, g.at(float32s, a.column(), a.column().dense(), a.Stats), most, g.each(log, float32s, g.columned(), sum))
	p := g.each(div, float32s, g.between(bfloat16s, a.square(), a.square().dense()), e, sum)
	g.product(g.at(bfloat16s, a.wide(), a.wide().byToken(), a.O), p, v)
	return g.plan()
}

// Backward plans dq, dk and dv from do and what the forward has left.
func (d *DNN) Backward(a Attention) (*Plan, error) {
	g := attending{&graph{maker: maker{d: d}}, a}
	wide := func(place uintptr) node { return g.at(bfloat16s, a.wide(), a.wide().byToken(), place) }
	q, o, do := wide(a.Q), wide(a.O), wide(a.DO)
	k, scale := a.turned(g.graph, a.K), g.scale()

	// delta, the sum of do·o along a row.
	along := g.reduce(total, g.columned(), g.each(mul, float32s, g.between(float32s, a.wide(), a.wide().byToken()), do, o))
	delta := g.each(mul, float32s, g.aside(a.column()), along, g.constant(1))

	s := g.each(mul, float32s, g.squared(), g.product(g.squared(), q, k), scale)
	s = g.each(sub, float32s, g.squared(), s, g.at(float32s, a.column(), a.column().dense(), a.Stats))
	p := g.each(exp, float32s, g.squared(), g.causal(s))
	g.gathered(a.DV, p, do)

	dp := g.product(g.squared(), do, a.turned(g.graph, a.V))
	ds := g.each(mul, float32s, g.squared(), g.each(sub, float32s, g.squared(), dp, delta), p)
	ds = g.each(mul, float32s, g.squared(), ds, scale)
	g.gathered(a.DK, ds, q)

	rows := g.view(g.between(float32s, a.narrow(), a.narrow().byToken()), k)
	g.each(identity, float32s, wide(a.DQ), g.product(g.aside(a.wide()), ds, rows))
	return g.plan()
}

// gathered writes sᵀ·x to a tensor of fewer heads, each the sum of those that share it.
func (g attending) gathered(place uintptr, s, x node) {
	turned := g.view(g.between(bfloat16s, g.square(), shape{g.square().dense()[0], g.square().dense()[1], 1, int64(g.T)}), s)
	y := g.at(bfloat16s, g.narrow(), g.narrow().byToken(), place)
	if g.H == g.Hk {
		g.product(y, turned, x)
		return
	}
	g.reduce(total, y, g.product(g.between(bfloat16s, g.wide(), g.wide().dense()), turned, x))
}
