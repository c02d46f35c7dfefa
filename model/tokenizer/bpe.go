package tokenizer

import (
	"fmt"
	"math/bits"
)

// bpe merges the bytes of a piece into tokens: of all adjacent pairs that have a
// rule the one of lowest rank, the leftmost of equals, until no pair has one.
type bpe struct {
	byteID [256]int32       // byte -> the token of that byte alone, or None
	vocab  map[string]int32 // bytes -> token
	whole  []bool           // token -> its bytes, as a piece, merge into just this token
	result []int32          // rank -> the token that the rule makes
	pairs  pairTable        // two tokens -> rank of their rule
}

// noRank is the rank of a pair without a rule, above all others.
const noRank = ^uint32(0)

// newBPE builds the tables. tokens[id] holds the bytes of a token ("" for an id
// that is not of the vocabulary); merges[rank] names a pair by its bytes.
func newBPE(tokens []string, merges [][2]string) (*bpe, error) {
	b := &bpe{
		vocab:  make(map[string]int32, len(tokens)),
		whole:  make([]bool, len(tokens)),
		result: make([]int32, len(merges)),
		pairs:  newPairTable(len(merges)),
	}
	for i := range b.byteID {
		b.byteID[i] = None
	}
	for i, tok := range tokens {
		if tok == "" {
			continue
		}
		id := int32(i)
		if old, ok := b.vocab[tok]; ok {
			return nil, fmt.Errorf("ids %d and %d are the same token %q", old, id, tok)
		}
		b.vocab[tok] = id
		if len(tok) == 1 {
			b.byteID[tok[0]] = id
		}
	}
	for rank, m := range merges {
		left, okLeft := b.vocab[m[0]]
		right, okRight := b.vocab[m[1]]
		made, okMade := b.vocab[m[0]+m[1]]
		if !okLeft || !okRight || !okMade {
			return nil, fmt.Errorf("merge %d (%q, %q): the vocabulary lacks a part or the result", rank, m[0], m[1])
		}
		if !b.pairs.insert(left, right, uint32(rank)) {
			return nil, fmt.Errorf("merge %d (%q, %q) occurs twice", rank, m[0], m[1])
		}
		b.result[rank] = made
	}
	var buf []int32
	for i, tok := range tokens {
		if tok != "" {
			buf = b.merge(buf[:0], tok)
			b.whole[i] = len(buf) == 1 && buf[0] == int32(i)
		}
	}
	return b, nil
}

// appendPiece appends the tokens of a piece. Most pieces of ordinary text are a
// token, which one look-up tells.
func (b *bpe) appendPiece(dst []int32, piece string) []int32 {
	if id, ok := b.vocab[piece]; ok && b.whole[id] {
		return append(dst, id)
	}
	return b.merge(dst, piece)
}

// shortPiece is the length in bytes up to which scanning all pairs for the
// lowest rank beats a heap.
const shortPiece = 96

func (b *bpe) merge(dst []int32, piece string) []int32 {
	if len(piece) > shortPiece {
		return b.mergeLong(dst, piece)
	}
	return b.mergeShort(dst, piece)
}

// mergeShort merges by a linear scan for each step. Bytes without a token are
// left out.
func (b *bpe) mergeShort(dst []int32, piece string) []int32 {
	var idBuf [shortPiece]int32
	var rankBuf [shortPiece]uint32
	n := 0
	for i := 0; i < len(piece); i++ {
		if id := b.byteID[piece[i]]; id != None {
			idBuf[n] = id
			n++
		}
	}
	ids, ranks := idBuf[:n], rankBuf[:n] // ranks[i] is that of the pair (i, i+1)
	for i := range ranks {
		ranks[i] = b.rankAt(ids, i)
	}
	for {
		best, at := noRank, 0
		for i, r := range ranks {
			if r < best {
				best, at = r, i
			}
		}
		if best == noRank {
			return append(dst, ids...)
		}
		ids[at] = b.result[best]
		ids = append(ids[:at+1], ids[at+2:]...)
		ranks = append(ranks[:at+1], ranks[at+2:]...)
		ranks[at] = b.rankAt(ids, at)
		if at > 0 {
			ranks[at-1] = b.rankAt(ids, at-1)
		}
	}
}

func (b *bpe) rankAt(ids []int32, i int) uint32 {
	if i+1 >= len(ids) {
		return noRank
	}
	return b.pairs.rank(ids[i], ids[i+1])
}

// mergeLong merges with a heap over a linked list of symbols, n log n in the
// length of the piece.
func (b *bpe) mergeLong(dst []int32, piece string) []int32 {
	type symbol struct {
		id         int32
		rank       uint32 // of the pair (this, next)
		prev, next int32  // -1 at the ends
	}
	syms := make([]symbol, 0, len(piece))
	for i := 0; i < len(piece); i++ {
		if id := b.byteID[piece[i]]; id != None {
			at := int32(len(syms))
			syms = append(syms, symbol{id: id, rank: noRank, prev: at - 1, next: at + 1})
		}
	}
	if len(syms) == 0 {
		return dst
	}
	syms[len(syms)-1].next = -1

	// An entry is rank<<32 | position. It is stale, and skipped, unless the pair
	// at its position still has its rank.
	queue := make(minHeap, 0, len(syms))
	for i := range syms[:len(syms)-1] {
		if r := b.pairs.rank(syms[i].id, syms[i+1].id); r != noRank {
			syms[i].rank = r
			queue = append(queue, uint64(r)<<32|uint64(i))
		}
	}
	queue.init()
	rerank := func(at int32) {
		s := &syms[at]
		s.rank = noRank
		if s.next >= 0 {
			if s.rank = b.pairs.rank(s.id, syms[s.next].id); s.rank != noRank {
				queue.push(uint64(s.rank)<<32 | uint64(at))
			}
		}
	}
	for len(queue) > 0 {
		top := queue.pop()
		rank, at := uint32(top>>32), int32(uint32(top))
		s := &syms[at]
		if s.rank != rank {
			continue
		}
		gone := &syms[s.next]
		s.id, s.next = b.result[rank], gone.next
		gone.rank = noRank
		if s.next >= 0 {
			syms[s.next].prev = at
		}
		rerank(at)
		if s.prev >= 0 {
			rerank(s.prev)
		}
	}
	for at := int32(0); at >= 0; at = syms[at].next {
		dst = append(dst, syms[at].id)
	}
	return dst
}

// minHeap is a 4-ary heap with the least entry first: half the levels of a
// binary one, and a node's children share a cache line.
type minHeap []uint64

func (h minHeap) init() {
	for i := len(h) / 4; i >= 0; i-- {
		h.down(i)
	}
}

func (h *minHeap) push(x uint64) {
	*h = append(*h, x)
	q := *h
	i := len(q) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if q[parent] <= x {
			break
		}
		q[i] = q[parent]
		i = parent
	}
	q[i] = x
}

func (h *minHeap) pop() uint64 {
	q := *h
	top := q[0]
	last := len(q) - 1
	q[0] = q[last]
	*h = q[:last]
	h.down(0)
	return top
}

func (h minHeap) down(i int) {
	if i >= len(h) {
		return
	}
	x := h[i]
	for {
		first := 4*i + 1
		if first >= len(h) {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, len(h)); c++ {
			if h[c] < h[least] {
				least = c
			}
		}
		if h[least] >= x {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = x
}

// pairTable is a fixed open-addressing hash table from a pair of tokens to the
// rank of its rule; it is the inner loop of merging, where a Go map is too slow.
type pairTable struct {
	slots []pairSlot // a power of two, at most half full
	shift uint8      // 64 - log2(len(slots))
}

type pairSlot struct {
	pair uint64
	rank uint32 // noRank in an empty slot
}

func newPairTable(n int) pairTable {
	log := max(bits.Len(uint(2*n)), 1)
	t := pairTable{slots: make([]pairSlot, 1<<log), shift: uint8(64 - log)}
	for i := range t.slots {
		t.slots[i].rank = noRank
	}
	return t
}

// slot returns the slot of the pair, or the empty one where it would be.
func (t *pairTable) slot(left, right int32) *pairSlot {
	pair := uint64(uint32(left))<<32 | uint64(uint32(right))
	mask := uint64(len(t.slots) - 1)
	h := (pair ^ pair>>29) * 0x9E3779B97F4A7C15 >> (t.shift & 63)
	for {
		s := &t.slots[h&mask]
		if s.pair == pair || s.rank == noRank {
			return s
		}
		h++
	}
}

func (t *pairTable) rank(left, right int32) uint32 {
	s := t.slot(left, right)
	return s.rank
}

func (t *pairTable) insert(left, right int32, rank uint32) bool {
	s := t.slot(left, right)
	if s.rank != noRank {
		return false
	}
	*s = pairSlot{uint64(uint32(left))<<32 | uint64(uint32(right)), rank}
	return true
}
