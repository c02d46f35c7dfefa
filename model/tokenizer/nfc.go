package tokenizer

import (
	"slices"
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
	if norm.NFC.QuickSpanString(text) == len(text) {
		return text
	}
	out := make([]byte, 0, len(text)+len(text)/8)
	for i := 0; i < len(text); {
		// Take what is normal already, back to a boundary, then one segment.
		n := norm.NFC.QuickSpanString(text[i:])
		start := lastBoundary(text, i, i+n)
		out = append(out, text[i:start]...)
		if start == len(text) {
			break
		}
		i = segmentEnd(text, start)
		out = appendSegment(out, text[start:i])
	}
	return string(out)
}

// lastBoundary returns the last position in [from, to] before which text can be
// cut without changing its normal form; from is one.
func lastBoundary(text string, from, to int) int {
	if to == len(text) {
		return to
	}
	for to > from && !boundaryBefore(text[to:]) {
		_, n := utf8.DecodeLastRuneInString(text[from:to])
		to -= n
	}
	return to
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

// appendSegment appends the normal form of one segment.
func appendSegment(dst []byte, segment string) []byte {
	if len(segment) <= shortSegment {
		return norm.NFC.AppendString(dst, segment)
	}
	if r, n := utf8.DecodeRuneInString(segment); r == utf8.RuneError && n == 1 {
		// Not UTF-8, which only the start of a segment can be: nothing joins it.
		dst, segment = append(dst, segment[0]), segment[1:]
	}
	// The canonical decomposition, put into canonical order.
	type char struct {
		r   rune
		ccc uint8
	}
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
