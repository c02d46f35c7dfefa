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

// argsJSON is args.json: every flag of the run by name with its value, as ms-swift writes it. What was settled since the
// flags were read replaces the flag: the model's place, the template, its system.
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

// restore is restoreAll of a verb that takes one adapter.
func (f *modelFlags) restore(e *env) error {
	f.newest(e)
	list, err := f.list()
	if err != nil {
		return err
	}
	if len(list) > 1 {
		return usageError{fmt.Errorf("--adapters takes one adapter here, not %d: several are for `qlora infer`, `qlora eval` and `qlora export`", len(list))}
	}
	_, err = f.restoreAll(e)
	return err
}

// restoreAll checks --adapters and fills what the user left out, of model, template and system, from the args.json of the
// adapters. They must agree about the model; for the rest the first that says something counts.
func (f *modelFlags) restoreAll(e *env) ([]namedDir, error) {
	list, err := f.list()
	if err != nil {
		return nil, err
	}
	given, from := f.Model, "" // from: the adapter that named the model
	for _, a := range list {
		if _, err := os.Stat(filepath.Join(a.dir, lora.ConfigFile)); err != nil {
			return nil, usageError{f.notAnAdapter(a.dir)}
		}
		if f.ignoreArgs {
			continue
		}
		saved, err := readArgs(a.dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case saved.RandomWeights && given == "":
			return nil, usageError{fmt.Errorf("--adapters %s was trained on random weights (%s), to measure by: it knows nothing, and fits no model", a.dir, saved.Model)}
		case given == "" && from != "" && saved.Model != f.Model:
			return nil, usageError{fmt.Errorf("--adapters: %s was trained on %s, and %s on %s: adapters of one base go together; if it is one model at two places, say which by --model", from, f.Model, a.dir, saved.Model)}
		}
		if f.Model == "" {
			f.Model, from = saved.Model, a.dir
			e.logf("model: %s, as %s says", f.Model, filepath.Join(a.dir, train.ArgsName))
		}
		if f.Template == "" {
			f.Template = saved.Template
		}
		if f.System == nil {
			f.System = saved.System
		} else if saved.System != nil && *saved.System != *f.System {
			e.logf("notice: %s was trained with another system prompt: %.80q, not %.80q", a.dir, *saved.System, *f.System)
		}
	}
	if len(list) > 0 && f.Model == "" && !f.ignoreArgs {
		return nil, usageError{fmt.Errorf("--adapters %s has no %s, which would name its base: add --model", list[0].dir, train.ArgsName)}
	}
	return list, nil
}

// newest keeps the last of several checkpoints of one run, which is what a pattern means where one adapter is asked for.
func (f *modelFlags) newest(e *env) {
	if last, ok := lastCheckpoint(f.Adapters); ok {
		e.logf("notice: --adapters names %d checkpoints of one run, as a pattern does: the last is used, %s. ms-swift would load each onto the one before", len(f.Adapters), last)
		f.Adapters = []string{last}
	}
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

// adapterDir is the folder of the first adapter, "" where there is none.
func (f *modelFlags) adapterDir() string {
	if list, err := f.list(); err == nil && len(list) > 0 {
		return list[0].dir
	}
	return ""
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
