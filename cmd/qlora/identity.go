package main

import (
	"fmt"
	"strings"
	"unicode"

	"qlora/model/data"
)

// identity puts a model's name and author in place of {{NAME}} and {{AUTHOR}}, as ms-swift's
// self-cognition dataset has them.
type identity struct {
	chinese, other *strings.Replacer
	flags          string // as the user gave them
	edited         int    // rows that had a place for them
}

// newIdentity takes one value a flag, or two: for Chinese rows and for the others.
func newIdentity(name, author []string) (*identity, error) {
	id := &identity{}
	var chinese, other, flags []string
	for _, f := range []struct {
		flag, mark string
		values     []string
	}{{"--model_name", "{{NAME}}", name}, {"--model_author", "{{AUTHOR}}", author}} {
		switch n := len(f.values); {
		case n == 0:
			continue
		case n > 2:
			return nil, fmt.Errorf("%s takes one value, or two (for Chinese rows and for the others), not %d", f.flag, n)
		}
		flags = append(flags, f.flag)
		chinese = append(chinese, f.mark, f.values[0])
		other = append(other, f.mark, f.values[len(f.values)-1])
	}
	id.flags = strings.Join(flags, ", ")
	id.chinese, id.other = strings.NewReplacer(chinese...), strings.NewReplacer(other...)
	return id, nil
}

// edit returns what to do to every conversation, nil for nothing.
func (id *identity) edit() func(*data.Conversation) {
	if id.flags == "" {
		return nil
	}
	return func(c *data.Conversation) {
		marked, replacer := false, id.other
		for _, m := range c.Messages {
			marked = marked || strings.Contains(m.Content, "{{NAME}}") || strings.Contains(m.Content, "{{AUTHOR}}")
			if strings.ContainsFunc(m.Content, func(r rune) bool { return unicode.Is(unicode.Han, r) }) {
				replacer = id.chinese
			}
		}
		if !marked {
			return
		}
		id.edited++
		for i := range c.Messages {
			c.Messages[i].Content = replacer.Replace(c.Messages[i].Content)
		}
	}
}

// notice says where the flags were given for nothing.
func (id *identity) notice(e *env) {
	if id.flags != "" && id.edited == 0 {
		e.logf("notice: %s: no row holds {{NAME}} or {{AUTHOR}}, so nothing was put in", id.flags)
	}
}
