package train_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qlora/model/train"
)

func TestTypicalStep(t *testing.T) {
	for _, c := range []struct {
		seconds []float64
		want    float64
	}{
		{nil, 0},
		{[]float64{9}, 9},
		{[]float64{9, 5, 4}, 5},
		{[]float64{9, 5, 4, 1}, 1},
		{[]float64{9, 5, 4, 1, 3, 2, 8}, 2.5},
	} {
		if got := train.Typical(c.seconds); got != c.want {
			t.Errorf("of %v: %v, want %v", c.seconds, got, c.want)
		}
	}
}

// TestStepSeconds finds the time of one step in every record of training, and the median in the closing line.
func TestStepSeconds(t *testing.T) {
	dir := t.TempDir()
	result, err := newRun(t, dir, options()).Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, train.LogName))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i, line := range lines {
		var r struct {
			Loss   *float64
			Median float64 `json:"train_step_seconds"`
			One    float64 `json:"step_seconds"`
			Mean   float64 `json:"train_speed(s/it)"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		last := i == len(lines)-1
		switch {
		case last && (r.Median <= 0 || r.Median != result.StepSeconds || r.Median > result.Seconds):
			t.Errorf("the median of the steps is %v, and %v in the result of a run of %v s", r.Median, result.StepSeconds, result.Seconds)
		case !last && r.Loss != nil && (r.One <= 0 || r.One > result.Seconds):
			t.Errorf("%s: step_seconds is %v in a run of %v s", line, r.One, result.Seconds)
		case !last && r.Loss == nil && r.One != 0:
			t.Errorf("%s: an evaluation tells the time of a step", line)
		}
	}
}
