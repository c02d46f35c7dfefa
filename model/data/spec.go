package data

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Spec names a dataset as ms-swift's command line does:
//
//	[hf::|ms::]path-or-id[:subset/subset][#count]
type Spec struct {
	Hub     string   // "hf", "ms", or "" for either
	Name    string   // a file, a folder, a hub's org/name, or one that is part of the program
	Subsets []string // none: all of the dataset
	Count   int      // rows to take; 0: each once
}

// General names a dataset that is part of the program: 24 everyday questions with short answers, by which to see what a
// training that is about something else did to the rest.
const General = "builtin:general"

// ParseSpec reads a dataset's name. What exists as a path is a path, whatever signs it holds:
// the whole first, then what stands before the last #, then before the first colon.
func ParseSpec(text string) (Spec, error) {
	var spec Spec
	rest := text
	if hub, id, ok := strings.Cut(rest, "::"); ok && !isPath(rest) {
		spec.Hub, rest = strings.ToLower(hub), id
		if spec.Hub != "hf" && spec.Hub != "ms" {
			return Spec{}, fmt.Errorf("dataset %s: unknown hub %q: it is hf:: or ms:: before the name", text, hub)
		}
	}
	if at := strings.LastIndexByte(rest, '#'); at >= 0 && !isPath(rest) {
		count, err := strconv.Atoi(rest[at+1:])
		if err != nil || count < 1 {
			return Spec{}, fmt.Errorf("dataset %s: no such file, and %q after the # is no count of rows", text, rest[at+1:])
		}
		spec.Count, rest = count, rest[:at]
	}
	name, subsets, ok := strings.Cut(rest, ":")
	if inner, builtin := strings.CutPrefix(rest, SelfCognition+":"); builtin {
		name, subsets = SelfCognition, inner
	}
	if ok && !isPath(rest) {
		rest = name
		for s := range strings.SplitSeq(subsets, "/") {
			spec.Subsets = append(spec.Subsets, strings.TrimSpace(s))
		}
	}
	spec.Name = strings.TrimSpace(rest)
	if spec.Name == "" {
		return Spec{}, fmt.Errorf("dataset %q: no name", text)
	}
	return spec, nil
}

// isPath reports whether something is there by that name.
func isPath(name string) bool {
	_, err := os.Stat(name)
	return builtin[name] != nil || err == nil
}

// A source is a file of a dataset, and what the subset it belongs to adds to its rows.
type source struct {
	file string
	add  wording
}

// files returns the files of a dataset, in the order they are read, and those of its folder
// that are no part of it.
func (s Spec) files() (files []source, leftOut []string, err error) {
	subsets, add := s.wordings()
	if s.Name == SelfCognition {
		if len(add) == 0 {
			return []source{{file: SelfCognition}}, nil, nil
		}
		for i, subset := range subsets {
			if subset != "default" {
				return nil, nil, fmt.Errorf("no subset %q, only default, qwen3, empty_think", subset)
			}
			files = append(files, source{SelfCognition, add[i]})
		}
		return files, nil, nil
	}
	if builtin[s.Name] != nil {
		return []source{{file: s.Name}}, nil, nil
	}
	if strings.HasPrefix(s.Name, "builtin") {
		return nil, nil, fmt.Errorf("no such dataset: there is only %s and %s", SelfCognition, General)
	}
	folder := s.Name
	info, err := os.Stat(s.Name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if folder, err = findInCaches(s.Hub, s.Name); err != nil {
			return nil, nil, err
		}
	case err != nil:
		return nil, nil, err
	case info.Mode().IsRegular() && len(s.Subsets) > 0:
		return nil, nil, errors.New("a file has no subsets: leave out the colon and what follows it")
	case info.Mode().IsRegular():
		return []source{{file: s.Name}}, nil, nil
	case !info.IsDir():
		return nil, nil, errors.New("neither a file nor a folder")
	}
	return folderFiles(folder, subsets, add)
}
