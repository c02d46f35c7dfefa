package ops

import (
	"math"
	"strings"
	"testing"
)

type testBuffer struct{ n int64 }

func (b *testBuffer) Bytes() int64 { return b.n }

type testWeight struct{ spec WeightSpec }

func (w testWeight) Spec() WeightSpec { return w.spec }
func (w testWeight) Bytes() int64     { return 0 }

// room hands out tensors of one buffer, one after the other.
type room struct {
	buf *testBuffer
	off int64
}

func newRoom() *room { return &room{buf: &testBuffer{n: 1 << 30}} }

func (r *room) t(name string, d DType, shape ...int) Tensor {
	t := Tensor{Name: name, DType: d, Shape: shape, Buf: r.buf, Off: r.off}
	r.off += (t.Bytes() + Align - 1) / Align * Align
	return t
}

// The shapes of the tests: T tokens, widths C and F, heads 4/2 of 8, ranks 8 and 16.
const (
	tT, tC, tF, tN = 6, 32, 48, 3
)

var tHeads = Heads{H: 4, Hk: 2, D: 8}

func (r *room) lora(kind WeightKind, in int, ranks []int, parts ...int) *LoRA {
	l := &LoRA{Weight: WeightSpec{Name: "w", Kind: kind, DType: BF16, Parts: parts, Cols: in, HeadDim: tHeads.D, Back: true}}
	for p, rank := range ranks {
		if rank == 0 {
			continue
		}
		l.Modules = append(l.Modules, Module{Part: p, Rank: rank, Scale: 2, Drop: 0.1, Stream: uint32(p),
			A: r.t("A", F32, rank, in), B: r.t("B", F32, parts[p], rank), DA: r.t("dA", F32, rank, in), DB: r.t("dB", F32, parts[p], rank)})
		l.Width += l.Modules[len(l.Modules)-1].Width()
	}
	return l
}

func (r *room) batch(t *testing.T) *Batch {
	t.Helper()
	b, err := NewBatch(r.t("batch", I32, BatchWords(tT, 2, tN)), tT, 2, tN)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Load(testHost()); err != nil {
		t.Fatal(err)
	}
	return b
}

func testHost() HostBatch {
	return HostBatch{IDs: []int32{1, 2, 3, 4, 5, 6}, Pos: []int32{0, 1, 2, 3, 0, 1}, Sample: []int32{0, 0, 0, 0, 1, 1},
		SegStart: []int32{0, 4, 6}, Rows: []int32{1, 2, 5}, Targets: []int32{2, 3, 4}, LossScale: 0.5}
}

// args holds one good set of arguments for every op; a test spoils one of them.
type args struct {
	x, y, xn, rho, u, uO, w, o, lse, qkv, act, gateup Tensor
	dx, dxn, dres, du, duOut, do, dqkv, duQKV, dact   Tensor
	uGU, duGU, duDown, nll, hit, logits, base, kl     Tensor
	params, m, v, grads, norm, next                   Tensor
	table, plain, fused                               Weight
	lQKV, lO, lGU, lDown                              *LoRA
	rope                                              *Rope
	cache                                             KVCache
	nf4                                               Quantized
	b                                                 *Batch
	heads                                             Heads
	eps                                               float32
	residual                                          Tensor
	adamw                                             AdamWArgs
	sample                                            SampleArgs
	jobs                                              []GradJob
}

func goodArgs(t *testing.T) *args {
	r := newRoom()
	h, wide, narrow := tHeads, (tHeads.H+2*tHeads.Hk)*tHeads.D, tHeads.H*tHeads.D
	a := &args{b: r.batch(t), heads: h, eps: 1e-6}
	mat := func(name string, cols int) Tensor { return r.t(name, BF16, tT, cols) }
	a.x, a.xn, a.dx, a.dxn, a.dres, a.base = mat("x", tC), mat("xn", tC), mat("dx", tC), mat("dxn", tC), mat("dres", tC), mat("base", tC)
	a.y, a.residual, a.o, a.do = mat("y", wide), mat("residual", wide), mat("o", narrow), mat("do", narrow)
	a.qkv, a.dqkv, a.act, a.dact, a.gateup = mat("qkv", wide), mat("dqkv", wide), mat("act", tF), mat("dact", tF), mat("gateup", 2*tF)
	a.u, a.du, a.duQKV = mat("u", 24), mat("du", 24), mat("duQKV", 24)
	a.uO, a.duOut, a.duDown = mat("uO", 8), mat("duOut", 8), mat("duDown", 8)
	a.uGU, a.duGU = mat("uGU", 8), mat("duGU", 8)
	a.rho, a.lse, a.w = r.t("rho", F32, tT), r.t("lse", F32, h.H, tT), r.t("w", F32, tC)
	a.nll, a.hit, a.kl = r.t("nll", F32, tN), r.t("hit", F32, tN), r.t("kl", F32, tN)
	a.logits, a.next = r.t("logits", F32, tN, 100), r.t("next", I32, tN)
	a.params, a.m, a.v, a.grads = r.t("params", F32, 70), r.t("m", F32, 70), r.t("v", F32, 70), r.t("grads", F32, 70)
	a.norm = r.t("norm", F32, 2)
	a.table = testWeight{WeightSpec{Name: "head", DType: BF16, Parts: []int{100}, Cols: tC, Back: true}}
	a.plain = testWeight{WeightSpec{Name: "down", DType: BF16, Parts: []int{tC}, Cols: tF, Back: true}}
	a.lQKV = r.lora(QKV, tC, []int{8, 0, 16}, narrow, h.Hk*h.D, h.Hk*h.D)
	a.fused = testWeight{a.lQKV.Weight}
	a.lO = r.lora(Plain, narrow, []int{4}, tC)
	a.lGU = r.lora(GateUp, tC, []int{0, 8}, tF, tF)
	a.lDown = r.lora(Plain, tF, []int{4}, tC)
	a.rope = &Rope{r.t("cos", F32, 4, 4), r.t("sin", F32, 4, 4)}
	a.cache = KVCache{r.t("k", BF16, 2, 4, h.Hk*h.D), r.t("v", BF16, 2, 4, h.Hk*h.D)}
	a.nf4 = Quantized{r.t("codes", U8, tT*tC/2), r.t("absmax", U8, 3), r.t("nested", F32, 1), r.t("offset", F32, 1)}
	a.adamw = AdamWArgs{Step: 1, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, Groups: []LRGroup{{Len: 30, LR: 1}, {Len: 40, LR: 2}}}
	a.sample = SampleArgs{Temperature: 1, RepetitionPenalty: 1.1, Context: [][]int32{{1}, {2}, {99}}, Sequence: []uint32{0, 1, 2}}
	a.jobs = []GradJob{{a.lQKV, SideA, a.x, a.du, Norm{a.rho, a.w}}, {a.lQKV, SideB, a.dqkv, a.u, Norm{}}}
	return a
}

var checks = map[string]func(*args) error{
	"Embed":   func(a *args) error { return CheckEmbed(a.x, a.table, a.b) },
	"RMSNorm": func(a *args) error { return CheckRMSNorm(a.xn, a.rho, a.u, a.x, a.w, a.eps, a.lQKV, a.b) },
	"Linear": func(a *args) error {
		return CheckLinear(a.y, a.x, a.fused, a.u, a.lQKV, Epilogue{a.residual, a.rope}, a.b)
	},
	"Attention":  func(a *args) error { return CheckAttention(a.o, a.lse, a.uO, a.qkv, a.heads, a.lO, a.b) },
	"SwiGLU":     func(a *args) error { return CheckSwiGLU(a.act, a.duDown, a.gateup, a.lDown, a.b) },
	"LinearBack": func(a *args) error { return CheckLinearBack(a.dx, a.dqkv, a.fused) },
	"RMSNormBack": func(a *args) error {
		return CheckRMSNormBack(a.dx, a.duOut, a.dres, a.dxn, a.du, a.u, a.x, a.rho, a.w, a.lQKV, a.lDown, a.b)
	},
	"AttentionBack": func(a *args) error {
		return CheckAttentionBack(a.dqkv, a.duQKV, a.do, a.uO, a.o, a.lse, a.qkv, a.heads, a.rope, a.lO, a.lQKV, a.b)
	},
	"SwiGLUBack": func(a *args) error {
		return CheckSwiGLUBack(a.gateup, a.duGU, a.dact, a.duDown, a.uGU, a.lDown, a.lGU, a.b)
	},
	"LoRAGrad": func(a *args) error { return CheckLoRAGrad(a.jobs, a.b) },
	"HeadLoss": func(a *args) error { return CheckHeadLoss(a.dxn, a.nll, a.hit, a.xn, a.table, a.b) },
	"GradNorm": func(a *args) error { return CheckGradNorm(a.norm, a.grads) },
	"AdamW":    func(a *args) error { return CheckAdamW(a.params, a.m, a.v, a.grads, a.norm, a.adamw) },
	"Logits":   func(a *args) error { return CheckLogits(a.logits, a.xn, a.table, a.b) },
	"KL":       func(a *args) error { return CheckKL(a.kl, a.base, a.xn, a.table, a.b) },
	"StoreKV":  func(a *args) error { return CheckStoreKV(a.cache, a.qkv, a.heads, a.b) },
	"DecodeAttention": func(a *args) error {
		return CheckDecodeAttention(a.o, a.uO, a.qkv, a.cache, a.heads, a.lO, a.b)
	},
	"Sample":     func(a *args) error { return CheckSample(a.next, a.logits, a.sample) },
	"QuantNF4":   func(a *args) error { return CheckQuantNF4(a.nf4, a.x) },
	"DequantNF4": func(a *args) error { return CheckDequantNF4(a.x, a.nf4) },
	"PackLoRA":   func(a *args) error { return CheckPackLoRA([]*LoRA{a.lQKV}, func(*LoRA) int64 { return 0 }) },
}

func TestChecksAcceptGoodArgumentsWithoutAllocating(t *testing.T) {
	a := goodArgs(t)
	for op, check := range checks {
		if err := check(a); err != nil {
			t.Errorf("%s refuses good arguments: %v", op, err)
		}
		if n := testing.AllocsPerRun(10, func() { _ = check(a) }); n != 0 {
			t.Errorf("%s allocates %g times", op, n)
		}
	}
}

func TestChecksAcceptWhatIsOptional(t *testing.T) {
	a := goodArgs(t)
	var none Tensor
	for op, err := range map[string]error{
		"RMSNorm alone":      CheckRMSNorm(a.xn, none, none, a.x, a.w, a.eps, nil, a.b),
		"Linear alone":       CheckLinear(a.y, a.x, a.fused, none, nil, Epilogue{}, a.b),
		"Linear in place":    CheckLinear(a.y, a.x, a.fused, none, nil, Epilogue{Residual: a.y}, a.b),
		"Attention alone":    CheckAttention(a.o, none, none, a.qkv, a.heads, nil, a.b),
		"SwiGLU alone":       CheckSwiGLU(a.act, none, a.gateup, nil, a.b),
		"RMSNormBack top":    CheckRMSNormBack(a.dx, none, none, a.dxn, none, none, a.x, a.rho, a.w, nil, nil, a.b),
		"RMSNormBack dx":     CheckRMSNormBack(a.dx, none, a.dx, a.dxn, none, none, a.x, a.rho, a.w, nil, nil, a.b),
		"AttentionBack bare": CheckAttentionBack(a.dqkv, none, a.do, none, a.o, a.lse, a.qkv, a.heads, nil, nil, nil, a.b),
		"SwiGLUBack bare":    CheckSwiGLUBack(a.gateup, none, a.dact, none, none, nil, nil, a.b),
		"HeadLoss eval":      CheckHeadLoss(none, a.nll, a.hit, a.xn, a.table, a.b),
		"Sample greedy":      CheckSample(a.next, a.logits, SampleArgs{}),
	} {
		if err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
}

func TestChecksRefuse(t *testing.T) {
	for _, c := range []struct {
		op, want string
		spoil    func(a *args)
	}{
		{"RMSNorm", "ops: RMSNorm: u (6,16) bfloat16 should be (6,24): the modules take 24 columns", func(a *args) { a.u = a.u.Slice("u", 0, tT, 16) }},
		{"RMSNorm", "ops: RMSNorm: u is missing: a LoRA of 24 columns is given", func(a *args) { a.u = Tensor{} }},
		{"RMSNorm", "u (6,24) bfloat16 is given without a LoRA", func(a *args) { a.lQKV = nil }},
		{"RMSNorm", "xn (6,31) bfloat16 should be (6,32): (T,C)", func(a *args) { a.xn = a.xn.Slice("xn", 0, tT, 31) }},
		{"RMSNorm", `xn (5,32) bfloat16 "layer 3 xn" should be (6,32): (T,C)`, func(a *args) { a.xn = a.xn.Slice("layer 3 xn", 0, 5, 32) }},
		{"RMSNorm", "xn (6,32) float32 should be bfloat16", func(a *args) { a.xn.DType = F32 }},
		{"RMSNorm", "rho (6) bfloat16 should be float32", func(a *args) { a.rho.DType = BF16 }},
		{"RMSNorm", "x and xn overlap in memory", func(a *args) { a.xn = a.x }},
		{"RMSNorm", "eps NaN", func(a *args) { a.eps = float32(math.NaN()) }},
		{"RMSNorm", "the batch is not loaded", func(a *args) { a.b = &Batch{} }},
		{"RMSNorm", "the batch is not loaded", func(a *args) { a.b = nil }},
		{"RMSNorm", "module 1 of l: A (16,32) bfloat16 should be float32", func(a *args) { a.lQKV.Modules[1].A.DType = BF16 }},
		{"RMSNorm", "module 0 of l: A (8,30) float32 should be (8,32): (R,in)", func(a *args) { a.lQKV.Modules[0].A.Shape = []int{8, 30} }},
		{"RMSNorm", "module 0 of l has rank 65, not 1 to 64", func(a *args) { a.lQKV.Modules[0].Rank = 65 }},
		{"RMSNorm", "l has Width 23, but its modules take 24 columns", func(a *args) { a.lQKV.Width = 23 }},
		{"RMSNorm", "module 0 of l has dropout 1", func(a *args) { a.lQKV.Modules[0].Drop = 1 }},
		{"RMSNorm", "module 1 of l adapts part 0", func(a *args) { a.lQKV.Modules[1].Part = 0 }},
		{"RMSNorm", "l has no modules", func(a *args) { a.lQKV.Modules, a.lQKV.Width = nil, 0; a.u = a.u.Slice("u", 0, tT, 0) }},
		{"RMSNorm", "ends outside its arena", func(a *args) { a.x.Off = 1 << 30 }},
		{"Embed", "id 100 at index 2 is outside the 100 rows of the embedding table", func(a *args) { a.b.Host.IDs[2] = 100 }},
		{"Embed", "table is missing", func(a *args) { a.table = nil }},
		{"Linear", "y (6,64) bfloat16 should be (6,63): (T,out)", func(a *args) {
			a.fused = testWeight{WeightSpec{Name: "w", Kind: QKV, Parts: []int{31, 16, 16}, Cols: tC, HeadDim: 8}}
		}},
		{"Linear", "module 1 of l: B (16,16) float32 should be (15,16)", func(a *args) {
			a.fused = testWeight{WeightSpec{Name: "w", Kind: QKV, Parts: []int{32, 17, 15}, Cols: tC, HeadDim: 8}}
		}},
		{"Linear", "rope asks for a QKV weight", func(a *args) {
			a.fused = testWeight{WeightSpec{Name: "w", Parts: []int{64}, Cols: tC}}
			a.u, a.lQKV = Tensor{}, nil
		}},
		{"Linear", "position 4 at index 1 is outside the 4 positions in the rope table", func(a *args) { a.b.Host.Pos[1] = 4 }},
		{"Linear", "y and residual overlap in memory", func(a *args) { a.residual.Off = a.y.Off + 2 }},
		{"Linear", "cos (4,3) float32 should be (4,4)", func(a *args) { a.rope.Cos.Shape = []int{4, 3} }},
		{"Attention", "heads H=3 Hk=2 D=8", func(a *args) { a.heads.H = 3 }},
		{"Attention", "lse (6,4) float32 should be (4,6): (H,T)", func(a *args) { a.lse.Shape = []int{6, 4} }},
		{"SwiGLU", "gateup (6,95) bfloat16 should be (6,96)", func(a *args) { a.gateup = a.gateup.Slice("gateup", 0, 6, 95) }},
		{"LinearBack", "was loaded without Back", func(a *args) {
			s := a.fused.Spec()
			s.Back = false
			a.fused = testWeight{s}
		}},
		{"LinearBack", "dx (6,32) float32 should be bfloat16", func(a *args) { a.dx.DType = F32; a.dx.Shape = []int{6, 32} }},
		{"RMSNormBack", "dxn and dx overlap", func(a *args) { a.dxn = a.dx }},
		{"RMSNormBack", "duOut is missing", func(a *args) { a.duOut = Tensor{} }},
		{"RMSNormBack", "module 0 of out: B (32,4) bfloat16 should be float32", func(a *args) { a.lDown.Modules[0].B.DType = BF16 }},
		{"AttentionBack", "do is missing: (T,H·D)", func(a *args) { a.do = Tensor{} }},
		{"AttentionBack", "qkv and dqkv overlap", func(a *args) { a.dqkv = a.qkv }},
		{"SwiGLUBack", "module 0 of down: dA is missing: the shape of A", func(a *args) { a.lDown.Modules[0].DA = Tensor{} }},
		{"SwiGLUBack", "module 0 of gu: dB (48,7) float32 should be (48,8)", func(a *args) { a.lGU.Modules[0].DB.Shape = []int{48, 7} }},
		{"LoRAGrad", "the LoRA does not say which weight it adapts", func(a *args) { a.lQKV.Weight = WeightSpec{} }},
		{"LoRAGrad", "a job has no LoRA", func(a *args) { a.jobs[1].LoRA = nil }},
		{"LoRAGrad", "wide (6,64) bfloat16 \"dqkv\" should be (6,32): x (T,in)", func(a *args) { a.jobs[0].Wide = a.dqkv }},
		{"LoRAGrad", "side 7", func(a *args) { a.jobs[0].Side = 7 }},
		{"HeadLoss", "target 100 at index 0 is outside the 100 rows of the head", func(a *args) { a.b.Host.Targets[0] = 100 }},
		{"HeadLoss", "nll (4) float32 should be (3): (N)", func(a *args) { a.nll.Shape = []int{4} }},
		{"GradNorm", "norm (1) float32 should be (2)", func(a *args) { a.norm.Shape = []int{1} }},
		{"AdamW", "the groups cover 30 parameters of 70", func(a *args) { a.adamw.Groups = a.adamw.Groups[:1] }},
		{"AdamW", "step 0: steps count from 1", func(a *args) { a.adamw.Step = 0 }},
		{"AdamW", "betas", func(a *args) { a.adamw.Beta2 = 1 }},
		{"AdamW", "learning rate NaN", func(a *args) { a.adamw.Groups[1].LR = math.NaN() }},
		{"Logits", "logits (3,99) float32 should be (3,100)", func(a *args) { a.logits.Shape = []int{3, 99} }},
		{"KL", "tuned (6,32) float32 \"xn\" should be bfloat16", func(a *args) { a.xn.DType = F32 }},
		{"StoreKV", "sequence 2 at index 5 is outside the 2 sequences", func(a *args) { a.b.Host.Sample[5] = 2 }},
		{"DecodeAttention", "position 9 at index 0 is outside the 4 positions of the cache", func(a *args) { a.b.Host.Pos[0] = 9 }},
		{"Sample", "top-p 1.5", func(a *args) { a.sample.TopP = 1.5 }},
		{"Sample", "context id 100 at index 0", func(a *args) { a.sample.Context[2][0] = 100 }},
		{"Sample", "a draw needs the sequence numbers of 3 rows, not of 0", func(a *args) { a.sample.Sequence = nil }},
		{"QuantNF4", "absmax (2) uint8 should be (3): one a block of 64", func(a *args) { a.nf4.Absmax.Shape = []int{2} }},
		{"DequantNF4", "nested is missing: one for 256 blocks", func(a *args) { a.nf4.Nested = Tensor{} }},
		{"PackLoRA", "weight w has 2 parts, and its kind 3", func(a *args) { a.lQKV.Weight.Parts = a.lQKV.Weight.Parts[:2] }},
	} {
		a := goodArgs(t)
		c.spoil(a)
		err := checks[c.op](a)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v\nwant an error with %q", c.op, err, c.want)
		}
	}
}

func TestCheckNewWeight(t *testing.T) {
	r := newRoom()
	read := func([]float32, int, int) error { return nil }
	good := WeightSpec{Name: "qkv", Kind: QKV, DType: BF16, Parts: []int{32, 16, 16}, Cols: 32, HeadDim: 8, Bias: true}
	sources := func() []Source {
		return []Source{{Name: "q", Rows: 32, Cols: 32, ReadF32: read}, {Name: "k", Rows: 16, Cols: 32, ReadF32: read}, {Name: "v", Rows: 16, Cols: 32, ReadF32: read}}
	}
	bias := make([]float32, 64)
	mem := r.t("mem", U8, 4096)
	if err := CheckNewWeight(mem, 4096, good, sources(), bias); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want string
		call func() error
	}{
		{"mem (4096) uint8 has 4096 bytes, and 5000 are needed", func() error { return CheckNewWeight(mem, 5000, good, sources(), bias) }},
		{"has 3 parts, and 2 sources", func() error { return CheckNewWeight(mem, 1, good, sources()[:2], bias) }},
		{"has 63 bias values, and its spec asks for 64", func() error { return CheckNewWeight(mem, 1, good, sources(), bias[1:]) }},
		{"source k (16,31) of weight qkv should be (16,32)", func() error {
			s := sources()
			s[1].Cols = 31
			return CheckNewWeight(mem, 1, good, s, bias)
		}},
		{"has no ReadF32", func() error {
			s := sources()
			s[2].ReadF32 = nil
			return CheckNewWeight(mem, 1, good, s, bias)
		}},
		{"not whole heads of size 6", func() error {
			s := good
			s.HeadDim = 6
			return CheckNewWeight(mem, 1, s, sources(), bias)
		}},
		{"stored as float64", func() error {
			s := good
			s.DType = F64
			return CheckNewWeight(mem, 1, s, sources(), bias)
		}},
	} {
		if err := c.call(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v\nwant an error with %q", err, c.want)
		}
	}
	if err := CheckCopy("Write", mem, 4095); err == nil || !strings.Contains(err.Error(), "ops: Write: mem (4096) uint8 has 4096 bytes, and the host's slice 4095") {
		t.Error(err)
	}
}
