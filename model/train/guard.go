package train

import (
	"fmt"
	"math"
	"slices"

	"qlora/model/data"
	"qlora/model/ops"
)

// NonFinite is a step with a NaN or an infinity. It changed neither adapter nor optimizer, and no
// checkpoint holds what was found.
type NonFinite struct {
	Step int
	// Tensor is the first that is not finite, in the order a step computes: a parameter, an activation, the loss, the
	// gradients from the last layer down, their norm; of a checkpoint also a moment.
	Tensor string
	// Samples are file and row of those whose own loss is not finite; where none is, all of the step.
	// A checkpoint has none.
	Samples []string
}

func (e *NonFinite) Error() string {
	text := fmt.Sprintf("step %d: %s is not finite, so nothing was updated or saved. ", e.Step, e.Tensor)
	if len(e.Samples) == 0 {
		return text + "Go on from an older checkpoint, or lower --learning_rate"
	}
	return text + fmt.Sprintf("Samples: %s. Look at those rows, or lower --learning_rate", list(e.Samples, 5))
}

func list(items []string, most int) string {
	text := ""
	for i, s := range items {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(items)-most)
		}
		if i > 0 {
			text += "; "
		}
		text += s
	}
	return text
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// nonFinite explains a step whose loss or gradient is not finite. suspects are the samples whose own
// loss is not, activation what made it so, if one did. Only here are the parameters and gradients read back.
func (r *Run) nonFinite(step int, samples []data.Sample, suspects map[int32]bool, activation string) error {
	e := &NonFinite{Step: step}
	for i, s := range samples {
		if len(suspects) == 0 || suspects[int32(i)] {
			e.Samples = append(e.Samples, fmt.Sprintf("%s, row %d", s.File, s.Row))
		}
	}
	params, err := ops.ReadF32(r.Backend, r.Model.Params)
	if err != nil {
		return err
	}
	grads, err := ops.ReadF32(r.Backend, r.Model.Grads)
	if err != nil {
		return err
	}
	spoiledParams, spoiledGrads := r.spoiled(params), r.spoiled(grads)
	switch {
	case len(spoiledParams) > 0:
		e.Tensor = "parameter " + spoiledParams[0]
	case activation != "":
		e.Tensor = activation
	case len(suspects) > 0:
		e.Tensor = "the loss"
	case len(spoiledGrads) > 0:
		e.Tensor = "the gradient of " + spoiledGrads[len(spoiledGrads)-1]
	default:
		e.Tensor = "the norm of the gradient, though no element of it,"
	}
	return e
}

// spoiled lists the factors, from the first layer up, that have an element in flat (parameters or
// what shares their layout) that is not finite.
func (r *Run) spoiled(flat []float32) []string {
	var names []string
	r.Set.Named(func(name string, rows, cols, offset int) {
		if slices.ContainsFunc(flat[offset:offset+rows*cols], func(v float32) bool { return !finite(float64(v)) }) {
			names = append(names, name)
		}
	})
	return names
}
