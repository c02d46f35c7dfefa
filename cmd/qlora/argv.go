package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// setting is one flag of a command line with the words that belong to it.
type setting struct {
	name   string   // ms-swift's spelling: without the leading dashes, '_' for '-'
	values []string // none when the flag stands alone
	at     string   // where a configuration file has it; "" for the command line
}

// fault is an error of the setting, with its place.
func (s setting) fault(err error) error {
	if err == nil || s.at == "" {
		return err
	}
	return fmt.Errorf("%s: %w", s.at, err)
}

// flag is the name of the flag that is set: what an older name, or transformers' --no_x, stands for.
func (s setting) flag() string {
	name := strings.TrimPrefix(s.name, "no_")
	return cmp.Or(aliases[name], name)
}

// lastOf keeps of a flag that is given more than once what is given last, as ms-swift's parser does, and says so where that
// makes a difference.
func lastOf(settings []setting) (kept []setting, notices []string) {
	at := map[string]int{}
	for _, s := range settings {
		i, again := at[s.flag()]
		if !again {
			at[s.flag()] = len(kept)
			kept = append(kept, s)
			continue
		}
		if before := kept[i]; before.name != s.name || !slices.Equal(before.values, s.values) {
			notices = append(notices, fmt.Sprintf("notice: --%s %s takes the place of --%s %s before it, as in ms-swift; several values stand behind one flag",
				s.name, strings.Join(s.values, " "), before.name, strings.Join(before.values, " ")))
		}
		kept[i] = s
	}
	return kept, notices
}

// splitWords groups the words after the verb as ms-swift's parser does, with a little more
// patience: a flag starts with two dashes and takes every word up to the next flag, so that
// `--dataset a b` is a list; `--name=value` is one word; `-1` and a word with a space in
// its name part are values. A single -h is --help. There are no positional arguments: a word
// that belongs to no flag is an error.
func splitWords(words []string) ([]setting, error) {
	var settings []setting
	var stray []string
	for i, word := range words {
		if word == "--" {
			stray = append(stray, words[i+1:]...)
			break
		}
		switch name, value, hasValue := cutFlag(word); {
		case word == "-h":
			settings = append(settings, setting{name: "help"})
		case name == "" && len(settings) == 0:
			stray = append(stray, word)
		case name == "":
			last := &settings[len(settings)-1]
			last.values = append(last.values, word)
		case hasValue:
			settings = append(settings, setting{name: name, values: []string{value}})
		default:
			settings = append(settings, setting{name: name})
		}
	}
	if len(stray) > 0 {
		return nil, strayWords(stray)
	}
	return settings, nil
}

// cutFlag splits a word that is a flag; name is "" when it is not one.
func cutFlag(word string) (name, value string, hasValue bool) {
	rest, ok := strings.CutPrefix(word, "--")
	if !ok || rest == "" {
		return "", "", false
	}
	name, value, hasValue = strings.Cut(rest, "=")
	if name == "" || strings.ContainsAny(name, " \t\r\n") {
		return "", "", false
	}
	return strings.ReplaceAll(name, "-", "_"), value, hasValue
}

func strayWords(words []string) error {
	for _, w := range words {
		if isConfig(w) {
			return fmt.Errorf("%q belongs to no flag: one configuration file may stand right behind the verb (a data file is given by `--dataset %s`)", w, w)
		}
	}
	return fmt.Errorf("%q belongs to no flag: every argument is written `--flag value`", words[0])
}

// shape is how many words a flag takes.
type shape uint8

const (
	one  shape = iota // exactly one value
	list              // one or more
	flag              // true, false, or nothing for true
)

// canonical writes a setting as kong reads it, one `--name=value` per value.
func canonical(s setting, takes shape) ([]string, error) {
	switch {
	case takes == flag:
		value := "true"
		if len(s.values) > 0 {
			value = s.values[0]
		}
		on, err := parseBool(value)
		if err != nil || len(s.values) > 1 {
			return nil, fmt.Errorf("--%s takes true or false, not %s", s.name, quoted(s.values))
		}
		return []string{fmt.Sprintf("--%s=%t", s.name, on)}, nil
	case len(s.values) == 0:
		return nil, fmt.Errorf("--%s needs a value: write `--%s VALUE`", s.name, s.name)
	case takes == one && len(s.values) > 1:
		return nil, fmt.Errorf("--%s takes one value, not %d (%s): put quotes around a value with spaces, and name one file where a pattern fits several", s.name, len(s.values), quoted(s.values))
	}
	var words []string
	for _, v := range s.values {
		words = append(words, "--"+s.name+"="+v)
	}
	return words, nil
}

// parseBool reads the words transformers' argument parser takes for a boolean.
func parseBool(word string) (bool, error) {
	switch strings.ToLower(word) {
	case "true", "t", "yes", "y", "1":
		return true, nil
	case "false", "f", "no", "n", "0":
		return false, nil
	}
	return false, errors.New("not a boolean")
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(q, " ")
}
