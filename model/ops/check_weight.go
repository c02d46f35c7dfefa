package ops

import "qlora/internal/nf4"

// check says whether a spec describes a weight: parts that fit the kind, a type that weights are stored in.
func (s WeightSpec) check(c *checker) {
	want := map[WeightKind]int{Plain: 1, QKV: 3, GateUp: 2}[s.Kind]
	switch {
	case s.Kind > GateUp:
		c.failf("weight %s has an unknown kind %d", s.Name, s.Kind)
	case len(s.Parts) != want:
		c.failf("weight %s has %d parts, and its kind %d", s.Name, len(s.Parts), want)
	case s.DType != F32 && s.DType != BF16 && s.DType != NF4:
		c.failf("weight %s is to be stored as %s, which is neither float32, bfloat16 nor nf4", s.Name, s.DType)
	case s.Cols < 1:
		c.failf("weight %s has %d columns", s.Name, s.Cols)
	case s.DType == NF4 && s.Cols%nf4.Block != 0:
		c.failf("weight %s has %d columns, and NF4 takes multiples of %d: its blocks would run across rows", s.Name, s.Cols, nf4.Block)
	case s.Kind == GateUp && s.Parts[0] != s.Parts[1]:
		c.failf("weight %s has %d rows of gate and %d of up", s.Name, s.Parts[0], s.Parts[1])
	case s.Kind == QKV && (s.HeadDim < 2 || s.HeadDim%2 != 0 || s.Parts[0]%s.HeadDim != 0 || s.Parts[1]%s.HeadDim != 0 || s.Parts[1] != s.Parts[2]):
		c.failf("weight %s has %d, %d and %d rows of q, k and v: not whole heads of size %d", s.Name, s.Parts[0], s.Parts[1], s.Parts[2], s.HeadDim)
	}
	for i, p := range s.Parts {
		if p < 1 {
			c.failf("part %d of weight %s has %d rows", i, s.Name, p)
		}
	}
}

// CheckNewWeight checks the arguments of [Memory.NewWeight]; need is the backend's WeightBytes.
func CheckNewWeight(mem Tensor, need int64, spec WeightSpec, parts []Source, bias []float32) error {
	c := checker{op: "NewWeight"}
	spec.check(&c)
	c.memory("mem", mem, need)
	if c.err == nil && len(parts) != len(spec.Parts) {
		c.failf("weight %s has %d parts, and %d sources are given", spec.Name, len(spec.Parts), len(parts))
	}
	if c.err != nil {
		return c.err
	}
	for i, p := range parts {
		switch {
		case p.Rows != spec.Parts[i] || p.Cols != spec.Cols:
			c.failf("source %s (%d,%d) of weight %s should be (%d,%d)", p.Name, p.Rows, p.Cols, spec.Name, spec.Parts[i], spec.Cols)
		case p.ReadF32 == nil:
			c.failf("source %s of weight %s has no ReadF32", p.Name, spec.Name)
		case spec.DType == NF4 && p.NF4 != nil:
			c.nf4Source(&p, spec.Single)
		}
	}
	want := 0
	if spec.Bias {
		want = spec.Rows()
	}
	if len(bias) != want {
		c.failf("weight %s has %d bias values, and its spec asks for %d", spec.Name, len(bias), want)
	}
	return c.err
}

// nf4Source checks that a part stored in NF4 is of the kind that the weight is to be.
func (c *checker) nf4Source(p *Source, single bool) {
	if p.NF4.Double() == single {
		c.failf("source %s is stored with double quantisation %v, and its weight asks for %v", p.Name, p.NF4.Double(), !single)
	} else if err := p.NF4.Check(p.Rows * p.Cols); err != nil {
		c.failf("source %s (%d,%d): %w", p.Name, p.Rows, p.Cols, err)
	}
}

// CheckPackLoRA checks the argument of [Memory.PackLoRA]; need is the backend's LoRAPackBytes.
func CheckPackLoRA(all []*LoRA, need func(*LoRA) int64) error {
	for _, l := range all {
		if err := checkPack(l, need); err != nil {
			return err
		}
	}
	return nil
}

func checkPack(l *LoRA, need func(*LoRA) int64) error {
	c := checker{op: "PackLoRA"}
	if l == nil {
		c.failf("the LoRA is missing")
		return c.err
	}
	l.Weight.check(&c)
	act := F32
	if len(l.Modules) > 0 && l.Modules[0].A.DType == F64 {
		act = F64
	}
	c.loraIn("l", l, act, l.Weight.Cols)
	c.loraOut("l", l, act, l.Weight.Parts...)
	if c.err == nil {
		c.memory("pack", l.Pack, need(l))
	}
	return c.err
}

// memory checks that t, of any type, holds need bytes of an arena.
func (c *checker) memory(arg string, t Tensor, need int64) {
	switch {
	case c.err != nil || need == 0:
	case t.Nil():
		c.failf("%s is missing: %d bytes are needed", arg, need)
	case t.Bytes() < need:
		c.failf("%s has %d bytes, and %d are needed", label(arg, t), t.Bytes(), need)
	case t.Off < 0 || t.Off+t.Bytes() > t.Buf.Bytes():
		c.failf("%s at byte %d ends outside its arena of %d bytes", label(arg, t), t.Off, t.Buf.Bytes())
	case t.Off%Align != 0:
		c.failf("%s starts at byte %d, not at a multiple of %d", label(arg, t), t.Off, Align)
	}
}

// CheckCopy checks the arguments of [Memory.Write] and [Memory.Read] (op), n the bytes on the host.
func CheckCopy(op string, t Tensor, n int) error {
	c := checker{op: op}
	switch {
	case t.Nil():
		c.failf("the tensor is missing")
	case t.Bytes() != int64(n):
		c.failf("%s has %d bytes, and the host's slice %d", t, t.Bytes(), n)
	case t.Off < 0 || t.Off+t.Bytes() > t.Buf.Bytes():
		c.failf("%s at byte %d ends outside its arena of %d bytes", t, t.Off, t.Buf.Bytes())
	}
	return c.err
}

// CheckTransfer checks the arguments of [Memory.Transfer].
func CheckTransfer(dst, src Tensor) error {
	c := checker{op: "Transfer"}
	c.out("dst", dst, ^dtypes(0), "as given", dst.Shape...)
	c.in("src", src, ^dtypes(0), "as dst", dst.Shape...)
	if c.err == nil && dst.DType != src.DType {
		c.failf("%s and %s should be of one type", label("dst", dst), label("src", src))
	}
	return c.done()
}
