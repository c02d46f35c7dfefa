// Package lora is the trainable part: low-rank adapters (Hu et al., LoRA, 2021) on the linear layers
// of a frozen base, their flat parameters, and the files PEFT reads and writes.
package lora

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"qlora/model/ops"
	"qlora/model/weights"
)

// Config says which modules are adapted, and how. Field names follow PEFT's LoraConfig.
type Config struct {
	R       int     // rank
	Alpha   float64 // scale is Alpha/R
	Dropout float64 // probability, on each module's own copy of its input
	RSLoRA  bool    // scale is Alpha/sqrt(R) (Kalajdzievski, 2023)
	Init    string  // init_lora_weights: what A starts as, InitKaiming or InitGaussian; B starts at zero

	// Targets are the last parts of module names ("q_proj"); AllLinear alone means all seven of a
	// decoder layer. TargetRegex, where not empty, must match the whole name instead.
	Targets     []string
	TargetRegex string

	// RankPattern and AlphaPattern override R and Alpha for modules whose name ends in a key.
	RankPattern  map[string]int
	AlphaPattern map[string]float64
}

// AllLinear targets every linear layer of the decoder, and not the head.
const AllLinear = "all-linear"

// What A (R,in) starts as, by PEFT's rules.
const (
	InitKaiming  = ""         // uniform within ±1/sqrt(in): Kaiming with a = sqrt 5, PEFT's true
	InitGaussian = "gaussian" // normal, of standard deviation 1/R
)

// MaxRank is the largest rank of one module that the kernels hold. MaxMergedRank is that of an adapter which is only
// merged: twice the highest that any server takes.
const (
	MaxRank       = 64
	MaxMergedRank = 1024
)

// linear is one of the seven linear layers of a decoder layer.
type linear struct {
	path, name string // "self_attn.", "q_proj"
	slot       ops.Slot
	part       int
}

var linears = [...]linear{
	{"self_attn.", "q_proj", ops.SlotQKV, 0},
	{"self_attn.", "k_proj", ops.SlotQKV, 1},
	{"self_attn.", "v_proj", ops.SlotQKV, 2},
	{"self_attn.", "o_proj", ops.SlotO, 0},
	{"mlp.", "gate_proj", ops.SlotGateUp, 0},
	{"mlp.", "up_proj", ops.SlotGateUp, 1},
	{"mlp.", "down_proj", ops.SlotDown, 0},
}

// module is the full name of the linear layer in a decoder layer.
func (l linear) module(layer int) string {
	return fmt.Sprintf("model.layers.%d.%s%s", layer, l.path, l.name)
}

// shape is the layer's input and output width in a base.
func (l linear) shape(c weights.Config) (in, out int) {
	q, kv := c.NumAttentionHeads*c.HeadDim, c.NumKeyValueHeads*c.HeadDim
	switch l.slot {
	case ops.SlotQKV:
		return c.HiddenSize, []int{q, kv, kv}[l.part]
	case ops.SlotO:
		return q, c.HiddenSize
	case ops.SlotGateUp:
		return c.HiddenSize, c.IntermediateSize
	}
	return c.IntermediateSize, c.HiddenSize
}

// names lists the seven module names.
func names() []string {
	all := make([]string, len(linears))
	for i, l := range linears {
		all[i] = l.name
	}
	return all
}

// maxRegex bounds the bytes of Config.TargetRegex, and with them the memory it compiles to.
const maxRegex = 1 << 16

// matcher returns what decides whether a module, by its full name, is adapted.
func (c Config) matcher() (func(module string) bool, error) {
	if c.TargetRegex != "" {
		if len(c.TargetRegex) > maxRegex {
			return nil, fmt.Errorf("lora: --target_regex: %d bytes are over the limit of %d", len(c.TargetRegex), maxRegex)
		}
		re, err := regexp.Compile(`^(?:` + c.TargetRegex + `)$`)
		if err != nil {
			return nil, fmt.Errorf("lora: --target_regex %q: %w", c.TargetRegex, err)
		}
		return re.MatchString, nil
	}
	if slices.Equal(c.Targets, []string{AllLinear}) {
		return func(string) bool { return true }, nil
	}
	for _, t := range c.Targets {
		switch last := t[strings.LastIndexByte(t, '.')+1:]; {
		case last == "lm_head" || last == "embed_tokens":
			return nil, fmt.Errorf("lora: target module %q: the head and the embedding are not adapted, and vLLM and llama.cpp would refuse such an adapter; choose from %s, or %s", t, strings.Join(names(), ", "), AllLinear)
		case !slices.Contains(names(), last):
			return nil, fmt.Errorf("lora: no module is called %q; choose from %s, or %s", t, strings.Join(names(), ", "), AllLinear)
		}
	}
	return func(module string) bool {
		return slices.ContainsFunc(c.Targets, func(t string) bool { return module == t || strings.HasSuffix(module, "."+t) })
	}, nil
}

// check refuses settings that cannot be run. Ranks go up to most.
func (c Config) check(most int) error {
	switch {
	case c.R > most && c.R <= MaxMergedRank:
		return fmt.Errorf("lora: rank %d: %d is the most that runs unmerged; `qlora export --merge_lora true` merges an adapter of any rank", c.R, most)
	case c.R < 1 || c.R > most:
		return fmt.Errorf("lora: --lora_rank %d: must be 1 to %d", c.R, most)
	case !(c.Alpha > 0) || math.IsInf(c.Alpha, 0):
		return fmt.Errorf("lora: --lora_alpha %v: must be a positive number", c.Alpha)
	case !(c.Dropout >= 0 && c.Dropout < 1):
		return fmt.Errorf("lora: --lora_dropout %v: must be at least 0 and less than 1", c.Dropout)
	case c.Init != InitKaiming && c.Init != InitGaussian:
		return fmt.Errorf("lora: --init_weights %s: choose true or gaussian", c.Init)
	case len(c.Targets) == 0 && c.TargetRegex == "":
		return fmt.Errorf("lora: no target modules; give --target_modules %s", AllLinear)
	}
	for name, r := range c.RankPattern {
		if r < 1 || r > most {
			return fmt.Errorf("lora: rank_pattern %q: rank %d must be 1 to %d", name, r, most)
		}
	}
	for name, a := range c.AlphaPattern {
		if !(a > 0) || math.IsInf(a, 0) {
			return fmt.Errorf("lora: alpha_pattern %q: %v must be a positive number", name, a)
		}
	}
	return nil
}

// SortedKeys lists the keys of a map in order.
func SortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
