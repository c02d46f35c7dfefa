package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"qlora/internal/yamlguard"
)

// maxConfig bounds the size of a configuration file, which in the parsers takes up to 700 times as much.
const maxConfig = 256 << 10

// isConfig reports whether a word names a configuration file.
func isConfig(word string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(word)) && !strings.HasPrefix(word, "-")
}

// readConfig reads a configuration file, YAML or JSON: an object whose keys are the names of flags. A
// list holds several values; an object becomes JSON, as flags that take one expect; null leaves the flag
// out, as does an args.json for what was not given. Every setting says where in the file it stands.
//
// ms-swift puts the map ENV into its environment. Here nothing is taken from the environment, so that a
// notice says it has no effect.
func readConfig(path string) (settings []setting, notices []string, err error) {
	text, err := readLimited(path)
	if err != nil {
		return nil, nil, err
	}
	if filepath.Ext(path) == ".json" {
		settings, err = jsonSettings(path, text)
	} else {
		settings, err = yamlSettings(path, text)
	}
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]string{}
	var kept []setting
	for _, s := range settings {
		switch at := seen[s.name]; {
		case at != "":
			return nil, nil, fmt.Errorf("%s: %s is set twice, first at %s", s.at, s.name, at)
		case s.name == "ENV":
			notices = append(notices, fmt.Sprintf("notice: %s: ENV has no effect here: set environment variables before qlora starts", s.at))
		case s.values != nil:
			kept = append(kept, s)
		}
		seen[s.name] = s.at
	}
	return kept, notices, nil
}

func readLimited(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err == nil && len(text) > maxConfig {
		err = fmt.Errorf("%s: larger than %d KiB, which no configuration is", path, maxConfig>>10)
	}
	return text, err
}

// override leaves out the settings of a file that the command line sets too.
func override(file, line []setting) []setting {
	return append(slices.DeleteFunc(file, func(f setting) bool {
		return slices.ContainsFunc(line, func(l setting) bool { return l.flag() == f.flag() })
	}), line...)
}

// position writes a place in a file: lines and columns count from 1, columns in characters.
func position(path string, line, column int) string {
	return fmt.Sprintf("%s:%d:%d", path, line, column)
}

// notAnObject is what a file that is no configuration is told.
func notAnObject(at, path string) error {
	return fmt.Errorf("%s: a configuration is an object of flags and their values; a data file is given by `--dataset %s`", at, path)
}

func yamlSettings(path string, text []byte) ([]setting, error) {
	if err := yamlguard.Check(text); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, yamlFault(path, err)
	}
	var pairs []*ast.MappingValueNode
	switch {
	case len(file.Docs) == 0: // such as a directive alone
		return nil, nil
	case len(file.Docs) > 1:
		return nil, fmt.Errorf("%s: %d documents in one file: a configuration is one", path, len(file.Docs))
	}
	switch body := file.Docs[0].Body.(type) {
	case nil:
	case *ast.MappingNode:
		pairs = body.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{body}
	default:
		return nil, notAnObject(yamlPlace(path, body), path)
	}
	var settings []setting
	for _, pair := range pairs {
		s := setting{name: strings.ReplaceAll(pair.Key.GetToken().Value, "-", "_"), at: yamlPlace(path, pair.Key)}
		if s.values, err = yamlValues(path, pair.Value); err != nil {
			return nil, err
		}
		settings = append(settings, s)
	}
	return settings, nil
}

func yamlPlace(path string, n ast.Node) string {
	p := n.GetToken().Position
	return position(path, p.Line, p.Column)
}

// yamlFault says where a file is not YAML.
func yamlFault(path string, err error) error {
	if e, ok := errors.AsType[yaml.Error](err); ok && e.GetToken() != nil {
		p := e.GetToken().Position
		return fmt.Errorf("%s: %s", position(path, p.Line, p.Column), e.GetMessage())
	}
	return fmt.Errorf("%s: %w", path, err)
}

// yamlValues are the words of a value: nil for null, one for a scalar or an object.
func yamlValues(path string, n ast.Node) ([]string, error) {
	switch n := n.(type) {
	case *ast.NullNode:
		return nil, nil
	case *ast.SequenceNode:
		return yamlList(path, n)
	case *ast.MappingNode, *ast.MappingValueNode:
		var object map[string]any
		if err := yaml.NodeToValue(n, &object); err != nil {
			return nil, yamlFault(path, err)
		}
		text, err := json.Marshal(object)
		return []string{string(text)}, err
	case *ast.LiteralNode:
		return []string{n.Value.Value}, nil
	case *ast.StringNode:
		return []string{n.Value}, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode: // as they are written: 1e-4 stays that
		return []string{n.GetToken().Value}, nil
	}
	return nil, fmt.Errorf("%s: %s are not read in a configuration: write the value out", yamlPlace(path, n), n.Type())
}

func yamlList(path string, n *ast.SequenceNode) ([]string, error) {
	var all []string
	for _, item := range n.Values {
		words, err := yamlValues(path, item)
		if err != nil {
			return nil, err
		}
		if _, nested := item.(*ast.SequenceNode); nested || len(words) != 1 {
			return nil, fmt.Errorf("%s: an item of a list is one value", yamlPlace(path, item))
		}
		all = append(all, words...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: an empty list: leave the key out", yamlPlace(path, n))
	}
	return all, nil
}

func jsonSettings(path string, text []byte) ([]setting, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	place := func(offset int64) string {
		before := text[:min(offset, int64(len(text)))]
		line := bytes.Count(before, []byte("\n")) + 1
		return position(path, line, len([]rune(string(before[bytes.LastIndexByte(before, '\n')+1:])))+1)
	}
	fault := func(err error) error {
		at := dec.InputOffset()
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = e.Offset
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			at, err = int64(len(text)), errors.New("the file ends inside the object")
		}
		return fmt.Errorf("%s: %w", place(at), err)
	}
	if open, err := dec.Token(); err != nil {
		return nil, fault(err)
	} else if open != json.Delim('{') {
		return nil, notAnObject(place(0), path)
	}
	var settings []setting
	for dec.More() {
		start := dec.InputOffset()
		start += int64(bytes.IndexByte(text[start:], '"')) // past the comma and white space
		key, err := dec.Token()
		if err != nil {
			return nil, fault(err)
		}
		s := setting{name: strings.ReplaceAll(fmt.Sprint(key), "-", "_"), at: place(start)}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fault(err)
		}
		if s.values, err = jsonValues(value); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", s.at, s.name, err)
		}
		settings = append(settings, s)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fault(err)
	}
	if rest := bytes.TrimSpace(text[dec.InputOffset():]); len(rest) > 0 {
		return nil, fmt.Errorf("%s: text behind the object", place(dec.InputOffset()))
	}
	return settings, nil
}

// jsonValues are the words of a value, as yamlValues.
func jsonValues(value json.RawMessage) ([]string, error) {
	switch value[0] {
	case 'n':
		return nil, nil
	case '"':
		var text string
		err := json.Unmarshal(value, &text)
		return []string{text}, err
	case '[':
		var items []json.RawMessage
		if err := json.Unmarshal(value, &items); err != nil {
			return nil, err
		}
		if len(items) == 0 {
			return nil, errors.New("an empty list: leave the key out")
		}
		var all []string
		for _, item := range items {
			words, err := jsonValues(item)
			if err != nil || len(words) != 1 || item[0] == '[' {
				return nil, errors.Join(errors.New("an item of a list is one value"), err)
			}
			all = append(all, words...)
		}
		return all, nil
	}
	return []string{string(value)}, nil // a number, a boolean, or an object as it is written
}
