package tokenizer

import "math/bits"

// hashTable maps 64-bit keys to non-negative values by open addressing. It only
// grows. It is the inner loop of encoding, where a Go map is too slow.
type hashTable struct {
	slots []slot // a power of two, at most half full
	n     int
	shift uint8 // 64 - log2(len(slots))
}

type slot struct {
	key   uint64
	value int32 // None in an empty slot
}

// newHashTable returns a table with room for n entries.
func newHashTable(n int) hashTable {
	log := max(bits.Len(uint(2*n)), 1)
	t := hashTable{slots: make([]slot, 1<<log), shift: uint8(64 - log)}
	for i := range t.slots {
		t.slots[i].value = None
	}
	return t
}

// find returns the slot of key, or the empty one where it would be.
func (t *hashTable) find(key uint64) *slot {
	mask := uint64(len(t.slots) - 1)
	for h := (key ^ key>>31) * 0x9E3779B97F4A7C15 >> (t.shift & 63); ; h++ {
		if s := &t.slots[h&mask]; s.key == key || s.value == None {
			return s
		}
	}
}

func (t *hashTable) get(key uint64) (int32, bool) {
	v := t.find(key).value
	return v, v != None
}

func (t *hashTable) put(key uint64, value int32) {
	if 2*t.n >= len(t.slots) {
		old := t.slots
		*t = newHashTable(2 * t.n)
		for _, s := range old {
			if s.value != None {
				t.put(s.key, s.value)
			}
		}
	}
	s := t.find(key)
	if s.value == None {
		t.n++
	}
	*s = slot{key, value}
}

func pairKey(x, y int32) uint64 { return uint64(uint32(x))<<32 | uint64(uint32(y)) }

// trie finds the longest token that a text begins with.
type trie struct {
	token []int32   // node -> the token that ends there, or None; node 0 is the root
	next  hashTable // node, byte -> node
}

func newTrie(tokens int) trie {
	return trie{token: []int32{None}, next: newHashTable(2 * tokens)}
}

func (t *trie) insert(s string, token int32) {
	node := int32(0)
	for i := 0; i < len(s); i++ {
		key := pairKey(node, int32(s[i]))
		child, ok := t.next.get(key)
		if !ok {
			child = int32(len(t.token))
			t.token = append(t.token, None)
			t.next.put(key, child)
		}
		node = child
	}
	t.token[node] = token
}

// longest returns the longest token that s begins with, or None.
func (t *trie) longest(s string) int32 {
	best, node := None, int32(0)
	for i := 0; i < len(s); i++ {
		child, ok := t.next.get(pairKey(node, int32(s[i])))
		if !ok {
			break
		}
		node = child
		if tok := t.token[node]; tok != None {
			best = tok
		}
	}
	return best
}
