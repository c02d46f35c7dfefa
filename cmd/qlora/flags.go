package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// class says what becomes of a flag of ms-swift.
type class uint8

const (
	works       class = iota // a field of the verb's command struct
	noEffect                 // accepted, and said to change nothing here
	unsupported              // refused, with the way to get there
)

// flagGroup is a row of flagTable: flags of the same fate for the same reason.
type flagGroup struct {
	class class
	verbs string // space-separated
	// why is what a noEffect notice says after "here:", or the alternative an unsupported flag's
	// error offers.
	why string
	// off are values of an unsupported flag that ask for nothing, and so pass.
	off   []string
	names string // space-separated
}

// disabled are the values that switch a feature off.
var disabled = []string{"false", "no", "none", "null", "0", "0.", "0.0", ""}

// aliases are other names that ms-swift, or transformers, has or had for a flag.
var aliases = map[string]string{
	"train_type":           "tuner_type",   // up to 4.0
	"init_lora_weights":    "init_weights", // PEFT's, and ms-swift's up to 2
	"lora_modules":         "adapters",
	"custom_register_path": "external_plugins",
	"use_liger":            "use_liger_kernel",
	"eval_datasets":        "eval_dataset",
	"eval_datasets_args":   "eval_dataset_args",
	"evaluation_strategy":  "eval_strategy",
}

// findGroup returns the row of a verb's flag, nil if the table has none.
func findGroup(verb, name string) *flagGroup {
	for i := range flagTable {
		g := &flagTable[i]
		if slices.Contains(strings.Fields(g.names), name) && slices.Contains(strings.Fields(g.verbs), verb) {
			return g
		}
	}
	return nil
}

// resolve turns the settings of a verb into words for kong and notices for the user. shapes
// holds the flags of every verb. The error joins all that is wrong, not the first alone.
func resolve(verb string, settings []setting, shapes map[string]map[string]shape) (words, notices []string, err error) {
	var errs []error
	idle := map[*flagGroup][]string{} // flags without effect, by reason
	for _, s := range settings {
		typed := s.name
		if name, ok := aliases[s.name]; ok {
			s.name = name
		}
		if name, ok := strings.CutPrefix(s.name, "no_"); ok && len(s.values) == 0 && shapes[verb][name] == flag {
			s.name, s.values = name, []string{"false"} // transformers' --no_x
		}
		if takes, ok := shapes[verb][s.name]; ok {
			w, err := canonical(s, takes)
			if err == nil {
				err = singleDash(s, shapes[verb])
			}
			words, errs = append(words, w...), append(errs, s.fault(err))
			continue
		}
		switch g := findGroup(verb, s.name); {
		case g == nil:
			errs = append(errs, s.fault(unknownFlag(verb, typed, shapes)))
		case g.class == noEffect:
			if !slices.Contains(idle[g], "--"+typed) {
				idle[g] = append(idle[g], "--"+typed)
			}
		case !isOff(s.values, g.off):
			errs = append(errs, s.fault(fmt.Errorf("--%s %s: known but not supported: %s", typed, strings.Join(s.values, " "), g.why)))
		}
	}
	for i := range flagTable {
		if names := idle[&flagTable[i]]; len(names) > 0 {
			has := "has"
			if len(names) > 1 {
				has = "have"
			}
			notices = append(notices, fmt.Sprintf("notice: %s %s no effect here: %s", strings.Join(names, ", "), has, flagTable[i].why))
		}
	}
	return words, notices, errors.Join(errs...)
}

func isOff(values, off []string) bool {
	return len(values) == 1 && slices.Contains(off, strings.ToLower(values[0]))
}

// singleDash catches `-lora_rank 8`, which would be a value of the flag before it.
func singleDash(s setting, known map[string]shape) error {
	for _, v := range s.values {
		if name := strings.ReplaceAll(strings.TrimPrefix(v, "-"), "-", "_"); name != v {
			if _, ok := known[name]; ok {
				return fmt.Errorf("--%s has the value %q: a flag starts with two dashes, --%s", s.name, v, name)
			}
		}
	}
	return nil
}

// unknownFlag names where a flag belongs, or the nearest one there is.
func unknownFlag(verb, name string, shapes map[string]map[string]shape) error {
	for _, other := range slices.Concat(verbNames, slices.Sorted(maps.Keys(shapes))) { // verbs before those of bench
		if _, ok := shapes[other][name]; ok {
			return fmt.Errorf("--%s is a flag of `qlora %s`, not of `qlora %s`", name, other, verb)
		}
	}
	var known []string
	for n := range shapes[verb] {
		known = append(known, n)
	}
	for i := range flagTable {
		if g := &flagTable[i]; slices.Contains(strings.Fields(g.verbs), verb) {
			known = append(known, strings.Fields(g.names)...)
		}
	}
	slices.Sort(known)
	if near, ok := nearest(name, known); ok {
		return fmt.Errorf("unknown flag --%s: did you mean --%s?", name, near)
	}
	return fmt.Errorf("unknown flag --%s: `qlora %s --help` lists the flags", name, verb)
}

// nearest returns the candidate fewest edits away from word, if a typing error could make one
// of the other: at most a third of the letters wrong.
func nearest(word string, candidates []string) (string, bool) {
	best, bestDistance := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if d := editDistance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best, best != ""
}

// editDistance is the insertions, deletions, changes and swaps of neighbours, in bytes, that make b of a (Damerau and
// Levenshtein's, in which no byte is edited twice).
func editDistance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, next[j]+1, row[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
