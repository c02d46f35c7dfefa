package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"qlora/internal/strictjson"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/weights"
)

// maxProgress bounds the size of progress.json, which has a record for every line of the log.
const maxProgress = 256 << 20

// progress is progress.json. A run may go on from it only with the same settings: all that the bits of
// the result depend on, each under the flag that sets it.
type progress struct {
	Position position               `json:"position"`
	Settings strictjson.Map[string] `json:"settings"`
}

// history is the log so far.
type history []Record

// minRecord is the length of the shortest record, with its comma. One takes three times that in memory.
const minRecord = len(`{"step":1,"epoch":0},`)

// UnmarshalJSON holds the number of records to the length of their text.
func (h *history) UnmarshalJSON(text []byte) error {
	if text[0] != '[' {
		return json.Unmarshal(text, (*[]Record)(h))
	}
	n := strictjson.Elements(text)
	if n > len(text)/minRecord+1 {
		return fmt.Errorf("%d elements in %d bytes are no records of a log", n, len(text))
	}
	*h = make(history, 0, n)
	return json.Unmarshal(text, (*[]Record)(h))
}

// settings lists what a resumed run must share with the run that saved.
func (r *Run) settings() (map[string]string, error) {
	o := r.Options
	o.LoggingSteps, o.LoggingFirstStep, o.SaveStrategy, o.SaveSteps, o.SaveTotalLimit = 0, false, "", 0, 0
	o.EvalStrategy, o.EvalSteps, o.EarlyStop = "", 0, 0
	settings := map[string]string{}
	for name, v := range map[string]any{"training option": o, "lora option": r.Set.Config} {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		fields := map[string]json.RawMessage{}
		if err := json.Unmarshal(text, &fields); err != nil {
			return nil, err
		}
		for key, value := range fields {
			settings[name+" "+key] = string(value)
		}
	}
	settings["dataset"] = r.Samples.Fingerprint()
	settings["base model"] = r.Base.Fingerprint
	settings["backend"] = r.Backend.Name()
	settings["packed row"] = fmt.Sprint(r.Model.Batch.MaxT)
	return settings, nil
}

// resume takes adapter, moments and position from a checkpoint of a run with the same settings.
func (l *loop) resume(dir string, order data.Order) (position, error) {
	folder, err := weights.OpenFolder(dir)
	if err != nil {
		return position{}, fmt.Errorf("--resume_from_checkpoint: %w", err)
	}
	defer folder.Close()
	at, err := l.readProgress(folder, order)
	if err != nil {
		return position{}, err
	}
	if err := checkSums(folder, progressName, optimizerName, lora.ConfigFile, lora.WeightsFile); err != nil {
		return position{}, err
	}
	if err := l.readMoments(folder); err != nil {
		return position{}, err
	}
	set, params, _, err := lora.Load(dir, l.Model.Config)
	if err != nil {
		return position{}, err
	}
	if set.Len() != l.Set.Len() {
		return position{}, fmt.Errorf("%s: the adapter has %d parameters, not %d", dir, set.Len(), l.Set.Len())
	}
	return at, ops.WriteF32(l.Backend, l.Model.Params, params)
}

// readProgress reads progress.json, and holds it to the settings of this run.
func (l *loop) readProgress(folder *weights.Folder, order data.Order) (position, error) {
	text, err := folder.ReadFile(progressName, maxProgress)
	if errors.Is(err, fs.ErrNotExist) {
		return position{}, fmt.Errorf("--resume_from_checkpoint: not a checkpoint to go on from: %w", err)
	} else if err != nil {
		return position{}, err
	}
	path := folder.Path(progressName)
	p, err := parseProgress(text)
	if err != nil {
		return position{}, fmt.Errorf("%s: %w", path, err)
	}
	now, err := l.settings()
	if err != nil {
		return position{}, err
	}
	for _, key := range lora.SortedKeys(now) {
		if p.Settings[key] != now[key] {
			return position{}, fmt.Errorf("--resume_from_checkpoint %s: the %s was %.200s and is now %.200s: a run can only go on with the settings it was started with; "+
				"to start a new run from this adapter, give --adapters %[1]s instead", folder.Path(""), key, orNone(p.Settings[key]), orNone(now[key]))
		}
	}
	if err := p.Position.check(order, l.Options.StepSamples, l.total); err != nil {
		return position{}, fmt.Errorf("%s: %w", path, err)
	}
	return p.Position, nil
}

func orNone(s string) string {
	if s == "" {
		return "unset"
	}
	return s
}

func parseProgress(text []byte) (progress, error) {
	var p progress
	err := strictjson.Unmarshal(text, maxProgress, &p)
	return p, err
}

// check refuses a position in which no run of these steps can be.
func (p position) check(order data.Order, stepSamples, total int) error {
	perEpoch := order.StepsPerEpoch(stepSamples)
	c := p.Cursor
	switch {
	case p.Step < 1 || p.Step > total:
		return fmt.Errorf("step %d of a run of %d steps", p.Step, total)
	case c.Epoch < 0 || c.Epoch > p.Step || c.Index < 0 || c.Index >= order.N || c.Index%stepSamples != 0 || c.Epoch*perEpoch+c.Index/stepSamples != p.Step:
		return fmt.Errorf("cursor %+v is not where step %d ends, at %d steps an epoch", c, p.Step, perEpoch)
	case p.Logged < 0 || p.Logged > p.Step || p.Steps != p.Step-p.Logged:
		return fmt.Errorf("steps_since_last_log is %d, but step %d was the last to be logged before step %d", p.Steps, p.Logged, p.Step)
	case p.Tested < 0 || p.Tested > p.Step || p.Best < 0 || p.Best > p.Tested || p.Saved < 0 || p.Saved > p.Step || p.Stale < 0:
		return fmt.Errorf("evaluated %d, best_step %d, saved %d, stale %d do not go with step %d", p.Tested, p.Best, p.Saved, p.Stale, p.Step)
	}
	for _, t := range []tally{p.Since, p.Total} {
		if t.Labels < 0 || t.Tokens < 0 || t.Hits < 0 {
			return fmt.Errorf("a negative count in %+v", t)
		}
	}
	last := 0
	for i, r := range p.History {
		if r.Step < last || r.Step > p.Step {
			return fmt.Errorf("history[%d] is of step %d, between steps %d and %d", i, r.Step, last, p.Step)
		}
		last = r.Step
	}
	return nil
}

func (r *Run) readMoments(folder *weights.Folder) error {
	file, err := folder.OpenSafetensors(optimizerName)
	if err != nil {
		return err
	}
	defer file.Close()
	flat := make([]float32, r.Set.Len())
	for _, m := range r.moments() {
		if err := r.Set.ReadEntries(file, m.prefix, flat); err != nil {
			return fmt.Errorf("%s: %w", folder.Path(optimizerName), err)
		}
		if err := ops.WriteF32(r.Backend, m.tensor, flat); err != nil {
			return err
		}
	}
	return nil
}
