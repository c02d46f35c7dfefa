package infer

import "strings"

// Decoder turns tokens into text piece by piece, as tokenizer.Stream does.
type Decoder interface {
	Push(id int32) string
	Flush() string
}

// Text is the text of one answer as it grows. It ends before the first stop word, wherever in the tokens that begins
// and ends; text that may yet turn out to be the start of one is held back.
type Text struct {
	from  Decoder
	stops []string
	show  func(string) // sees the text piece by piece; may be nil

	text strings.Builder
	held string
	done bool
}

// NewText begins an answer.
func NewText(from Decoder, stops []string, show func(string)) *Text {
	return &Text{from: from, stops: stops, show: show}
}

// Push takes the next token, and reports whether a stop word is complete: what follows is no part of the answer.
func (t *Text) Push(id int32) (stop bool) {
	t.add(t.from.Push(id))
	return t.done
}

// End ends the answer and returns its text.
func (t *Text) End() string {
	t.add(t.from.Flush())
	if !t.done {
		t.out(t.held)
	}
	t.held, t.done = "", true
	return t.text.String()
}

func (t *Text) add(text string) {
	if t.done || text == "" {
		return
	}
	t.held += text
	first := -1
	for _, word := range t.stops {
		if i := strings.Index(t.held, word); i >= 0 && (first < 0 || i < first) {
			first = i
		}
	}
	if first >= 0 {
		t.out(t.held[:first])
		t.held, t.done = "", true
		return
	}
	n := len(t.held) - t.begun()
	t.out(t.held[:n])
	t.held = t.held[n:]
}

// begun is how many bytes at the end of what is held may begin a stop word.
func (t *Text) begun() int {
	most := 0
	for _, word := range t.stops {
		for n := min(len(word)-1, len(t.held)); n > most; n-- {
			if strings.HasSuffix(t.held, word[:n]) {
				most = n
			}
		}
	}
	return most
}

func (t *Text) out(text string) {
	t.text.WriteString(text)
	if t.show != nil && text != "" {
		t.show(text)
	}
}
