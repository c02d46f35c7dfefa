package train_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"qlora/model/cpu"
	"qlora/model/ops"
	"qlora/model/train"
)

// planter is a backend that damages what one op of one step leaves.
type planter struct {
	ops.Backend
	t    *testing.T
	step uint32 // in which to plant; an evaluation has step 0
	now  uint32
	done bool
	stay bool // plant in every op of the step, as what a model computes would be

	load     func() // before the step
	swiglu   func(act ops.Tensor)
	headLoss func(dxn, nll ops.Tensor)
	loraGrad func(jobs []ops.GradJob)
}

// due reports, once, that it is the step to plant in.
func (p *planter) due(set bool) bool {
	due := set && (!p.done || p.stay) && p.now == p.step
	p.done = p.done || due
	return due
}

func (p *planter) LoadBatch(b *ops.Batch, h ops.HostBatch) error {
	p.now = h.Step
	if p.due(p.load != nil) {
		p.load()
	}
	return p.Backend.LoadBatch(b, h)
}

func (p *planter) SwiGLU(act, u, gateup ops.Tensor, l *ops.LoRA, b *ops.Batch) {
	p.Backend.SwiGLU(act, u, gateup, l, b)
	if p.due(p.swiglu != nil) {
		p.swiglu(act)
	}
}

func (p *planter) HeadLoss(dxn, nll, hit, xn ops.Tensor, head ops.Weight, b *ops.Batch) {
	p.Backend.HeadLoss(dxn, nll, hit, xn, head, b)
	if p.due(p.headLoss != nil) {
		p.headLoss(dxn, nll)
	}
}

func (p *planter) LoRAGrad(jobs []ops.GradJob, b *ops.Batch) {
	p.Backend.LoRAGrad(jobs, b)
	if p.due(p.loraGrad != nil) {
		p.loraGrad(jobs)
	}
}

// put writes v to every stride-th element of x, the first included.
func (p *planter) put(x ops.Tensor, v float64, stride int) {
	values, err := ops.ReadF32(p.Backend, x)
	if err != nil {
		p.t.Fatal(err)
	}
	for i := 0; i < len(values); i += stride {
		values[i] = float32(v)
	}
	if err := ops.WriteF32(p.Backend, x, values); err != nil {
		p.t.Fatal(err)
	}
}

// state is the bytes of adapter and optimizer.
func state(t *testing.T, r *train.Run) []byte {
	t.Helper()
	var all []byte
	for _, x := range []ops.Tensor{r.Model.Params, r.Model.Moment1, r.Model.Moment2} {
		raw := make([]byte, x.Bytes())
		if err := r.Backend.Read(raw, x); err != nil {
			t.Fatal(err)
		}
		all = append(all, raw...)
	}
	return all
}

// A value that is not finite, wherever it comes up and whether or not that step is logged, ends the run
// with neither adapter nor optimizer changed; the error names step, samples and the first such tensor.
func TestNonFiniteIsKeptOut(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	const one, both, some = `random\.jsonl, row \d+`, `(random\.jsonl, row \d+(; )?){2}`, `(random\.jsonl, row \d+(; )?)+`
	factor := func(layer int, name string) string {
		return fmt.Sprintf(`base_model\.model\.model\.layers\.%d\.%s\.weight`, layer, name)
	}
	for _, c := range []struct {
		name            string
		plant           func(p *planter, r *train.Run)
		tensor, samples string // patterns
	}{
		{"parameter", func(p *planter, r *train.Run) {
			p.load = func() { p.put(r.Model.Params.Slice("", 5, 1), nan, 1) }
		}, "parameter " + factor(0, `self_attn\.q_proj\.lora_A`), both},
		{"huge activations", func(p *planter, r *train.Run) {
			p.swiglu = func(act ops.Tensor) { p.put(act, 3e38, 1) }
		}, "the loss", some},
		{"NaN activation", func(p *planter, r *train.Run) {
			p.swiglu = func(act ops.Tensor) { p.put(act, nan, act.Cols()) }
		}, "the loss", some},
		{"activation that is NaN again", func(p *planter, r *train.Run) {
			p.stay, p.swiglu = true, func(act ops.Tensor) { p.put(act, nan, act.Cols()) }
		}, `the activation after model\.layers\.0\.mlp\.gate_proj`, some},
		{"product that overflows", func(p *planter, r *train.Run) {
			p.stay, p.swiglu = true, func(act ops.Tensor) { p.put(act, 3e38, 1) }
		}, `the output of model\.layers\.0\.mlp\.down_proj`, some},
		{"loss NaN, gradient finite", func(p *planter, r *train.Run) {
			p.headLoss = func(_, nll ops.Tensor) { p.put(nll.Rows(0, 1), nan, 1) }
		}, "the loss", one},
		{"loss infinite, gradient finite", func(p *planter, r *train.Run) {
			p.headLoss = func(_, nll ops.Tensor) { p.put(nll.Rows(0, 1), inf, 1) }
		}, "the loss", one},
		{"gradient of the head's input", func(p *planter, r *train.Run) {
			p.headLoss = func(dxn, _ ops.Tensor) { p.put(dxn, nan, dxn.Cols()) }
		}, "the gradient of " + factor(1, `mlp\.down_proj\.lora_B`), both},
		{"gradient of one factor", func(p *planter, r *train.Run) {
			p.loraGrad = func(jobs []ops.GradJob) { p.put(jobs[1].LoRA.Modules[1].DA, inf, 1) }
		}, "the gradient of " + factor(1, `mlp\.up_proj\.lora_A`), both},
		{"norm", func(p *planter, r *train.Run) {
			p.loraGrad = func(jobs []ops.GradJob) { p.put(jobs[1].LoRA.Modules[1].DA, 3e38, 1) }
		}, "the norm of the gradient", both},
	} {
		for _, step := range []uint32{1, 4, 6} {
			t.Run(fmt.Sprintf("%s in step %d", c.name, step), func(t *testing.T) {
				o := options()
				o.LoggingSteps, o.LoggingFirstStep, o.EvalStrategy, o.SaveStrategy = 6, false, train.Never, train.Never
				p := &planter{Backend: cpu.New[float32](), t: t, step: step}
				r := newRunOn(t, p, t.TempDir(), o)
				var before []byte
				c.plant(p, r)
				plant := p.load
				r.Hooks.Step = func(at train.Progress) {
					if at.Step == int(step)-1 {
						before = state(t, r)
					}
				}
				if step == 1 {
					before = state(t, r)
				}
				if plant != nil { // is part of the state it must not change
					p.load = func() { plant(); before = state(t, r) }
				}
				_, err := r.Start(t.Context(), "")
				var bad *train.NonFinite
				if !errors.As(err, &bad) {
					t.Fatalf("%v, want *NonFinite", err)
				}
				pattern := fmt.Sprintf(`^step %d: %s.* is not finite, .* Samples: %s\. `, step, c.tensor, c.samples)
				if bad.Step != int(step) || !regexp.MustCompile(pattern).MatchString(err.Error()) {
					t.Errorf("%v, want %s", err, pattern)
				}
				if !bytes.Equal(state(t, r), before) {
					t.Error("adapter or optimizer changed")
				}
			})
		}
	}
}

func TestNonFiniteEvaluation(t *testing.T) {
	p := &planter{Backend: cpu.New[float32](), t: t}
	p.headLoss = func(_, nll ops.Tensor) { p.put(nll.Rows(2, 3), math.Inf(1), 1) }
	r := newRunOn(t, p, t.TempDir(), options())
	_, err := r.Start(t.Context(), "")
	var bad *train.NonFinite
	if !errors.As(err, &bad) || bad.Step != 7 || bad.Tensor != "the loss" || len(bad.Samples) != 1 {
		t.Errorf("%v, want *NonFinite of the evaluation after step 7", err)
	}
}

// A rate so large that a finite gradient makes infinite parameters leaves no checkpoint of them.
func TestNonFiniteIsNotSaved(t *testing.T) {
	o := options()
	o.LearningRate, o.MaxGradNorm, o.Schedule, o.WarmupRatio, o.SaveSteps = 1e38, 0, "constant", 0, 1
	dir := t.TempDir()
	_, err := newRun(t, dir, o).Start(t.Context(), "")
	var bad *train.NonFinite
	if !errors.As(err, &bad) || bad.Step != 1 || !strings.HasPrefix(bad.Tensor, "parameter base_model.") {
		t.Errorf("%v, want *NonFinite in the first checkpoint", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*checkpoint*")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
