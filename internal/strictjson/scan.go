package strictjson

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner steps through a document that json.Valid has accepted, so it needs no
// syntax checks of its own.
type scanner struct {
	data []byte
	pos  int
}

func (s *scanner) space() {
	for s.pos < len(s.data) && strings.IndexByte(" \t\r\n", s.data[s.pos]) >= 0 {
		s.pos++
	}
}

func (s *scanner) comma() {
	if s.data[s.pos] == ',' {
		s.pos++
	}
}

// text steps over the string at pos and returns what stands between its quotes.
func (s *scanner) text() []byte {
	start := s.pos + 1
	for s.pos = start; s.data[s.pos] != '"'; s.pos++ {
		if s.data[s.pos] == '\\' {
			s.pos++
		}
	}
	s.pos++
	return s.data[start : s.pos-1 : s.pos-1]
}

// key steps over a key and its colon to the value, and returns the key as it is
// written.
func (s *scanner) key() []byte {
	key := s.text()
	s.space()
	s.pos++ // :
	s.space()
	return key
}

// skip steps over the value at pos.
func (s *scanner) skip() {
	for depth := 0; ; {
		switch s.data[s.pos] {
		case '"':
			s.text()
		case '{', '[':
			depth++
			s.pos++
		case '}', ']':
			depth--
			s.pos++
		default: // a number, a name, and between values the rest
			s.pos++
			for s.pos < len(s.data) && strings.IndexByte(" \t\r\n,:[]{}\"", s.data[s.pos]) < 0 {
				s.pos++
			}
		}
		if depth == 0 {
			return
		}
	}
}

// nextRune reads the first character of a string's text, escaped or not, as
// encoding/json does: half a surrogate pair is U+FFFD.
func nextRune(text []byte) (r rune, size int) {
	if text[0] != '\\' {
		return utf8.DecodeRune(text)
	}
	if at := strings.IndexByte("bfnrt", text[1]); at >= 0 {
		return rune("\b\f\n\r\t"[at]), 2
	}
	if text[1] != 'u' {
		return rune(text[1]), 2
	}
	if r = hex4(text[2:]); !utf16.IsSurrogate(r) {
		return r, 6
	}
	if bytes.HasPrefix(text[6:], []byte(`\u`)) {
		if pair := utf16.DecodeRune(r, hex4(text[8:])); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return utf8.RuneError, 6
}

func hex4(digits []byte) rune {
	n, _ := strconv.ParseUint(string(digits[:4]), 16, 16) // json.Valid has seen them
	return rune(n)
}

// unescape appends the characters that a string's text stands for.
func unescape(dst, text []byte) []byte {
	if bytes.IndexByte(text, '\\') < 0 {
		return append(dst, text...)
	}
	for len(text) > 0 {
		r, n := nextRune(text)
		dst, text = utf8.AppendRune(dst, r), text[n:]
	}
	return dst
}

// compareText orders strings by what they stand for.
func compareText(a, b []byte) int {
	if bytes.IndexByte(a, '\\') < 0 && bytes.IndexByte(b, '\\') < 0 {
		return bytes.Compare(a, b)
	}
	for len(a) > 0 && len(b) > 0 {
		x, n := nextRune(a)
		y, m := nextRune(b)
		if x != y {
			return cmp.Compare(x, y)
		}
		a, b = a[n:], b[m:]
	}
	return cmp.Compare(len(a), len(b))
}
