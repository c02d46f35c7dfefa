package train

import (
	"fmt"
	"math"
)

// schedule is the learning rate of each step, as transformers defines it.
type schedule struct {
	base          float64
	warmup, total int
	decay         func(progress float64) float64 // after the warm-up, progress from 0 to 1
}

// Schedules lists the learning-rate schedules.
var Schedules = []string{"cosine", "linear", "constant", "constant_with_warmup"}

func newSchedule(o Options, total int) (schedule, error) {
	s := schedule{base: o.LearningRate, total: total, warmup: o.WarmupSteps}
	if o.WarmupRatio > 0 {
		s.warmup = int(math.Ceil(float64(total) * o.WarmupRatio))
	}
	switch o.Schedule {
	case "cosine":
		s.decay = func(p float64) float64 { return max(0, 0.5*(1+math.Cos(math.Pi*p))) }
	case "linear":
		s.decay = func(p float64) float64 { return max(0, 1-p) }
	case "constant":
		s.warmup = 0
		fallthrough
	case "constant_with_warmup":
		s.decay = func(float64) float64 { return 1 }
	default:
		return schedule{}, fmt.Errorf("--lr_scheduler_type %q: choose from %v", o.Schedule, Schedules)
	}
	return s, nil
}

// rate is the learning rate of a step, counted from 1. The first step of a warm-up has rate 0.
func (s schedule) rate(step int) float64 {
	k := step - 1
	if k < s.warmup {
		return s.base * float64(k) / float64(max(1, s.warmup))
	}
	return s.base * s.decay(float64(k-s.warmup)/float64(max(1, s.total-s.warmup)))
}
