package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"qlora/model/lora"
	"qlora/model/weights"
)

// blendFlags say how much of each adapter is used.
type blendFlags struct {
	AdapterWeights []float64 `name:"adapter_weights" group:"Model" sep:"," placeholder:"X..." help:"How much of each adapter, in the order of --adapters: their updates are added, each times its weight, exactly. 1 0 uses the first and keeps the second ready."`
}

// namedDir is an adapter as --adapters gives it.
type namedDir struct{ name, dir string }

// list splits --adapters into adapters: words or what commas separate, each a folder or name=folder. One without a name
// is called by the last part of its path, with more parts where that is not enough to tell it from the others.
func (f *modelFlags) list() ([]namedDir, error) {
	var all []namedDir
	for _, word := range f.Adapters {
		pieces := []string{word}
		if !exists(word) {
			pieces = strings.Split(word, ",")
		}
		for _, piece := range pieces {
			if piece == "" {
				continue
			}
			name, dir, named := strings.Cut(piece, "=")
			if !named || exists(piece) {
				name, dir = "", piece
			}
			all = append(all, namedDir{name, filepath.Clean(dir)})
		}
	}
	for i := range all {
		if all[i].name == "" {
			all[i].name = shortName(all, i)
		}
	}
	for i, a := range all {
		if slices.ContainsFunc(all[:i], func(b namedDir) bool { return b.name == a.name }) {
			return nil, usageError{fmt.Errorf("--adapters: two are called %q: give them names, as in one=%s two=%[2]s", a.name, a.dir)}
		}
		if strings.ContainsAny(a.name, "= \t") {
			all[i].name = strconv.Itoa(i + 1)
		}
	}
	return all, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// shortName is the fewest last parts of adapter i's path that no other ends in.
func shortName(all []namedDir, i int) string {
	parts := strings.Split(filepath.ToSlash(all[i].dir), "/")
	for n := 1; n < len(parts); n++ {
		name := strings.Join(parts[len(parts)-n:], "/")
		same := func(o namedDir) bool {
			return o.dir != all[i].dir && (o.name == name || strings.HasSuffix("/"+filepath.ToSlash(o.dir), "/"+name))
		}
		if !slices.ContainsFunc(all, same) {
			return name
		}
	}
	return all[i].dir
}

// shares are those of --adapter_weights, one an adapter. One adapter alone is used whole.
func (f *blendFlags) shares(adapters []namedDir) ([]float64, error) {
	var names []string
	for _, a := range adapters {
		names = append(names, a.name)
	}
	switch {
	case len(adapters) == len(f.AdapterWeights):
		return f.AdapterWeights, nil
	case len(f.AdapterWeights) > 0:
		return nil, usageError{fmt.Errorf("--adapter_weights has %d numbers for %d adapters (%s): give one for each", len(f.AdapterWeights), len(adapters), strings.Join(names, ", "))}
	case len(adapters) == 1:
		return []float64{1}, nil
	}
	return nil, usageError{fmt.Errorf("--adapters names %d adapters (%s), so say how much of each to use: --adapter_weights %s adds them up, --adapter_weights 1%s "+
		"begins with the first and keeps the others ready for /adapter in a conversation", len(adapters), strings.Join(names, ", "),
		strings.TrimSpace(strings.Repeat("0.5 ", len(adapters))), strings.Repeat(" 0", len(adapters)-1))}
}

// loadAdapters reads PEFT adapters, by lora.Load or lora.LoadToMerge, and refuses those that were trained on another base.
func loadAdapters(b *base, list []namedDir, load func(dir string, base weights.Config) (*lora.Set, []float32, lora.Base, error)) ([]*lora.Adapter, error) {
	fingerprint := ""
	var all []*lora.Adapter
	for _, from := range list {
		set, params, base, err := load(from.dir, b.Config)
		if err != nil {
			return nil, fmt.Errorf("--adapters: %w", err)
		}
		if fingerprint == "" {
			if fingerprint, err = b.Fingerprint(); err != nil {
				return nil, err
			}
		}
		if err := lora.CheckBase(base, fingerprint); err != nil {
			return nil, fmt.Errorf("--adapters %s: %w", from.dir, err)
		}
		set.SetDropout(false)
		all = append(all, &lora.Adapter{Name: from.name, Set: set, Params: params, Base: base})
	}
	return all, nil
}

// mixture writes weights as a person gives them: "a=0.7 b=0.3", or "the base alone".
func mixture(adapters []*lora.Adapter, weights []float64) string {
	var parts []string
	for i, a := range adapters {
		if weights[i] != 0 {
			parts = append(parts, fmt.Sprintf("%s=%g", a.Name, weights[i]))
		}
	}
	if len(parts) == 0 {
		return "the base alone"
	}
	return strings.Join(parts, " ")
}

// parseMixture reads words such as a=0.7 b=0.3, or a for a=1. An adapter is named, or numbered from 1; those that are
// not named are not used.
func parseMixture(adapters []*lora.Adapter, words []string) ([]float64, error) {
	weights := make([]float64, len(adapters))
	var names []string
	for _, a := range adapters {
		names = append(names, a.Name)
	}
	for _, word := range words {
		name, text, weighed := strings.Cut(word, "=")
		i := slices.Index(names, name)
		if n, err := strconv.Atoi(name); i < 0 && err == nil && n >= 1 && n <= len(names) {
			i = n - 1
		}
		if i < 0 {
			return nil, fmt.Errorf("no adapter is called %q: there are %s", name, strings.Join(names, ", "))
		}
		weights[i] = 1
		if weighed {
			var err error
			if weights[i], err = strconv.ParseFloat(text, 64); err != nil {
				return nil, fmt.Errorf("%s: %q is not a number: write %s=0.7", word, text, name)
			}
		}
	}
	return weights, nil
}
