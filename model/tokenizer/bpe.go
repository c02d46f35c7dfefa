package tokenizer

import "fmt"

// bpe encodes pieces by byte pair merging: of all adjacent pairs that have a
// rule, the one of lowest rank is merged, the leftmost of equals, until none has.
//
// Carried out like that a piece of n bytes takes n log n steps. Instead this
// package searches for the one sequence of tokens in which every two neighbours
// are what merging makes of their bytes; that is the result of merging the whole
// (H. van Antwerpen and A. Neubeck, "So many tokens, so little time", 2024). The
// search is greedy, turns back rarely, and is linear in n whatever the bytes are.
//
// Inside, tokens are numbered by when they come to be: the 256 bytes first, then
// 256+rank for what the rule of that rank makes. Of two tokens the greater was
// made later.
type bpe struct {
	id      []int32   // token -> its id outside
	rule    []rule    // token -> what it was merged from
	length  []int32   // token -> its size in bytes
	shorter []int32   // token -> the longest other token that its bytes begin with, or None
	pairs   pairTable // two tokens -> what they merge into
	prefix  trie
}

// rule is the pair that a token is merged from (a byte is its own pair), and the
// first tokens that are made with it on the left and on the right, or never.
type rule struct{ left, right, asLeft, asRight int32 }

// never stands for a token that is not made. It is above all others.
const never = maxTokens - 1

// numBytes is the count of tokens that are a byte.
const numBytes = 256

// merge is a rule by ids: left and right become made.
type merge struct{ left, right, made int32 }

// newBPE builds the tables. tokens[id] holds the bytes of a token, merges are in
// order of rank.
func newBPE(tokens []string, merges []merge) (*bpe, error) {
	n := numBytes + len(merges)
	if n >= maxTokens {
		return nil, fmt.Errorf("%d merges: at most %d are supported", len(merges), maxTokens-numBytes-1)
	}
	b := &bpe{
		id:      make([]int32, n),
		rule:    make([]rule, n),
		length:  make([]int32, n),
		shorter: make([]int32, n),
		pairs:   newPairTable(len(merges)),
	}
	inside := make([]int32, len(tokens)) // id -> token
	for i := range inside {
		inside[i] = None
	}
	for i := range numBytes {
		b.id[i], b.rule[i], b.length[i] = None, rule{int32(i), int32(i), never, never}, 1
	}
	for i, tok := range tokens {
		if len(tok) == 1 {
			inside[i] = int32(tok[0])
			b.id[tok[0]] = int32(i)
		}
	}
	for rank, m := range merges {
		t := int32(numBytes + rank)
		r := rule{inside[m.left], inside[m.right], never, never}
		if r.left == None || r.right == None {
			return nil, fmt.Errorf("merge %d (%q, %q) uses a token that no merge before it makes", rank, tokens[m.left], tokens[m.right])
		}
		if inside[m.made] != None {
			return nil, fmt.Errorf("merge %d (%q, %q): another merge makes this token too, which is not supported", rank, tokens[m.left], tokens[m.right])
		}
		inside[m.made] = t
		b.id[t], b.rule[t], b.length[t] = m.made, r, int32(len(tokens[m.made]))
		b.pairs.put(r.left, r.right, t)
		left, right := &b.rule[r.left], &b.rule[r.right]
		left.asLeft, right.asRight = min(left.asLeft, t), min(right.asRight, t)
	}
	b.buildPrefixes(tokens)
	return b, nil
}

// buildPrefixes enters the tokens that merging can end with into the trie: those
// whose own bytes merge into them and nothing else.
func (b *bpe) buildPrefixes(tokens []string) {
	whole := make([]bool, len(b.id))
	var entries []entry
	for t, id := range b.id {
		if id == None {
			continue
		}
		r := b.rule[t]
		whole[t] = t < numBytes || whole[r.left] && whole[r.right] && b.undisturbed(r.left, r.right, int32(t))
		if whole[t] {
			entries = append(entries, entry{tokens[id], int32(t)})
		}
	}
	b.prefix = newTrie(entries)
	for i := range b.shorter {
		b.shorter[i] = None
	}
	for _, e := range entries {
		b.shorter[e.token] = b.prefix.longest(e.text[:len(e.text)-1])
	}
}

// undisturbed reports whether merging the bytes of x and y, each by itself, leads
// to x and y also when they are neighbours: whether no merge across the border
// comes before limit and before one that x or y needs.
func (b *bpe) undisturbed(x, y, limit int32) bool {
	for {
		left, right := &b.rule[x], &b.rule[y]
		if max(left.asLeft, right.asRight) < limit && b.pairs.made(x, y) < limit {
			return false // the first test only spares most look-ups
		}
		// Undo the later of the last merges of x and y. A merge across the border
		// must then come before it; one in y is to the right, so an equal one does.
		switch {
		case x < numBytes && y < numBytes:
			return true
		case x > y:
			limit, x = x, left.right
		default:
			limit, y = y+1, right.left
		}
	}
}

// appendPiece appends the ids of a piece to dst.
// Bytes without a token are left out, and what is around them merges.
func (b *bpe) appendPiece(dst []int32, piece string) []int32 {
	first := b.prefix.longest(piece)
	if first != None && int(b.length[first]) == len(piece) {
		return append(dst, b.id[first]) // most pieces of ordinary text
	}
	base := len(dst)
	dst, ok := b.search(dst, piece, first)
	if !ok {
		return b.appendPiece(dst[:base], b.withoutMissing(piece))
	}
	for i, t := range dst[base:] {
		dst[base+i] = b.id[t]
	}
	return dst
}

// search appends the tokens of a piece, the first of which is the token first or
// a shorter one. It fails if the piece has a byte without a token.
func (b *bpe) search(dst []int32, piece string, first int32) ([]int32, bool) {
	var buf [8]uint64
	dead := newBitset(buf[:], len(piece)+1) // positions after which the rest cannot be encoded
	base, pos := len(dst), 0
	for candidate := first; pos < len(piece); {
		last := None
		if len(dst) > base {
			last = dst[len(dst)-1]
		}
		t := candidate
		for t != None && (dead.has(pos+int(b.length[t])) || last != None && !b.undisturbed(last, t, never)) {
			t = b.shorter[t]
		}
		switch {
		case t != None:
			dst = append(dst, t)
			pos += int(b.length[t])
			candidate = b.prefix.longest(piece[pos:])
			if candidate == None && pos < len(piece) {
				return dst, false
			}
		case last != None: // nothing goes on from here: try a shorter one in place of last
			dead.set(pos)
			dst = dst[:len(dst)-1]
			pos -= int(b.length[last])
			candidate = b.shorter[last]
		default:
			return dst, false
		}
	}
	return dst, true
}

// withoutMissing returns piece without the bytes that have no token.
func (b *bpe) withoutMissing(piece string) string {
	kept := make([]byte, 0, len(piece))
	for i := 0; i < len(piece); i++ {
		if b.id[piece[i]] != None {
			kept = append(kept, piece[i])
		}
	}
	return string(kept)
}

// bitset is a set of small integers.
type bitset []uint64

// newBitset returns a set for 0..n-1, in buf (which is zero) if it fits there.
func newBitset(buf []uint64, n int) bitset {
	if words := (n + 63) / 64; words > len(buf) {
		return make(bitset, words)
	}
	return buf
}

func (s bitset) has(i int) bool { return s[i/64]>>(i%64)&1 != 0 }
func (s bitset) set(i int)      { s[i/64] |= 1 << (i % 64) }
