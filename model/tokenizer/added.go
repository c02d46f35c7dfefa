package tokenizer

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// addedToken is a token recognised in the text itself, before any splitting.
type addedToken struct {
	content string
	id      int32
	special bool
}

// matcher finds added tokens: the leftmost one, and the longest of those that
// begin there.
type matcher struct {
	firsts  string // the distinct first characters of the tokens
	byFirst [256][]addedToken
}

func newMatcher(tokens []addedToken) matcher {
	var m matcher
	for _, t := range tokens {
		if r, n := utf8.DecodeRuneInString(t.content); !strings.ContainsRune(m.firsts, r) {
			m.firsts += t.content[:n]
		}
		m.byFirst[t.content[0]] = append(m.byFirst[t.content[0]], t)
	}
	for _, list := range m.byFirst {
		slices.SortFunc(list, func(a, b addedToken) int { return len(b.content) - len(a.content) })
	}
	return m
}

// find returns where the first added token at or after from begins, and which
// one it is, or nil.
func (m *matcher) find(text string, from int) (int, *addedToken) {
	for i := from; ; i++ {
		k := strings.IndexAny(text[i:], m.firsts)
		if k < 0 {
			return len(text), nil
		}
		i += k
		list := m.byFirst[text[i]]
		for j := range list {
			if strings.HasPrefix(text[i:], list[j].content) {
				return i, &list[j]
			}
		}
	}
}
