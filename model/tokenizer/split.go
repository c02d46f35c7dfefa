package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// A splitter returns where the piece of text that starts at i ends, i < len(text).
// The pieces of a text, taken from 0 on, cover it without gaps. Splitters are the
// patterns written out by hand: Go's regexp has no look-ahead, and a
// backtracking engine would be slow or worse on hostile text. Letters and numbers
// are those of Go's Unicode tables; a later standard's are split as symbols.
type splitter func(text string, i int) int

// qwen2Pattern is the pattern that qwen2 implements.
const qwen2Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

// qwen2 splits by qwen2Pattern, alternative by alternative.
func qwen2(text string, i int) int {
	c, n := classAt(text, i)
	j := i + n
	if c == letter {
		return skip(text, j, letter)
	}
	if c == number {
		return j
	}
	if n := contraction(text, i, true); n > 0 {
		return i + n
	}
	next, m := classAt(text, j)
	switch {
	case next == letter && c != newline:
		return skip(text, j+m, letter)
	case c == other:
		return skip(text, skip(text, j, other), newline)
	case next == other && text[i] == ' ':
		return skip(text, skip(text, j+m, other), newline)
	}
	end, last, nl := spaces(text, i)
	switch {
	case nl > 0:
		return nl
	case end == len(text) || last == i:
		return end
	}
	return last
}

// gpt2 splits by GPT-2's pattern, which byte-level pre-tokenizers have built in:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func gpt2(text string, i int) int { return gpt2Split(text, i, false) }

// smollm first makes each character of \p{N} a piece of its own, then splits
// what lies between them by GPT-2's pattern.
func smollm(text string, i int) int { return gpt2Split(text, i, true) }

func gpt2Split(text string, i int, digits bool) int {
	c, n := classAt(text, i)
	j := i + n
	if c == number && digits {
		return j
	}
	if n := contraction(text, i, false); n > 0 {
		return i + n
	}
	if c == letter || c == number || c == other {
		return skip(text, j, c)
	}
	if text[i] == ' ' {
		next, m := classAt(text, j)
		if next == letter || next == other || next == number && !digits {
			return skip(text, j+m, next)
		}
	}
	end, last, _ := spaces(text, i)
	if end == len(text) || last == i {
		return end
	}
	if digits {
		// The digit ends the text that the pattern sees, so nothing is left for it.
		if c, _ := classAt(text, end); c == number {
			return end
		}
	}
	return last
}

// contraction returns the length of 's 't 're 've 'm 'll 'd at i, or 0. With
// fold the letters may be of either case, and s may be ſ, its case variant.
func contraction(text string, i int, fold bool) int {
	if text[i] != '\'' || i+1 == len(text) {
		return 0
	}
	var lower byte
	if fold {
		lower = 'a' - 'A'
	}
	rest := text[i+1:]
	switch c := rest[0] | lower; c {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v', 'l':
		want := byte('e')
		if c == 'l' {
			want = 'l'
		}
		if len(rest) > 1 && rest[1]|lower == want {
			return 3
		}
	}
	if fold && len(rest) > 1 && rest[:2] == "ſ" {
		return 3
	}
	return 0
}

// spaces scans the white space at i: where it ends, where its last character
// begins, and where its last \r or \n ends (0 if it has none).
func spaces(text string, i int) (end, last, nl int) {
	for end = i; ; {
		c, n := classAt(text, end)
		if c != space && c != newline {
			return end, last, nl
		}
		last = end
		end += n
		if c == newline {
			nl = end
		}
	}
}

// skip returns where the run of class want at i ends.
func skip(text string, i int, want class) int {
	for {
		c, n := classAt(text, i)
		if c != want {
			return i
		}
		i += n
	}
}

// class is what the patterns can tell about a character.
type class uint8

const (
	end     class = iota // of the text; no character
	other                // [^\s\p{L}\p{N}], and a byte that is not UTF-8
	letter               // \p{L}
	number               // \p{N}
	space                // \s but \r and \n: the White_Space property
	newline              // \r or \n
)

// classAt returns the class and size in bytes of the character at i, or end, 0.
func classAt(text string, i int) (class, int) {
	if i >= len(text) {
		return end, 0
	}
	if c := text[i]; c < utf8.RuneSelf {
		return bmpClass[c], 1
	}
	r, n := utf8.DecodeRuneInString(text[i:])
	if int(r) < len(bmpClass) {
		return bmpClass[r], n
	}
	switch {
	case unicode.IsLetter(r):
		return letter, n
	case unicode.IsNumber(r):
		return number, n
	}
	return other, n // there is no white space beyond the BMP
}

// bmpClass is the class of each character of the basic multilingual plane.
var bmpClass = func() *[1 << 16]class {
	table := new([1 << 16]class)
	for i := range table {
		table[i] = other
	}
	set := func(t *unicode.RangeTable, c class) {
		for _, r := range t.R16 {
			for i := int(r.Lo); i <= int(r.Hi); i += int(r.Stride) {
				table[i] = c
			}
		}
	}
	set(unicode.L, letter)
	set(unicode.N, number)
	set(unicode.White_Space, space)
	table['\r'], table['\n'] = newline, newline
	return table
}()
