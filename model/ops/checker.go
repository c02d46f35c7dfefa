package ops

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxRank bounds the rank of a module, MaxWidth the columns of a LoRA: what a tile of u may take
// next to a tile of the product.
const (
	MaxRank  = 64
	MaxWidth = 3 * MaxRank
)

// checker gathers the first mistake in the arguments of one op, and the places of its tensors for
// the check that nothing written overlaps anything else. It lives on the stack: the success path
// of a check does not allocate.
type checker struct {
	op   string
	err  error
	n    int
	args [20]argument
}

type argument struct {
	name     string
	buf      Buffer
	off, end int64
	written  bool
}

// dtypes is a set of storage types.
type dtypes uint16

func only(d DType) dtypes { return 1 << d }

const reals = dtypes(1<<F32 | 1<<BF16 | 1<<F64)

// state is the storage of statistics, LoRA factors and gradients beside activations of type act:
// float32, or float64 in the oracle.
func state(act DType) dtypes {
	if act == F64 {
		return 1<<F32 | 1<<F64
	}
	return 1 << F32
}

func (d dtypes) String() string {
	var names []string
	for t := F32; t <= U8; t++ {
		if d&only(t) != 0 {
			names = append(names, t.String())
		}
	}
	return strings.Join(names, " or ")
}

func (c *checker) failf(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("ops: %s: %w", c.op, fmt.Errorf(format, args...))
	}
}

// label is how errors name t: the argument, the tensor's own name where it differs, shape and type.
func label(arg string, t Tensor) string {
	own := t.Name
	t.Name = arg
	if own == "" || own == arg {
		return t.String()
	}
	return t.String() + " \"" + own + "\""
}

// in checks a tensor that is read: given, of one of the types, and of the shape dims, whose
// letters are why.
func (c *checker) in(arg string, t Tensor, types dtypes, why string, dims ...int) {
	c.tensor(arg, t, false, types, why, dims)
}

// out checks a tensor that is written.
func (c *checker) out(arg string, t Tensor, types dtypes, why string, dims ...int) {
	c.tensor(arg, t, true, types, why, dims)
}

func (c *checker) tensor(arg string, t Tensor, written bool, types dtypes, why string, dims []int) {
	switch {
	case c.err != nil:
		return
	case t.Nil():
		c.failf("%s is missing: %s", arg, why)
		return
	case !sameShape(t.Shape, dims):
		c.failf("%s should be (%s): %s", label(arg, t), dimsText(slices.Clone(dims)), why)
		return
	case types&only(t.DType) == 0:
		c.failf("%s should be %s", label(arg, t), types)
		return
	case t.Off < 0 || t.Off+t.Bytes() > t.Buf.Bytes():
		c.failf("%s at byte %d ends outside its arena of %d bytes", label(arg, t), t.Off, t.Buf.Bytes())
		return
	}
	c.args[c.n] = argument{arg, t.Buf, t.Off, t.Off + t.Bytes(), written}
	c.n++
}

func sameShape(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// done returns the first mistake, after the check that no tensor written overlaps another argument.
// Two arguments that may be one tensor are listed as pairs of names; they may not overlap in part.
func (c *checker) done(mayBe ...[2]string) error {
	for i := 0; i < c.n && c.err == nil; i++ {
		for j := i + 1; j < c.n; j++ {
			a, b := &c.args[i], &c.args[j]
			if !a.written && !b.written || a.buf != b.buf || a.end <= b.off || b.end <= a.off {
				continue
			}
			if a.off == b.off && a.end == b.end && listed(mayBe, a.name, b.name) {
				continue
			}
			c.failf("%s and %s overlap in memory (bytes %d-%d and %d-%d)", a.name, b.name, a.off, a.end, b.off, b.end)
			break
		}
	}
	return c.err
}

func listed(pairs [][2]string, a, b string) bool {
	for _, p := range pairs {
		if p == [2]string{a, b} || p == [2]string{b, a} {
			return true
		}
	}
	return false
}

// act is the storage of t, the tensor that sets the type of an op's activations.
func (c *checker) act(arg string, t Tensor) DType {
	if c.err == nil && !t.Nil() && reals&only(t.DType) == 0 {
		c.failf("%s should be %s", label(arg, t), reals)
	}
	return t.DType
}

// cols checks that t, the tensor that sets a dimension, is a matrix, and returns its second one.
func (c *checker) cols(arg string, t Tensor) int {
	switch {
	case c.err != nil:
	case t.Nil():
		c.failf("%s is missing", arg)
	case len(t.Shape) != 2:
		c.failf("%s should be a matrix", label(arg, t))
	default:
		return t.Shape[1]
	}
	return 0
}

// tokens is the T of a loaded batch.
func (c *checker) tokens(b *Batch) int {
	if b == nil || b.T == 0 {
		c.failf("the batch is not loaded: call LoadBatch first")
		return 0
	}
	return b.T
}

// weight is the spec of w.
func (c *checker) weight(arg string, w Weight) WeightSpec {
	if w == nil {
		c.failf("%s is missing", arg)
		return WeightSpec{}
	}
	return w.Spec()
}

// whole refuses a quantised weight: embedding and head stay as they are published.
func (c *checker) whole(w WeightSpec) {
	if w.DType == NF4 {
		c.failf("weight %s is stored as %s, which only Linear and LinearBack read", w.Name, w.DType)
	}
}

// low checks u or du (T,Width) of l: both given, or both absent.
func (c *checker) low(arg string, t Tensor, written bool, act DType, T int, l *LoRA) {
	switch {
	case c.err != nil:
	case l == nil && t.Nil():
	case l == nil:
		c.failf("%s is given without a LoRA", label(arg, t))
	case t.Nil():
		c.failf("%s is missing: a LoRA of %d columns is given", arg, l.Width)
	case len(t.Shape) == 2 && t.Shape[0] == T && t.Shape[1] != l.Width:
		c.failf("%s should be (%d,%d): the modules take %d columns", label(arg, t), T, l.Width, l.Width)
	default:
		c.tensor(arg, t, written, only(act), "(T,Width)", []int{T, l.Width})
	}
}

// loraIn checks the modules of l against the width of what they read; loraOut against the rows of
// the parts they add to. Either may be told apart: an op may know one side alone.
func (c *checker) loraIn(arg string, l *LoRA, act DType, in int) {
	c.modules(arg, l)
	if l == nil {
		return
	}
	for i := range l.Modules {
		m := &l.Modules[i]
		c.factor(arg, i, "A", m.A, act, m.Rank, in, "(R,in)")
	}
}

func (c *checker) loraOut(arg string, l *LoRA, act DType, parts ...int) {
	c.modules(arg, l)
	if l == nil {
		return
	}
	for i := range l.Modules {
		m := &l.Modules[i]
		if c.err == nil && m.Part >= len(parts) {
			c.failf("module %d of %s adapts part %d of a weight of %d", i, arg, m.Part, len(parts))
		}
		if c.err == nil {
			c.factor(arg, i, "B", m.B, act, parts[m.Part], m.Rank, "(out,R)")
		}
	}
}

// modules checks what does not depend on the op: order of parts, ranks and their sum, dropout.
func (c *checker) modules(arg string, l *LoRA) {
	if l == nil || c.err != nil {
		return
	}
	sum := 0
	for i := range l.Modules {
		m := &l.Modules[i]
		sum += m.Width()
		switch {
		case m.Rank < 1 || m.Rank > MaxRank:
			c.failf("module %d of %s has rank %d, not 1 to %d", i, arg, m.Rank, MaxRank)
		case m.Part < 0 || i > 0 && m.Part <= l.Modules[i-1].Part:
			c.failf("module %d of %s adapts part %d: modules stand in the order of the parts, one a part", i, arg, m.Part)
		case !(m.Drop >= 0 && DropThreshold(m.Drop) < 65536):
			c.failf("module %d of %s has dropout %g, not 0 or more and below 1", i, arg, m.Drop)
		}
	}
	switch {
	case c.err != nil:
	case sum == 0:
		c.failf("%s has no modules: pass nil for a weight without LoRA", arg)
	case sum > MaxWidth:
		c.failf("%s has modules of %d columns, more than %d", arg, sum, MaxWidth)
	case l.Width != sum:
		c.failf("%s has Width %d, but its modules take %d columns", arg, l.Width, sum)
	}
}

// factor checks A, B or one of their gradients. They are views of the flat parameters, which the
// planner keeps apart from activations, so they take no part in the check for overlaps.
func (c *checker) factor(arg string, module int, name string, t Tensor, act DType, rows, cols int, why string) {
	if c.err != nil {
		return
	}
	n := c.n
	c.tensor(name, t, false, state(act), why, []int{rows, cols})
	c.n = n
	if c.err != nil {
		c.err = fmt.Errorf("ops: %s: module %d of %s: %w", c.op, module, arg, errors.Unwrap(c.err))
	}
}

// heads checks the shape of attention.
func (c *checker) heads(h Heads) {
	if h.H < 1 || h.Hk < 1 || h.H%h.Hk != 0 || h.D < 2 || h.D%2 != 0 {
		c.failf("heads H=%d Hk=%d D=%d: want H a multiple of Hk, and D even", h.H, h.Hk, h.D)
	}
}

// rope checks the table against the head size and every position of the batch.
func (c *checker) rope(r *Rope, D int, b *Batch) {
	if r == nil || c.err != nil {
		return
	}
	positions := 0
	if len(r.Cos.Shape) == 2 {
		positions = r.Cos.Shape[0]
	}
	c.in("cos", r.Cos, only(F32)|only(F64), "(positions,D/2)", positions, D/2)
	c.in("sin", r.Sin, only(F32)|only(F64), "(positions,D/2)", positions, D/2)
	c.below("position", b.Host.Pos, positions, "positions in the rope table")
}

// below checks that every value of the batch lies in 0..n-1.
func (c *checker) below(what string, values []int32, n int, of string) {
	if c.err != nil {
		return
	}
	for i, v := range values {
		if v < 0 || int(v) >= n {
			c.failf("%s %d at index %d is outside the %d %s", what, v, i, n, of)
			return
		}
	}
}
