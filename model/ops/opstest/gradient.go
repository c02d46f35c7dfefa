package opstest

import (
	"fmt"
	"math"
	"testing"

	"qlora/model/ops"
)

// problem is a loss computed by ops, its gradients by their backwards.
type problem struct {
	name string
	m    modelShape
	host ops.HostBatch
	wire func(r *rig) gradients
}

type gradients struct {
	forward  func() float64
	backward func()
	pairs    []pair
	// also gives what the backward writes beside gradients, by the formulas.
	also func() map[string][]float64
}

// pair is a variable and the tensor its gradient is left in, or added to.
type pair struct {
	variable, gradient string
	added              bool
}

const (
	maxGradientError = 1e-6
	maxFormulaError  = 1e-11
	differenceStep   = 1e-3 // of the five-point formula, whose error is its fourth power
)

// RunGradients holds every backward of the float64 oracle to central differences of its own
// forward, within 1e-6: along random directions, which take in every element, and at single elements.
func RunGradients(t *testing.T, oracle New) {
	for _, p := range problems() {
		t.Run(p.name, func(t *testing.T) {
			m := &machine{b: oracle()}
			var g gradients
			var c Case
			c.dims(p.m, p.host, 64)
			c.plan.wire = func(r *rig) func() {
				g = p.wire(r)
				return nil
			}
			r, err := m.build(&c.plan, ops.F32, ops.F64)
			if err != nil {
				t.Fatal(err)
			}
			if r.act != ops.F64 {
				t.Fatalf("the oracle stores activations in %s", r.act)
			}
			if err := g.check(r, t.Logf); err != nil {
				t.Error(err)
			}
			if err := m.b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (g *gradients) check(r *rig, logf func(string, ...any)) error {
	before, start := map[string][]float64{}, map[string][]float64{}
	for _, p := range g.pairs {
		start[p.variable] = r.get(p.variable)
		before[p.gradient] = r.get(p.gradient)
	}
	g.forward()
	g.backward()
	if err := r.b.Sync(); err != nil {
		return err
	}
	after := map[string][]float64{}
	for _, p := range g.pairs {
		after[p.gradient] = r.get(p.gradient)
		if p.added {
			for i, v := range before[p.gradient] {
				after[p.gradient][i] -= v
			}
		}
	}
	if g.also != nil {
		if err := r.matches(g.also()); err != nil {
			return err
		}
	}
	for _, p := range g.pairs {
		r.set(p.variable, start[p.variable])
	}
	for _, p := range g.pairs {
		if err := g.differences(r, p, start[p.variable], after[p.gradient], logf); err != nil {
			return err
		}
	}
	if err := r.b.Sync(); err != nil {
		return err
	}
	return r.err
}

// differences compares the gradient of one variable with slopes of the loss.
func (g *gradients) differences(r *rig, p pair, at, gradient []float64, logf func(string, ...any)) error {
	length, most := norm(gradient), 0.0
	if !(length > 0) || math.IsInf(length, 0) {
		return fmt.Errorf("%s: the gradient's norm is %g", p.gradient, length)
	}
	direction := make([]float64, len(at))
	try := func(what string) error {
		want := g.slope(r, p.variable, at, direction)
		got := dot(direction, gradient)
		most = max(most, math.Abs(got-want)/length)
		if !(math.Abs(got-want) <= maxGradientError*length) {
			return fmt.Errorf("%s: slope of the loss along %s of %s is %.12g, the backward's %.12g", p.gradient, what, p.variable, want, got)
		}
		return nil
	}
	random := normal("direction "+p.variable, 1)
	for i := range 4 {
		for j := range direction {
			direction[j] = random(j)
		}
		if err := try(fmt.Sprintf("random direction %d", i)); err != nil {
			return err
		}
	}
	clear(direction)
	elements := rng("elements " + p.variable)
	for range min(12, len(at)) {
		j := elements.IntN(len(at))
		direction[j] = 1
		if err := try(fmt.Sprintf("element %d", j)); err != nil {
			return err
		}
		direction[j] = 0
	}
	r.set(p.variable, at)
	logf("%s: %d elements, error %.1e", p.variable, len(at), most)
	return nil
}

// slope is the derivative of the loss along a direction, by the five-point formula.
func (g *gradients) slope(r *rig, name string, at, direction []float64) float64 {
	moved := make([]float64, len(at))
	loss := func(steps float64) float64 {
		for i, v := range at {
			moved[i] = v + steps*differenceStep*direction[i]
		}
		r.set(name, moved)
		r.pack()
		return g.forward()
	}
	return (8*(loss(1)-loss(-1)) - (loss(2) - loss(-2))) / (12 * differenceStep)
}

// matches compares tensors with what the formulas say.
func (r *rig) matches(formulas map[string][]float64) error {
	for name, want := range formulas {
		got := r.get(name)
		if len(got) != len(want) {
			return fmt.Errorf("%s has %d elements, by the formula %d", name, len(got), len(want))
		}
		for i, w := range want {
			if d := math.Abs(got[i] - w); !(d <= maxFormulaError*norm(want)) {
				return fmt.Errorf("%s: element %d is %.15g, by the formula %.15g", name, i, got[i], w)
			}
		}
	}
	return nil
}

func norm(v []float64) float64 { return math.Sqrt(dot(v, v)) }

// against is the linear functional Σ weights·tensor of a tensor given by name.
func (r *rig) against(name string, weights []float64) float64 { return dot(r.get(name), weights) }

// slopes turns du, which holds the modules' scales, into the gradient of the loss in u.
func slopes(l *ops.LoRA, du []float64) []float64 {
	g := make([]float64, len(du))
	for i := range l.Modules {
		for t := 0; t < len(du); t += l.Width {
			for c := l.Col(i); c < l.Col(i)+l.Modules[i].Rank; c++ {
				g[t+c] = du[t+c] / float64(l.Modules[i].Scale)
			}
		}
	}
	return g
}
