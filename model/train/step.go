package train

import (
	"context"
	"math"

	"qlora/model/data"
	"qlora/model/ops"
)

// tally sums what the label rows of some samples gave.
type tally struct {
	NLL    float64 `json:"nll"`
	Hits   float64 `json:"hits"`
	Labels int     `json:"labels"`
	Tokens int     `json:"tokens"`
}

func (t *tally) add(o tally) {
	t.NLL += o.NLL
	t.Hits += o.Hits
	t.Labels += o.Labels
	t.Tokens += o.Tokens
}

// mean is the loss: nats a label token.
func (t tally) mean() float64 { return t.NLL / float64(max(t.Labels, 1)) }

// accuracy is the share of label tokens the model would have picked.
func (t tally) accuracy() float64 { return t.Hits / float64(max(t.Labels, 1)) }

// step runs one optimizer step on samples: number step, counted from 1. Cancelling ctx leaves the
// parameters as they were.
func (r *Run) step(ctx context.Context, step int, samples []data.Sample, lr float64) (tally, float64, error) {
	rows, err := data.Pack(samples, r.Model.Batch.MaxT, r.Options.Pad)
	if err != nil {
		return tally{}, 0, err
	}
	scale := float32(1 / float64(data.LabelTokens(samples)))
	r.Backend.Zero(r.Model.Grads)
	var sum tally
	suspects, activation := map[int32]bool{}, ""
	for _, row := range rows {
		if ctx.Err() != nil {
			return tally{}, 0, ctx.Err()
		}
		h := r.host(row)
		h.Seed, h.Step, h.LossScale, h.Noise = r.Options.Seed, uint32(step), scale, float32(r.Options.NEFTuneAlpha)
		if err := r.Model.Load(h); err != nil {
			return tally{}, 0, err
		}
		r.Model.Forward()
		r.Model.Backward()
		one, err := r.read(row, suspects)
		if err == nil && len(suspects) > 0 && activation == "" {
			activation, err = r.firstActivation()
		}
		if err != nil {
			return tally{}, 0, err
		}
		sum.add(one)
	}
	if len(suspects) > 0 { // their gradient may be finite all the same
		return tally{}, 0, r.nonFinite(step, samples, suspects, activation)
	}
	norm, err := r.update(step, lr)
	if err != nil {
		return tally{}, 0, err
	}
	if !finite(norm) {
		return tally{}, 0, r.nonFinite(step, samples, nil, "")
	}
	return sum, norm, nil
}

// Step runs one optimizer step and nothing else, no schedule, log or checkpoint: what a benchmark times. n counts from 1.
func (r *Run) Step(ctx context.Context, n int, samples []data.Sample, lr float64) error {
	_, _, err := r.step(ctx, n, samples, lr)
	return err
}

// update is AdamW on the accumulated gradients. It returns their norm before clipping.
func (r *Run) update(step int, lr float64) (float64, error) {
	m, o := r.Model, r.Options
	r.Backend.GradNorm(m.Norm, m.Grads)
	r.Backend.AdamW(m.Params, m.Moment1, m.Moment2, m.Grads, m.Norm, ops.AdamWArgs{
		Step: step, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, MaxNorm: o.MaxGradNorm,
		Groups: r.Set.Groups(lr, o.WeightDecay, o.LRRatio)})
	m.ParamsChanged()
	norm, err := ops.ReadF32(r.Backend, m.Norm)
	if err != nil {
		return 0, err
	}
	if norm[1] != 0 {
		return math.NaN(), nil
	}
	return float64(norm[0]), nil
}

// read sums the losses of the row just run, in row order, and notes samples whose loss is not finite.
func (r *Run) read(row data.Row, suspects map[int32]bool) (tally, error) {
	sum := tally{Labels: len(row.Rows), Tokens: len(row.IDs)}
	if sum.Labels == 0 {
		return sum, r.Backend.Sync()
	}
	nll, err := ops.ReadF32(r.Backend, r.Model.NLL.Rows(0, sum.Labels))
	if err != nil {
		return tally{}, err
	}
	hit, err := ops.ReadF32(r.Backend, r.Model.Hit.Rows(0, sum.Labels))
	if err != nil {
		return tally{}, err
	}
	for i, v := range nll {
		if !finite(float64(v)) {
			suspects[row.Sample[row.Rows[i]]] = true
		}
		sum.NLL += float64(v)
		sum.Hits += float64(hit[i])
	}
	return sum, r.Backend.Sync()
}

// host is a packed row as the backend takes it, with the loss of this run.
func (r *Run) host(row data.Row) ops.HostBatch {
	return ops.HostBatch{IDs: row.IDs, Pos: row.Pos, Sample: row.Sample, SegStart: row.SegStart, Rows: row.Rows, Targets: row.Targets,
		Smoothing: float32(r.Options.LabelSmoothing)}
}

// evaluate runs the evaluation samples without gradient. Dropout and noise are off; labels are smoothed, as by transformers'
// Trainer. A loss that is not finite is a *NonFinite.
func (r *Run) evaluate(ctx context.Context, step int) (tally, error) {
	rows, err := data.Pack(r.Eval, r.Model.Batch.MaxT, r.Options.Pad)
	if err != nil {
		return tally{}, err
	}
	r.Set.SetDropout(false)
	defer r.Set.SetDropout(true)
	var sum tally
	suspects, activation := map[int32]bool{}, ""
	for _, row := range rows {
		if ctx.Err() != nil {
			return tally{}, ctx.Err()
		}
		if err := r.Model.Load(r.host(row)); err != nil {
			return tally{}, err
		}
		r.Model.Forward()
		r.Model.Loss()
		one, err := r.read(row, suspects)
		if err == nil && len(suspects) > 0 && activation == "" {
			activation, err = r.firstActivation()
		}
		if err != nil {
			return tally{}, err
		}
		sum.add(one)
	}
	if len(suspects) > 0 {
		return tally{}, r.nonFinite(step, r.Eval, suspects, activation)
	}
	return sum, nil
}
