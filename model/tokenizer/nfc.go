package tokenizer

import (
	"slices"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// nfc returns text in Unicode normalization form C (UAX #15). Text that is in
// it already, which is nearly all text, is returned as it is.
//
// x/text does the work but for one case: in a run of more than 30 combining
// marks it inserts a joiner (the Stream-Safe Text Format), which plain NFC, and
// so the tokenizers library, does not. Long segments are therefore composed here.
func nfc(text string) string {
	i := lastBoundary(text, plainSpan(text))
	if i += norm.NFC.QuickSpanString(text[i:]); i == len(text) {
		return text
	}
	i = lastBoundary(text, i)
	out := append(make([]byte, 0, len(text)+len(text)/8), text[:i]...)
	for i < len(text) {
		short, end := stretch(text, i)
		out = norm.NFC.AppendString(out, text[i:short])
		out = appendLong(out, text[short:end])
		i = end
	}
	return string(out)
}

// stretch scans segments from i on, up to the first long one: where it begins,
// and where it ends. Without one both are the end of text.
func stretch(text string, i int) (short, end int) {
	for short = i; short < len(text); short = end {
		end = segmentEnd(text, short)
		if end-short > shortSegment {
			return short, end
		}
	}
	return short, short
}

// plainSpan returns the length of a start of text of which every character is
// inert; this is much faster than QuickSpan.
func plainSpan(text string) int {
	set := inert()
	for i := 0; i < len(text); {
		if text[i] < utf8.RuneSelf {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		if int(r) >= 64*len(set) || !set.has(int(r)) {
			return i
		}
		i += n
	}
	return len(text)
}

// inert is the set of the characters of the basic multilingual plane that never
// change, and never combine with or move before what precedes them.
var inert = sync.OnceValue(func() bitset {
	set := make(bitset, 1<<16/64)
	for r := range rune(1 << 16) {
		if utf8.ValidRune(r) && r != utf8.RuneError && norm.NFC.IsNormalString(string(r)) && boundaryBefore(string(r)) {
			set.set(int(r))
		}
	}
	return set
})

// lastBoundary returns the last position up to i at which text can be cut
// without changing its normal form.
func lastBoundary(text string, i int) int {
	for i > 0 && i < len(text) && !boundaryBefore(text[i:]) {
		_, n := utf8.DecodeLastRuneInString(text[:i])
		i -= n
	}
	return i
}

// segmentEnd returns where the segment that starts at i ends: at the next
// boundary after its first character.
func segmentEnd(text string, i int) int {
	for {
		_, n := utf8.DecodeRuneInString(text[i:])
		i += n
		if i == len(text) || boundaryBefore(text[i:]) {
			return i
		}
	}
}

// boundaryBefore reports whether the first character of text never combines with
// or is reordered before what precedes it.
func boundaryBefore(text string) bool {
	if text[0] < utf8.RuneSelf {
		return true
	}
	p := norm.NFC.PropertiesString(text)
	return p.Size() == 0 || p.BoundaryBefore() // size 0: not UTF-8, left alone
}

// shortSegment is a length in bytes under which no segment decomposes into more
// combining marks than x/text accepts: no character shorter than 2 bytes
// decomposes into marks, and none gives more than 3.
const shortSegment = 20

// appendLong appends the normal form of one segment, or of nothing.
func appendLong(dst []byte, segment string) []byte {
	type char struct {
		r   rune
		ccc uint8 // canonical combining class
	}
	if r, n := utf8.DecodeRuneInString(segment); r == utf8.RuneError && n == 1 {
		// Not UTF-8, which only the start of a segment can be: nothing joins it.
		dst, segment = append(dst, segment[0]), segment[1:]
	}
	// The canonical decomposition, put into canonical order.
	var chars []char
	for i := 0; i < len(segment); {
		p := norm.NFC.PropertiesString(segment[i:])
		decomposed := string(p.Decomposition())
		if decomposed == "" {
			decomposed = segment[i : i+p.Size()]
		}
		for _, r := range decomposed {
			chars = append(chars, char{r, norm.NFC.PropertiesString(string(r)).CCC()})
		}
		i += p.Size()
	}
	for i := 0; i < len(chars); {
		j := i + 1
		for j < len(chars) && chars[i].ccc != 0 && chars[j].ccc != 0 {
			j++
		}
		slices.SortStableFunc(chars[i:j], func(a, b char) int { return int(a.ccc) - int(b.ccc) })
		i = j
	}
	// Composition: each character joins the last starter before it, unless one of
	// the same or a higher class stands between them (it is blocked).
	starter, last := -1, uint8(0) // last: class of the character kept last
	kept := chars[:0]
	for _, c := range chars {
		if starter >= 0 && (last < c.ccc || starter == len(kept)-1) {
			if r, ok := compose(kept[starter].r, c.r); ok {
				kept[starter].r = r
				continue
			}
		}
		if c.ccc == 0 {
			starter = len(kept)
		}
		last = c.ccc
		kept = append(kept, c)
	}
	for _, c := range kept {
		dst = utf8.AppendRune(dst, c.r)
	}
	return dst
}

// compose returns the primary composite of two characters, if there is one.
func compose(a, b rune) (rune, bool) {
	var in, out [2 * utf8.UTFMax]byte
	pair := utf8.AppendRune(utf8.AppendRune(in[:0], a), b)
	joined := norm.NFC.Append(out[:0], pair...)
	r, n := utf8.DecodeRune(joined)
	return r, n == len(joined)
}
