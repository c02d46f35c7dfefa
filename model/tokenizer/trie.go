package tokenizer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// trie finds the longest token that a text begins with. It is frozen when built:
// its nodes are numbered level by level, so that the children of a node are
// consecutive and the nodes near the root, which most steps visit, lie together.
type trie struct {
	nodes  []node  // one more than there are, for the end of the last one's children
	labels []byte  // node -> the byte that leads to it
	second []int32 // first two bytes -> node, or None: the steps every search takes
}

type node struct {
	child int32 // the first child; those of the next node begin where they end
	token int32 // the token that ends here, or None
}

// entry is a token to put into a trie.
type entry struct {
	text  string
	token int32
}

// newTrie builds the trie of entries with distinct, non-empty texts, which it
// sorts.
func newTrie(entries []entry) trie {
	sortByText(entries)
	// A node is made by its parent as the range of entries that begin with it.
	type span struct{ lo, hi, depth int32 }
	spans := []span{{0, int32(len(entries)), 0}}
	t := trie{labels: []byte{0}}
	for i := 0; i < len(spans); i++ {
		s := spans[i]
		n := node{child: int32(len(spans)), token: None}
		if s.lo < s.hi && len(entries[s.lo].text) == int(s.depth) {
			n.token = entries[s.lo].token
			s.lo++
		}
		for s.lo < s.hi {
			label := entries[s.lo].text[s.depth]
			hi := s.lo + 1
			for hi < s.hi && entries[hi].text[s.depth] == label {
				hi++
			}
			spans = append(spans, span{s.lo, hi, s.depth + 1})
			t.labels = append(t.labels, label)
			s.lo = hi
		}
		t.nodes = append(t.nodes, n)
	}
	t.nodes = append(t.nodes, node{child: int32(len(spans)), token: None})
	t.second = make([]int32, 1<<16)
	for i := range t.second {
		if t.second[i] = t.step(0, byte(i>>8)); t.second[i] != None {
			t.second[i] = t.step(t.second[i], byte(i))
		}
	}
	return t
}

// step returns the child of a node that a byte leads to, or None.
func (t *trie) step(at int32, c byte) int32 {
	lo, hi := t.nodes[at].child, t.nodes[at+1].child
	if hi-lo > 8 {
		if k := bytes.IndexByte(t.labels[lo:hi], c); k >= 0 {
			return lo + int32(k)
		}
		return None
	}
	for i := lo; i < hi; i++ {
		if t.labels[i] == c {
			return i
		}
	}
	return None
}

// longest returns the longest token that s begins with, or None.
func (t *trie) longest(s string) int32 {
	best, at, i := None, int32(0), 0
	if len(s) >= 2 {
		if two := t.second[int(s[0])<<8|int(s[1])]; two != None {
			at, i = two, 2
			if best = t.nodes[two].token; best == None {
				best = t.nodes[t.step(0, s[0])].token
			}
		}
	}
	for ; i < len(s); i++ {
		if at = t.step(at, s[i]); at == None {
			break
		}
		if token := t.nodes[at].token; token != None {
			best = token
		}
	}
	return best
}

// sortByText sorts by the first eight bytes as a number, which settles most
// comparisons.
func sortByText(entries []entry) {
	type keyed struct {
		head uint64
		entry
	}
	list := make([]keyed, len(entries))
	for i, e := range entries {
		var head [8]byte
		copy(head[:], e.text)
		list[i] = keyed{binary.BigEndian.Uint64(head[:]), e}
	}
	slices.SortFunc(list, func(a, b keyed) int {
		return cmp.Or(cmp.Compare(a.head, b.head), cmp.Compare(a.text, b.text))
	})
	for i, k := range list {
		entries[i] = k.entry
	}
}
