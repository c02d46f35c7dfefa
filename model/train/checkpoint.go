package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"qlora/internal/atomicfile"
	"qlora/model/ops"
	"qlora/model/weights"
)

// Files of a checkpoint beside the adapter's.
const (
	ArgsName      = "args.json"
	optimizerName = "optimizer.safetensors" // AdamW's two moments
	progressName  = "progress.json"         // position, and what the run depends on
	trainerName   = "trainer_state.json"
)

func checkpointName(step int) string { return fmt.Sprintf("checkpoint-%d", step) }

func (l *loop) checkpointDir(step int) string { return filepath.Join(l.Dir, checkpointName(step)) }

// best is the checkpoint of the best evaluation: "" where that step has none.
func (l *loop) best() string {
	if l.at.Best == 0 || l.Options.SaveStrategy == Never {
		return ""
	}
	dir := l.checkpointDir(l.at.Best)
	if _, err := os.Stat(dir); err != nil && l.at.Best != l.at.Step { // the present step's is written, or about to be
		return ""
	}
	return dir
}

// save writes the checkpoint of the step just done, whole or not at all, and removes those that
// save_total_limit does not keep. A step's checkpoint never changes: one that is there already stays.
func (l *loop) save() error {
	dir := l.checkpointDir(l.at.Step)
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = atomicfile.WriteDir(dir, l.fill); err != nil {
			err = fmt.Errorf("saving %s, which takes %s%s: %w", dir, bytesText(l.checkpointBytes()), freeText(l.Dir), err)
		}
	}
	if err != nil {
		return err
	}
	return l.prune()
}

// fill writes a checkpoint's files into dir.
func (l *loop) fill(dir string) error {
	params, err := l.readFinite(l.Model.Params, "parameter ")
	if err != nil {
		return err
	}
	if err := l.Set.Save(dir, params, l.Base); err != nil {
		return err
	}
	var moments []weights.Entry
	for _, m := range l.moments() {
		v, err := l.readFinite(m.tensor, m.prefix)
		if err != nil {
			return err
		}
		moments = append(moments, l.Set.Entries(v, m.prefix)...)
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, optimizerName), weights.PTMetadata, moments); err != nil {
		return err
	}
	settings, err := l.settings()
	if err != nil {
		return err
	}
	state, err := json.MarshalIndent(progress{l.at, settings}, "", "  ")
	if err != nil {
		return err
	}
	trainer, err := l.trainerState()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{progressName, append(state, '\n')}, {trainerName, trainer}, {ArgsName, l.Args}, {"README.md", l.card()}} {
		if f.data == nil {
			continue
		}
		if err := writeFile(dir, f.name, f.data); err != nil {
			return err
		}
	}
	return writeSums(dir)
}

// moment is one of AdamW's, by the names torch has for them.
type moment struct {
	prefix string // of its tensors in the file
	tensor ops.Tensor
}

func (r *Run) moments() []moment {
	return []moment{{"exp_avg.", r.Model.Moment1}, {"exp_avg_sq.", r.Model.Moment2}}
}

// readFinite reads the parameters or what shares their layout, for a checkpoint: which never holds a value
// that is not finite, such as an update of too large a rate makes of a finite gradient.
func (l *loop) readFinite(t ops.Tensor, what string) ([]float32, error) {
	flat, err := ops.ReadF32(l.Backend, t)
	if err != nil {
		return nil, err
	}
	if names := l.spoiled(flat); len(names) > 0 {
		return nil, &NonFinite{Step: l.at.Step, Tensor: what + names[0]}
	}
	return flat, nil
}

// card is the adapter's README: what hubs and people read first.
func (l *loop) card() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "---\nbase_model: %s\nlibrary_name: peft\ntags:\n- lora\n- qlora\n---\n\n", l.Base.Name)
	fmt.Fprintf(&b, "LoRA adapter for `%s`: rank %d, alpha %g, %d modules, %d parameters, %d of %d optimizer steps on %d samples.\n",
		l.Base.Name, l.Set.Config.R, l.Set.Config.Alpha, l.Set.Modules(), l.Set.Len(), l.at.Step, l.total, l.Samples.Len())
	return b.Bytes()
}

var checkpointPattern = regexp.MustCompile(`^checkpoint-(\d+)$`)

// CheckpointStep returns the step in the name of a checkpoint's folder; ok is false for other names.
func CheckpointStep(dir string) (step int, ok bool) {
	m := checkpointPattern.FindStringSubmatch(filepath.Base(dir))
	if m == nil {
		return 0, false
	}
	step, err := strconv.Atoi(m[1])
	return step, err == nil
}

// Checkpoints lists the steps of a run's complete checkpoints, ascending.
func Checkpoints(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var steps []int
	for _, e := range entries {
		if step, ok := CheckpointStep(e.Name()); ok && e.IsDir() {
			steps = append(steps, step)
		}
	}
	slices.Sort(steps)
	return steps, nil
}

var unfinishedPattern = regexp.MustCompile(`^\.tmp-checkpoint-\d+$`)

// removeUnfinished removes what a process that was killed left of checkpoints it was writing or removing.
func removeUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if unfinishedPattern.MatchString(e.Name()) && e.IsDir() {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// prune keeps save_total_limit checkpoints: the last ones, and the best whatever its age.
func (l *loop) prune() error {
	if l.Options.SaveTotalLimit == 0 {
		return nil
	}
	steps, err := Checkpoints(l.Dir)
	if err != nil {
		return err
	}
	excess := len(steps) - l.Options.SaveTotalLimit
	for _, step := range steps[:len(steps)-1] {
		if excess <= 0 {
			break
		}
		if step == l.at.Best {
			continue
		}
		if err := atomicfile.RemoveDir(l.checkpointDir(step)); err != nil {
			return err
		}
		excess--
	}
	return nil
}

var runPattern = regexp.MustCompile(`^v(\d+)-`)

// NewDir makes the folder of a new run below output: v{N}-{YYYYMMDD-HHMMSS}, N one more than any there.
func NewDir(output string, now time.Time) (string, error) {
	entries, err := os.ReadDir(output)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	next := 0
	for _, e := range entries {
		if m := runPattern.FindStringSubmatch(e.Name()); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				next = max(next, n+1)
			}
		}
	}
	dir := filepath.Join(output, fmt.Sprintf("v%d-%s", next, now.Format("20060102-150405")))
	return dir, os.MkdirAll(dir, 0o777)
}
