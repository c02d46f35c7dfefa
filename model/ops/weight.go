package ops

import (
	"qlora/internal/nf4"
	"qlora/internal/random"
)

// WeightKind says what a fused frozen weight is made of, so that a backend can choose its own
// layout. Its parts are stacked along the output axis, in this order.
type WeightKind uint8

const (
	Plain  WeightKind = iota // one part: o, down, head, embedding table
	QKV                      // q (H·D), k (Hk·D), v (Hk·D); a backend may permute rows of q and k so that rope pairs lie side by side
	GateUp                   // gate (F), up (F); a backend may interleave them
)

// Slot names the four frozen weights of a decoder layer.
type Slot uint8

const (
	SlotQKV Slot = iota
	SlotO
	SlotGateUp
	SlotDown
	Slots // their number
)

func (s Slot) String() string { return [...]string{"qkv", "o", "gateup", "down"}[s] }

// Source streams one part of a weight from wherever it is stored: Rows x Cols, n rows at a
// time from row on, in any order.
type Source struct {
	Name       string
	Rows, Cols int
	ReadF32    func(dst []float32, row, n int) error
	// ReadBF16 gives the stored bytes where the source is bfloat16 already, and is nil elsewhere: the
	// short way to a card.
	ReadBF16 func(dst []byte, row, n int) error
	// Random is the stream the values are, row by row, rounded to bfloat16: a backend may make them itself and read
	// nothing. It is nil elsewhere.
	Random *random.Normal
	// NF4 is the part as it is stored where that is NF4 already, and nil elsewhere.
	NF4 *NF4Source
}

// NF4Source is a part that is stored in NF4. Its scales are few; its codes are read in pieces.
type NF4Source struct {
	nf4.Scales
	ReadCodes func(dst []byte, at int) error // bytes at..
}

// WeightSpec describes a weight before it is loaded.
type WeightSpec struct {
	Name    string
	Kind    WeightKind
	DType   DType // storage: F32, BF16, or NF4: each part quantised by itself from bfloat16, Cols a multiple of 64
	Single  bool  // NF4: absmax in float32, without double quantisation
	Parts   []int // output rows of each part
	Cols    int
	HeadDim int  // D, for QKV
	Bias    bool // every output row has a bias, kept in float32
	Back    bool // LinearBack will be asked for: a training run
}

// Rows is the output rows of all parts.
func (s WeightSpec) Rows() int {
	n := 0
	for _, p := range s.Parts {
		n += p
	}
	return n
}

// Weight is a frozen matrix (Rows, Cols), and its bias, in a layout of the backend's own.
// Outputs of a product with it (qkv, gateup) are laid out to match: only ops of the same
// backend read them.
type Weight interface {
	Spec() WeightSpec
	Bytes() int64
}

// Module is the LoRA pair of one part of a weight.
type Module struct {
	Part   int     // which part of the weight it adapts
	Rank   int     // R
	Scale  float32 // s
	Drop   float32 // dropout probability on the module's own copy of its input
	Stream uint32  // the module's number in the dropout counter: unique in the model
	A, B   Tensor  // float32 (R,in), (out,R): views of the flat parameters
	DA, DB Tensor  // their gradients, views of the flat gradients; Nil outside training
}

// Width is how many columns of u and du a module takes: its rank, rounded up so that every row and module begins at 16
// bytes. The last ones, beyond the rank, are written as zeros.
func (m *Module) Width() int { return (m.Rank + 7) &^ 7 }

// LoRA is the adapters on one weight: some of its parts have a module, in part order. u and du
// of the weight are (T, Width): the modules' columns side by side.
type LoRA struct {
	Weight  WeightSpec // the weight adapted: its parts place each module's rows, its kind and head size their layout
	Modules []Module
	Width   int    // columns of u and du: the modules' widths together
	Pack    Tensor // the backend's own form of A and B (LoRAPackBytes), written by PackLoRA
}

// Col is the first column of module i in u and du.
func (l *LoRA) Col(i int) int {
	c := 0
	for k := range i {
		c += l.Modules[k].Width()
	}
	return c
}

// Row is the first output row of module i's part in the fused weight.
func (l *LoRA) Row(i int, parts []int) int {
	r := 0
	for _, p := range parts[:l.Modules[i].Part] {
		r += p
	}
	return r
}
