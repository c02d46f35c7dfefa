package data

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
)

// Order says in which order an epoch visits N samples: a pure function of its fields and the
// epoch's number, so that a run resumes from a Cursor alone.
type Order struct {
	N              int
	Seed           uint64
	DatasetShuffle bool // shuffle once, the same for every epoch
	EpochShuffle   bool // shuffle anew for every epoch
}

// Cursor is a place in the order: Index samples of epoch Epoch are done. Epochs count from 0.
type Cursor struct {
	Epoch int `json:"epoch"`
	Index int `json:"index"`
}

// Epoch returns the samples in the order that an epoch visits them, each once.
func (o Order) Epoch(epoch int) []int {
	order := identity(o.N)
	if o.DatasetShuffle {
		shuffle(order, newStream(o.Seed, streamDataset, 0))
	}
	if o.EpochShuffle {
		shuffle(order, newStream(o.Seed, streamEpoch, uint64(epoch)))
	}
	return order
}

const (
	streamDataset = iota
	streamEpoch
	streamSample  // which rows of a dataset are taken
	streamInstead // which row stands in for one that cannot be used
)

// newStream returns the random numbers of one shuffle: ChaCha8 in counter mode, keyed with
// what the shuffle is for, so that streams are unrelated however close their seeds.
func newStream(seed, purpose, number uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[0:], seed)
	binary.LittleEndian.PutUint64(key[8:], purpose)
	binary.LittleEndian.PutUint64(key[16:], number)
	return rand.NewChaCha8(key)
}

// shuffle is Fisher and Yates's. It is spelled out because rand.Shuffle may change how it
// draws from its source, and a resumed run must not.
func shuffle(order []int, stream *rand.ChaCha8) {
	for i := len(order) - 1; i > 0; i-- {
		j := below(uint64(i+1), stream)
		order[i], order[j] = order[j], order[i]
	}
}

// below draws uniformly from 0..n-1 (Lemire, Fast Random Integer Generation in an Interval, 2019).
func below(n uint64, stream *rand.ChaCha8) uint64 {
	hi, lo := bits.Mul64(stream.Uint64(), n)
	for threshold := -n % n; lo < threshold; {
		hi, lo = bits.Mul64(stream.Uint64(), n)
	}
	return hi
}

// Sampler walks through the epochs of an Order.
type Sampler struct {
	order  Order
	cursor Cursor
	epoch  []int // order of the cursor's epoch
}

// NewSampler starts at a cursor; the zero Cursor is the beginning.
func NewSampler(order Order, at Cursor) (*Sampler, error) {
	if at.Epoch < 0 || at.Index < 0 || at.Index >= order.N {
		return nil, fmt.Errorf("epoch %d, index %d is no place in epochs of %d samples", at.Epoch, at.Index, order.N)
	}
	return &Sampler{order: order, cursor: at, epoch: order.Epoch(at.Epoch)}, nil
}

// Cursor returns the place that Next goes on from.
func (s *Sampler) Cursor() Cursor { return s.cursor }

// Next returns the samples of the next optimizer step: batch of them, fewer at the end of an
// epoch, for a step does not reach into the next.
func (s *Sampler) Next(batch int) []int {
	from := s.cursor.Index
	to := min(from+batch, len(s.epoch))
	step := s.epoch[from:to:to]
	s.cursor.Index = to
	if to == len(s.epoch) {
		s.cursor = Cursor{Epoch: s.cursor.Epoch + 1}
		s.epoch = s.order.Epoch(s.cursor.Epoch)
	}
	return step
}

// StepsPerEpoch returns how many calls of Next make an epoch.
func (o Order) StepsPerEpoch(batch int) int { return (o.N + batch - 1) / batch }
