package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"qlora/internal/strictjson"
	"qlora/model/lora"
	"qlora/model/train"
	"qlora/model/weights"
)

// savedArgs are the fields of args.json that another verb takes up.
type savedArgs struct {
	Model    string  `json:"model"`
	Template string  `json:"template"`
	System   *string `json:"system"` // null: the template's own

	RandomWeights bool `json:"random_weights"`

	QuantMethod string `json:"quant_method"`
	QuantBits   int    `json:"quant_bits"`
	DoubleQuant *bool  `json:"bnb_4bit_use_double_quant"`
}

// argsJSON is args.json: every flag of the run by name with its value, as ms-swift writes it.
// What was
// settled since the flags were read replaces the flag: the model's place, the template, its system.
func argsJSON(flags []*kong.Flag, b *base, m *modelFlags) (json.RawMessage, error) {
	args := make(map[string]any, len(flags))
	for _, f := range flags {
		args[f.Name] = f.Target.Interface()
	}
	model := m.Model
	if _, err := os.Stat(model); err == nil { // a path must be found from elsewhere too
		if model, err = filepath.Abs(model); err != nil {
			return nil, err
		}
	}
	maps.Copy(args, map[string]any{"model": model, "template": b.chat.Template.Name, "system": b.chat.Template.DefaultSystem})
	text, err := json.MarshalIndent(args, "", "  ")
	return append(text, '\n'), err
}

// restore checks --adapters and fills what the user left out, of model, template and system, from the
// adapter's args.json.
func (f *modelFlags) restore(e *env) error {
	if last, ok := lastCheckpoint(f.Adapters); ok {
		e.logf("notice: --adapters names %d checkpoints of one run, as a pattern does: the last is used, %s. ms-swift would load each onto the one before", len(f.Adapters), last)
		f.Adapters = []string{last}
	}
	if len(f.Adapters) > 1 {
		return usageError{fmt.Errorf("--adapters takes one adapter, not %d: blends are not supported", len(f.Adapters))}
	}
	dir := f.adapterDir()
	if dir == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, lora.ConfigFile)); err != nil {
		return usageError{f.notAnAdapter(dir)}
	}
	if f.ignoreArgs {
		return nil
	}
	saved, err := readArgs(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && f.Model == "":
		return usageError{fmt.Errorf("--adapters %s has no %s, which would name its base: add --model", dir, train.ArgsName)}
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case saved.RandomWeights && f.Model == "":
		return usageError{fmt.Errorf("--adapters %s was trained on random weights (%s), to measure by: it knows nothing, and fits no model", dir, saved.Model)}
	}
	if f.Model == "" {
		f.Model = saved.Model
		e.logf("model: %s, as %s says", f.Model, filepath.Join(dir, train.ArgsName))
	}
	if f.Template == "" {
		f.Template = saved.Template
	}
	if f.System == nil {
		f.System = saved.System
	}
	return nil
}

// lastCheckpoint returns the highest of several checkpoints of one run; ok is false where the folders are others.
func lastCheckpoint(dirs []string) (last string, ok bool) {
	most := -1
	for _, dir := range dirs {
		dir = filepath.Clean(dir)
		step, checkpoint := train.CheckpointStep(dir)
		if !checkpoint || filepath.Dir(dir) != filepath.Dir(filepath.Clean(dirs[0])) {
			return "", false
		}
		if step > most {
			last, most = dir, step
		}
	}
	return last, len(dirs) > 1
}

// notAnAdapter says what --adapters should have been.
func (f *modelFlags) notAnAdapter(dir string) error {
	steps, err := train.Checkpoints(dir)
	if err == nil && len(steps) > 0 {
		return fmt.Errorf("--adapters %s is the folder of a run: say which checkpoint, as in --adapters %s", dir, filepath.Join(dir, fmt.Sprintf("checkpoint-%d", steps[len(steps)-1])))
	}
	return fmt.Errorf("--adapters %s: no %s there: give the folder of a checkpoint or of another PEFT adapter", dir, lora.ConfigFile)
}

func (f *modelFlags) adapterDir() string {
	if len(f.Adapters) == 0 {
		return ""
	}
	return filepath.Clean(f.Adapters[0])
}

// maxArgs bounds the size of args.json.
const maxArgs = 16 << 20

// readArgs reads the args.json of an adapter's folder.
func readArgs(dir string) (savedArgs, error) {
	folder, err := weights.OpenFolder(dir)
	if err != nil {
		return savedArgs{}, err
	}
	defer folder.Close()
	text, err := folder.ReadFile(train.ArgsName, maxArgs)
	if err != nil {
		return savedArgs{}, err
	}
	var saved savedArgs
	if err := strictjson.Unmarshal(text, maxArgs, &saved); err != nil {
		return savedArgs{}, fmt.Errorf("%s: %w", folder.Path(train.ArgsName), err)
	}
	return saved, nil
}
