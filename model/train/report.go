package train

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qlora/internal/curves"
	"qlora/internal/tfevents"
)

// Folders of a run that show its figures.
const (
	eventsName = "runs"   // TensorBoard's event files
	imagesName = "images" // a PNG a tag
)

// scalars returns the figures of a line of the log by the tags that transformers gives them: eval/x
// for eval_x, train/x for every other number. The closing line, which is of no step, has none.
func scalars(line []byte) (step int, values []tfevents.Scalar, err error) {
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return 0, nil, err
	}
	at, ok := fields["step"].(float64)
	if !ok {
		return 0, nil, nil
	}
	_, evaluation := fields["eval_loss"]
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		v, number := fields[key].(float64)
		name, ofEval := strings.CutPrefix(key, "eval_")
		switch {
		case !number || key == "step":
		case ofEval:
			values = append(values, tfevents.Scalar{Tag: "eval/" + name, Value: v})
		case !evaluation: // the training figures of that step have a line of their own
			values = append(values, tfevents.Scalar{Tag: "train/" + key, Value: v})
		}
	}
	return int(at), values, nil
}

// openEvents starts an event file. That of a resumed run makes readers forget what other files have
// from the checkpoint's step on, and gives that step's lines again: an evaluation may follow it.
func (l *loop) openEvents() error {
	var err error
	if l.events, err = tfevents.Create(filepath.Join(l.Dir, eventsName)); err != nil || l.from == 0 {
		return err
	}
	if err := l.events.Purge(l.from); err != nil {
		return err
	}
	return l.logged(func(step int, values []tfevents.Scalar) error {
		if step < l.from {
			return nil
		}
		return l.events.Scalars(step, values)
	})
}

// logged calls f with the figures of every line of the log so far.
func (l *loop) logged(f func(step int, values []tfevents.Scalar) error) error {
	path := filepath.Join(l.Dir, LogName)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		step, values, err := scalars(line)
		if err == nil {
			err = f(step, values)
		}
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", path, n, err)
		}
	}
	return nil
}

// closeReports ends the event file and draws every figure of the log.
func (l *loop) closeReports() error {
	if l.events == nil {
		return nil
	}
	if err := l.events.Close(); err != nil {
		return err
	}
	series := map[string][]curves.Point{}
	err := l.logged(func(step int, values []tfevents.Scalar) error {
		for _, v := range values {
			series[v.Tag] = append(series[v.Tag], curves.Point{Step: float64(step), Value: v.Value})
		}
		return nil
	})
	if err != nil {
		return err
	}
	dir := filepath.Join(l.Dir, imagesName)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for tag, points := range series {
		if err := curves.Draw(filepath.Join(dir, strings.ReplaceAll(tag, "/", "_")+".png"), tag, points, tag == "train/loss"); err != nil {
			return fmt.Errorf("drawing %s: %w", tag, err)
		}
	}
	return nil
}
