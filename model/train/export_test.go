package train

import "qlora/model/data"

// ParseProgress reads a progress.json, and holds it to a run of 20 steps on 19 samples, 2 a step.
func ParseProgress(text []byte) (any, error) {
	p, err := parseProgress(text)
	if err != nil {
		return nil, err
	}
	return p, p.Position.check(data.Order{N: 19}, 2, 20)
}

// CheckpointBytes is the estimate of a checkpoint's size.
func CheckpointBytes(r *Run) int64 { return (&loop{Run: r}).checkpointBytes() }

// Typical is the time of a typical step of a run whose steps took so long.
func Typical(seconds []float64) float64 { return typical(seconds) }
