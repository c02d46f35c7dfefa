package data

import (
	"fmt"
	"strings"
	"unicode"
)

// Names are put in place of {{NAME}} and {{AUTHOR}}. As in ms-swift a row whose column tag is
// zh gets the first of two values, a row of another tag the second; a row without the column,
// which ms-swift cannot use, the first if it has Chinese characters. The zero Names change
// nothing.
type Names struct {
	chinese, other *strings.Replacer
}

// NewNames takes one value each, or two: for rows in Chinese, and for the others.
func NewNames(name, author []string) (Names, error) {
	var chinese, other []string
	for _, f := range []struct {
		flag, mark string
		values     []string
	}{{"--model_name", markName, name}, {"--model_author", markAuthor, author}} {
		switch n := len(f.values); {
		case n == 0:
			continue
		case n > 2:
			return Names{}, fmt.Errorf("%s takes one value, or two (for Chinese rows and for the others), not %d", f.flag, n)
		}
		chinese = append(chinese, f.mark, f.values[0])
		other = append(other, f.mark, f.values[len(f.values)-1])
	}
	if chinese == nil {
		return Names{}, nil
	}
	return Names{strings.NewReplacer(chinese...), strings.NewReplacer(other...)}, nil
}

const (
	markName   = "{{NAME}}"
	markAuthor = "{{AUTHOR}}"
)

// fill puts the names into a conversation, and reports whether it has a place for them.
func (n Names) fill(c *Conversation, tag *string) (marked bool) {
	chinese := tag != nil && *tag == "zh"
	for _, m := range c.Messages {
		marked = marked || strings.Contains(m.Content, markName) || strings.Contains(m.Content, markAuthor)
		chinese = chinese || tag == nil && strings.ContainsFunc(m.Content, func(r rune) bool { return unicode.Is(unicode.Han, r) })
	}
	if !marked || n.chinese == nil {
		return marked
	}
	replacer := n.other
	if chinese {
		replacer = n.chinese
	}
	for i := range c.Messages {
		c.Messages[i].Content = replacer.Replace(c.Messages[i].Content)
	}
	return true
}

// sample is what the marks become: it tells Names apart.
func (n Names) sample(chinese bool) string {
	const marks = markName + "\n" + markAuthor
	switch {
	case n.chinese == nil:
		return marks
	case chinese:
		return n.chinese.Replace(marks)
	}
	return n.other.Replace(marks)
}
