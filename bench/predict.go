package bench

import (
	"fmt"
	"strings"

	"qlora/bench/result"
	"qlora/model/ops"
	"qlora/model/plan"
	"qlora/model/weights"
)

// Planner predicts steps on cards that are not here, as `qlora plan` does.
type Planner struct {
	Sizes func(plan.Card) ops.Sizes
	Host  int64 // bytes of the host's memory that may be pinned
}

// Predict is the seconds of a step on a card, and what the run keeps less of there. It fails where the step is of no shape
// that is known, or does not fit.
func (p Planner) Predict(step result.Row, c plan.Card) (seconds float64, how string, err error) {
	src, err := weights.NewRandom(step.Params["model"], 1)
	if err != nil {
		return 0, "", err
	}
	t, err := Training{Name: step.Params["model"], Source: src}.WithParams(step.Params)
	if err != nil {
		return 0, "", err
	}
	choice, err := t.choose(p.Sizes(c), Room{Free: int64(c.GiB*(1<<30)) - plan.Context, Host: p.Host, Card: c})
	if err != nil {
		return 0, "", fmt.Errorf("bench: %s on the %s: %w", step.Key(), c.Title, err)
	}
	return choice.Meter.Seconds * float64(t.Rows), strings.Join(fallbacks(choice), ", "), nil
}
