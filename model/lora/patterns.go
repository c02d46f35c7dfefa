package lora

import (
	"fmt"
	"math"
	"regexp"

	"qlora/model/weights"
)

// maxPattern bounds the bytes of a key of RankPattern or AlphaPattern; a module's name has about 40.
const maxPattern = 256

// patterns are a RankPattern or AlphaPattern, compiled, in the order of their keys.
type patterns[V any] []struct {
	key   *regexp.Regexp
	value V
}

// compile reads the keys as PEFT does: a key, a regular expression, is a module's name or the end of it
// after a dot. More of them than a base has modules are refused, as they come from nothing but a damaged file.
func compile[V any](what string, values map[string]V, modules int) (patterns[V], error) {
	if len(values) > modules {
		return nil, fmt.Errorf("lora: %s has %d entries for a base of %d modules", what, len(values), modules)
	}
	all := make(patterns[V], 0, len(values))
	for _, key := range SortedKeys(values) {
		if len(key) > maxPattern {
			return nil, fmt.Errorf("lora: %s %.40q...: %d bytes are over the limit of %d", what, key, len(key), maxPattern)
		}
		re, err := regexp.Compile(`^(?:.*\.)?(?:` + key + `)$`)
		if err != nil {
			return nil, fmt.Errorf("lora: %s %q: %w", what, key, err)
		}
		all = append(all, struct {
			key   *regexp.Regexp
			value V
		}{re, values[key]})
	}
	return all, nil
}

// of is the value of the first key that fits a module, or else the default.
func (p patterns[V]) of(module string, otherwise V) V {
	for _, entry := range p {
		if entry.key.MatchString(module) {
			return entry.value
		}
	}
	return otherwise
}

// ranks returns what gives each module its rank and scale, as PEFT resolves its patterns.
func (c Config) ranks(base weights.Config) (func(module string) (rank int, scale float32, err error), error) {
	modules := base.NumHiddenLayers * len(linears)
	ranks, err := compile("rank_pattern", c.RankPattern, modules)
	if err != nil {
		return nil, err
	}
	alphas, err := compile("alpha_pattern", c.AlphaPattern, modules)
	if err != nil {
		return nil, err
	}
	return func(module string) (int, float32, error) {
		rank, alpha := ranks.of(module, c.R), alphas.of(module, c.Alpha)
		scale := float32(alpha / float64(rank))
		if c.RSLoRA {
			scale = float32(alpha / math.Sqrt(float64(rank)))
		}
		if math.IsInf(float64(scale), 0) {
			return 0, 0, fmt.Errorf("lora: --lora_alpha %v: too large for a scale in float32", alpha)
		}
		return rank, scale, nil
	}, nil
}
