package tokenizer

import "unicode/utf8"

// Decode returns the text of ids, special tokens written out. Bytes that are not
// UTF-8 become U+FFFD, one for each maximal part of a character (Unicode 3.9, as
// the tokenizers library); ids without a token are left out.
func (t *Tokenizer) Decode(ids []int32) string { return t.decode(ids, false) }

// DecodeSkipSpecial is Decode without the special tokens.
func (t *Tokenizer) DecodeSkipSpecial(ids []int32) string { return t.decode(ids, true) }

func (t *Tokenizer) decode(ids []int32, skip bool) string {
	s := Stream{t: t, skipSpecial: skip}
	for _, id := range ids {
		s.add(id)
	}
	return s.Flush()
}

// Stream decodes token by token and gives out whole characters only. The texts
// of all Push calls and the final Flush, joined, are what Decode gives at once.
type Stream struct {
	t           *Tokenizer
	skipSpecial bool
	pending     []byte // bytes not given out yet
}

// NewStream begins a stream, which leaves special tokens out if skipSpecial.
func (t *Tokenizer) NewStream(skipSpecial bool) *Stream {
	return &Stream{t: t, skipSpecial: skipSpecial}
}

// Push takes the next token and returns the text it completes, often none.
func (s *Stream) Push(id int32) string {
	s.add(id)
	n := len(s.pending) - unfinished(s.pending)
	text := lossy(s.pending[:n])
	s.pending = append(s.pending[:0], s.pending[n:]...)
	return text
}

// Flush ends the text: it returns what is left, a cut-off character as U+FFFD.
func (s *Stream) Flush() string {
	text := lossy(s.pending)
	s.pending = s.pending[:0]
	return text
}

func (s *Stream) add(id int32) {
	if s.skipSpecial && s.t.IsSpecial(id) {
		return
	}
	token, _ := s.t.Token(id)
	s.pending = append(s.pending, token...)
}

// unfinished returns how many bytes at the end of b begin a character that more
// bytes could complete.
func unfinished(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if utf8.RuneStart(b[len(b)-n]) {
			if utf8.FullRune(b[len(b)-n:]) {
				return 0
			}
			return n
		}
	}
	return 0
}

// lossy returns b as text, each maximal part of a character that is not one
// replaced by U+FFFD.
func lossy(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	out := make([]byte, 0, len(b)+8)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			// The part is the longest start of b that could begin a character.
			for n < len(b) && !utf8.FullRune(b[:n]) && !utf8.FullRune(b[:n+1]) {
				n++
			}
		}
		out = utf8.AppendRune(out, r)
		b = b[n:]
	}
	return string(out)
}
