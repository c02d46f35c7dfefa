package lora

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qlora/internal/atomicfile"
	"qlora/internal/strictjson"
	"qlora/model/weights"
)

// PEFT's file names.
const (
	ConfigFile  = "adapter_config.json"
	WeightsFile = "adapter_model.safetensors"
)

// Base says which model an adapter belongs to.
type Base struct {
	Name        string // a hub id where one is known, else a bare name; never a path
	Fingerprint string // of its weights, "" where the file does not say
}

// fingerprintKey holds Base.Fingerprint in the metadata of the safetensors file, which PEFT does not
// read: a key of ours in adapter_config.json would make older PEFT refuse it.
const fingerprintKey = "qlora.base_fingerprint"

const maxConfigBytes = 1 << 20

// peftConfig is the part of adapter_config.json that has a meaning here.
type peftConfig struct {
	PeftType     string                  `json:"peft_type"`
	Base         string                  `json:"base_model_name_or_path"`
	R            int                     `json:"r"`
	Alpha        float64                 `json:"lora_alpha"`
	Dropout      float64                 `json:"lora_dropout"`
	Targets      json.RawMessage         `json:"target_modules"` // list of names, or a regular expression
	RSLoRA       bool                    `json:"use_rslora"`
	RankPattern  strictjson.Map[int]     `json:"rank_pattern"`
	AlphaPattern strictjson.Map[float64] `json:"alpha_pattern"`
}

// refused are settings of PEFT that change what an adapter computes and that are not run here. Their
// other values, named in the message, are harmless.
var refused = []struct{ key, harmless, why string }{
	{"use_dora", "false", "DoRA adapters have a magnitude vector"},
	{"modules_to_save", "null", "it replaces whole modules of the base"},
	{"bias", `"none"`, "trained biases are not read"},
	{"lora_bias", "false", "trained biases are not read"},
	{"fan_in_fan_out", "false", "Qwen2.5 stores its linear layers (out, in)"},
	{"layers_to_transform", "null", "name the layers by target_modules as a regular expression"},
	{"layer_replication", "null", "it changes the number of layers"},
	{"exclude_modules", "null", "name the modules by target_modules"},
	{"trainable_token_indices", "null", "it changes the embedding"},
	{"target_parameters", "null", "name the modules by target_modules"},
	{"use_qalora", "false", "QA-LoRA pools the input of A"},
	{"use_bdlora", "false", "it makes a factor block diagonal"},
	{"kasa_config", "null", "KaSA adds a diagonal between A and B"},
	{"alora_invocation_tokens", "null", "it switches the adapter on inside a sequence"},
	{"megatron_config", "null", "Megatron's layers are not those of Qwen2.5"},
}

// Load reads a PEFT adapter from a folder and fits it to a base model, to be trained or run.
func Load(dir string, base weights.Config) (*Set, []float32, Base, error) {
	return load(dir, base, MaxRank)
}

// LoadToMerge is Load of an adapter of any rank, to be merged or written in another form.
func LoadToMerge(dir string, base weights.Config) (*Set, []float32, Base, error) {
	return load(dir, base, MaxMergedRank)
}

func load(dir string, base weights.Config, most int) (*Set, []float32, Base, error) {
	fail := func(err error) (*Set, []float32, Base, error) { return nil, nil, Base{}, err }
	folder, err := weights.OpenFolder(dir)
	if err != nil {
		return fail(err)
	}
	defer folder.Close()
	config, from, err := readConfig(folder)
	if err != nil {
		return fail(err)
	}
	set, err := newSet(base, config, most)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", folder.Path(ConfigFile), err))
	}
	file, err := folder.OpenSafetensors(WeightsFile)
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	if err := set.held(file); err != nil { // before memory is made for them
		return fail(fmt.Errorf("%s: %w", folder.Path(WeightsFile), err))
	}
	params := make([]float32, set.Len())
	if err := set.ReadEntries(file, "", params); err != nil {
		return fail(fmt.Errorf("%s: %w", folder.Path(WeightsFile), err))
	}
	from.Fingerprint = file.Metadata[fingerprintKey]
	return set, params, from, nil
}

// ReadEntries reads what Entries wrote. A tensor that belongs to no module is an error.
func (s *Set) ReadEntries(file *weights.File, prefix string, flat []float32) error {
	expected := map[string]bool{}
	var err error
	s.Named(func(name string, rows, cols, offset int) {
		expected[prefix+name] = true
		if err == nil {
			err = readFactor(file, prefix+name, rows, cols, flat[offset:])
		}
	})
	if err != nil {
		return err
	}
	for _, name := range file.Names() {
		if strings.HasPrefix(name, prefix) && !expected[name] {
			return fmt.Errorf("%s belongs to no module that %s targets in this base", name, ConfigFile)
		}
	}
	return nil
}

// held checks that a file has every factor, in its shape.
func (s *Set) held(file *weights.File) (err error) {
	s.Named(func(name string, rows, cols, _ int) {
		if err == nil {
			_, err = factorOf(file, name, rows, cols)
		}
	})
	return err
}

func factorOf(file *weights.File, name string, rows, cols int) (*weights.Tensor, error) {
	t, err := file.Tensor(name)
	if err == nil && !slices.Equal(t.Shape, []int{rows, cols}) {
		err = fmt.Errorf("%s has shape %v, but the rank and this base make it [%d %d]", name, t.Shape, rows, cols)
	}
	return t, err
}

// readFactor reads one A or B and refuses values that are not finite.
func readFactor(file *weights.File, name string, rows, cols int, dst []float32) error {
	t, err := factorOf(file, name, rows, cols)
	if err != nil {
		return err
	}
	dst = dst[:rows*cols]
	if err := t.ReadRowsF32(dst, 0, rows); err != nil {
		return err
	}
	for i, v := range dst {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return &weights.NonFinite{Tensor: name, Place: fmt.Sprintf("element %d", i), Value: v}
		}
	}
	return nil
}

func readConfig(folder *weights.Folder) (Config, Base, error) {
	data, err := folder.ReadFile(ConfigFile, maxConfigBytes)
	if err != nil {
		return Config{}, Base{}, fmt.Errorf("not a PEFT adapter: %w", err)
	}
	c, base, err := parseConfig(data)
	if err != nil {
		return Config{}, Base{}, fmt.Errorf("%s: %w", folder.Path(ConfigFile), err)
	}
	return c, base, nil
}

// parseConfig reads an adapter_config.json.
func parseConfig(data []byte) (Config, Base, error) {
	var p peftConfig
	if err := strictjson.Unmarshal(data, maxConfigBytes, &p); err != nil {
		return Config{}, Base{}, err
	}
	if p.PeftType != "LORA" {
		return Config{}, Base{}, fmt.Errorf(`peft_type is %q: only "LORA" adapters are read`, p.PeftType)
	}
	if err := checkRefused(data); err != nil {
		return Config{}, Base{}, err
	}
	if len(p.Targets) == 0 || string(p.Targets) == "null" {
		return Config{}, Base{}, errors.New("target_modules is missing: it lists the modules that the adapter belongs to")
	}
	c := Config{R: p.R, Alpha: p.Alpha, Dropout: p.Dropout, RSLoRA: p.RSLoRA, RankPattern: p.RankPattern, AlphaPattern: p.AlphaPattern}
	if json.Unmarshal(p.Targets, &c.TargetRegex) != nil {
		if err := (*strictjson.List[string])(&c.Targets).UnmarshalJSON(p.Targets); err != nil {
			return Config{}, Base{}, fmt.Errorf("target_modules is %.100s: neither a list of names nor a regular expression", p.Targets)
		}
	} else if c.TargetRegex == AllLinear {
		c.TargetRegex, c.Targets = "", []string{AllLinear}
	}
	return c, Base{Name: p.Base}, nil
}

// checkRefused looks for settings that are not run here.
func checkRefused(data []byte) error {
	o, err := strictjson.Parse(data, maxConfigBytes)
	if err != nil {
		return err
	}
	return o.Each(func(key []byte, v strictjson.Value) error {
		for _, r := range refused {
			if r.key == string(key) && !slices.Contains([]string{r.harmless, "null", "[]", "{}"}, string(v.Raw)) {
				return fmt.Errorf("%s is %.100s: %s", r.key, v.Raw, r.why)
			}
		}
		return nil
	})
}

// Save writes the adapter as PEFT does: adapter_config.json and adapter_model.safetensors, each whole or
// not at all.
func (s *Set) Save(dir string, params []float32, base Base) error {
	if err := os.MkdirAll(dir, fs.ModePerm); err != nil {
		return err
	}
	metadata := maps.Clone(weights.PTMetadata)
	if base.Fingerprint != "" {
		metadata[fingerprintKey] = base.Fingerprint
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, WeightsFile), metadata, s.Entries(params, "")); err != nil {
		return err
	}
	config, err := s.peftJSON(base.Name)
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(dir, ConfigFile), config)
}

// Entries are the factors, gradients or moments in flat as safetensors entries, their names behind prefix.
func (s *Set) Entries(flat []float32, prefix string) []weights.Entry {
	var entries []weights.Entry
	s.Named(func(name string, rows, cols, offset int) {
		entries = append(entries, weights.F32Entry(prefix+name, []int{rows, cols}, flat[offset:offset+rows*cols]))
	})
	return entries
}

// peftJSON is adapter_config.json with the keys every PEFT since 0.5 knows, sorted, indented by two.
func (s *Set) peftJSON(base string) ([]byte, error) {
	c := s.Config
	var targets any = c.TargetRegex
	if c.TargetRegex == "" {
		list := slices.Clone(c.Targets)
		if slices.Equal(list, []string{AllLinear}) {
			list = names()
		}
		slices.Sort(list)
		targets = list
	}
	rankPattern, alphaPattern := c.RankPattern, c.AlphaPattern
	if rankPattern == nil {
		rankPattern = map[string]int{}
	}
	if alphaPattern == nil {
		alphaPattern = map[string]float64{}
	}
	var init any = true
	if c.Init != InitKaiming {
		init = c.Init
	}
	data, err := json.MarshalIndent(map[string]any{
		"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": true,
		"r": c.R, "lora_alpha": c.Alpha, "lora_dropout": c.Dropout, "use_rslora": c.RSLoRA, "target_modules": targets,
		"rank_pattern": rankPattern, "alpha_pattern": alphaPattern,
		"bias": "none", "fan_in_fan_out": false, "init_lora_weights": init, "modules_to_save": nil, "use_dora": false,
	}, "", "  ")
	return append(data, '\n'), err
}

// PortableName is the name of a base that means the same on every machine: its hub id, or else the last
// part of its path.
func PortableName(hubID, path string) string {
	if hubID != "" {
		return hubID
	}
	return strings.TrimSuffix(filepath.Base(filepath.Clean(path)), ".gguf")
}

// CheckBase refuses an adapter that was trained on other weights.
func CheckBase(adapter Base, fingerprint string) error {
	if adapter.Fingerprint != "" && fingerprint != "" && adapter.Fingerprint != fingerprint {
		return fmt.Errorf("the adapter was trained on %s, whose weights are not those of the model given (fingerprint %.12s, not %.12s); give --model the base it was trained on",
			adapter.Name, adapter.Fingerprint, fingerprint)
	}
	return nil
}
