package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// This file is about verbs that have verbs of their own, `qlora bench kernels`, and about words that are no flags, as
// `qlora bench compare a.json b.json` takes them.

// leaf is the node that the first words name, as far as they do, and the words behind them.
func leaf(k *kong.Kong, words []string) (*kong.Node, []string, error) {
	var at *kong.Node
	nodes := k.Model.Children
	for len(words) > 0 {
		next := named(nodes, words[0])
		if next == nil {
			break
		}
		at, nodes, words = next, next.Children, words[1:]
	}
	if at == nil {
		return nil, nil, unknownVerb(strings.Join(words[:min(1, len(words))], ""))
	}
	return at, words, nil
}

func named(nodes []*kong.Node, name string) *kong.Node {
	for _, n := range nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// pathOf names a node from the top: "bench kernels".
func pathOf(n *kong.Node) string {
	if n.Parent == nil || n.Parent.Type == kong.ApplicationNode {
		return n.Name
	}
	return pathOf(n.Parent) + " " + n.Name
}

func unknownSubverb(node *kong.Node, word string) error {
	var names []string
	for _, c := range node.Children {
		names = append(names, c.Name)
	}
	if near, ok := nearest(word, names); ok {
		return fmt.Errorf("unknown verb %q of `qlora %s`: did you mean `qlora %[2]s %s`?", word, pathOf(node), near)
	}
	return fmt.Errorf("unknown verb %q of `qlora %s`: choose %s", word, pathOf(node), strings.Join(names, ", "))
}

// takeOperands separates from the words of a verb those that belong to no flag, if it takes such: the words before the
// first flag, those beyond what a flag takes, and all behind --. Where a flag's name is one letter, -o is --o.
func takeOperands(node *kong.Node, words []string, shapes map[string]shape) (rest, operands []string) {
	words = slices.Clone(words)
	for i, word := range words {
		if _, short := shapes[strings.TrimPrefix(word, "-")]; short && len(word) == 2 {
			words[i] = "-" + word
		}
	}
	if len(node.Positional) == 0 {
		return words, nil
	}
	room := 0 // values that the last flag may still take
	for i, word := range words {
		if word == "--" {
			return rest, append(operands, words[i+1:]...)
		}
		name, value, hasValue := cutFlag(word)
		switch {
		case name != "":
			rest = append(rest, word)
			room = 1
			switch takes, known := shapes[name]; {
			case takes == list && known:
				room = len(words)
			case hasValue || value != "":
				room = 0
			case takes == flag && known && (i+1 >= len(words) || !boolean(words[i+1])):
				room = 0
			}
		case word == "-h", room > 0:
			rest = append(rest, word)
			room--
		default:
			operands = append(operands, word)
		}
	}
	return rest, operands
}

func boolean(word string) bool {
	_, err := parseBool(word)
	return err == nil
}
