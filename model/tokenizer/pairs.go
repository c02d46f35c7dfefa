package tokenizer

import "math/bits"

// pairTable maps two tokens to what they merge into. Merging asks for pairs at
// random, so it is as dense as it can be: a slot packs all three into one word.
type pairTable struct {
	slots []uint64 // a power of two, at most 2/3 full; noPair in an empty one
	shift uint8    // 64 - log2(len(slots))
}

const (
	tokenBits = 21 // three tokens fit a word
	maxTokens = 1 << tokenBits
	noPair    = ^uint64(0)
)

// newPairTable returns a table with room for n pairs.
func newPairTable(n int) pairTable {
	log := bits.Len(uint(n + n/2))
	t := pairTable{slots: make([]uint64, 1<<log), shift: uint8(64 - log)}
	for i := range t.slots {
		t.slots[i] = noPair
	}
	return t
}

// find returns the slot of a pair, or the empty one where it would be.
func (t *pairTable) find(x, y int32) *uint64 {
	key := uint64(x)<<tokenBits | uint64(y)
	mask := uint64(len(t.slots) - 1)
	for h := key * 0x9E3779B97F4A7C15 >> (t.shift & 63); ; h++ {
		if s := &t.slots[h&mask]; *s>>tokenBits == key || *s == noPair {
			return s
		}
	}
}

// made returns what x and y merge into, or never.
func (t *pairTable) made(x, y int32) int32 {
	return int32(*t.find(x, y) & (maxTokens - 1))
}

func (t *pairTable) put(x, y, made int32) {
	*t.find(x, y) = (uint64(x)<<tokenBits|uint64(y))<<tokenBits | uint64(made)
}
