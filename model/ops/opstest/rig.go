package opstest

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"qlora/model/ops"
)

// guard is the sentinel before, between and after all tensors of a rig, in bytes.
const guard = 4096

// machine is a backend with one arena, laid out anew for each case.
type machine struct {
	b       ops.Backend
	arena   ops.Buffer
	layouts map[string]*columns
	timing  bool // tensors are filled fast, with numbers that nothing is compared with: timing.go
}

// columns is the order a backend gives the output columns of a fused weight.
type columns struct {
	spec ops.WeightSpec
	perm []int // the model's column at each column of the backend
}

// role says what an op may do with a tensor.
type role uint8

const (
	input   role = iota // must not change by a bit
	output              // is written in full; what was there is not read
	update              // is read and written
	scratch             // may hold anything
)

// slot is one tensor of a rig.
type slot struct {
	ops.Tensor
	role   role
	values []float64 // as stored, in the model's order; nil for scratch and outputs, and where timing
	fill   []byte    // timing: what is written again and again
	perm   []int
	tol    tolerance
}

// rig is the tensors of one case in a machine's arena. A case is laid out twice: once for its size
// (sizing), once for good, when every tensor gets its values at once.
type rig struct {
	*machine
	weight ops.DType // storage of frozen weights
	store  ops.DType // what values are rounded to: the activations of the backend under test
	act    ops.DType // storage of activations here; float64 on the oracle
	state  ops.DType // storage of statistics and LoRA factors here
	sizing bool
	err    error

	off     int64
	slots   []*slot
	byName  map[string]*slot
	loras   []*ops.LoRA
	streams uint32
	batch   *ops.Batch
	host    ops.HostBatch // what references are made of: the batch, or its first period
	as      shaped
	work    ops.Tensor
	run     func()
	forget  func() // what a backend keeps in its workspace: it is gone where a test has written there
	plan    *plan
}

// shaped lays a plan out at other lengths than its own: dimensions that are its tokens or its label rows become these.
// With a period, what has a row a token repeats after so many of them.
type shaped struct {
	host   ops.HostBatch // zero: the plan's own
	flat   int           // of a plan without a batch: elements
	period int
	// A sum over tokens may be taken in another order the more there are, and a few values then round the other way: the backward
	// of attention divides the queries of a key by the work of the whole batch.
	reordered bool
}

// plan is what a rig is built from: its batch, its bounds, and the wiring. wire asks the rig for
// tensors and returns the call.
type plan struct {
	name  string
	host  ops.HostBatch
	dims  ops.Dims
	room  int // tokens of room in the batch; 0: those of host
	wire  func(r *rig) func()
	plain bool // no batch
	flat  int  // of a plain one: elements of the tensors it is about, where they can be many
}

func newRig(m *machine, weight, store ops.DType, as shaped) *rig {
	r := &rig{machine: m, weight: weight, store: store, act: store, state: ops.F32, byName: map[string]*slot{}, as: as}
	if m.b.Activation(weight) == ops.F64 {
		r.act, r.state = ops.F64, ops.F64
	}
	return r
}

// size is the bytes of arena p takes, and notes the layouts it asks for.
func (m *machine) size(p *plan, weight, store ops.DType, as shaped) (int64, error) {
	r := newRig(m, weight, store, as)
	r.sizing = true
	r.layOut(p)
	return r.off, r.err
}

// build lays p out in the arena, and writes every tensor.
func (m *machine) build(p *plan, weight, store ops.DType) (*rig, error) {
	return m.buildAs(p, weight, store, shaped{})
}

func (m *machine) buildAs(p *plan, weight, store ops.DType, as shaped) (*rig, error) {
	n, err := m.size(p, weight, store, as)
	if err != nil {
		return nil, err
	}
	if m.arena == nil || m.arena.Bytes() < n {
		if m.arena, err = m.b.NewArena(n); err != nil {
			return nil, err
		}
	}
	if err := m.probe(weight); err != nil {
		return nil, err
	}
	r := newRig(m, weight, store, as)
	for at := int64(0); at < n && !m.timing; at += piece {
		end := min(at+piece, n)
		if err := m.b.Write(r.all(n).Slice("arena", int(at), int(end-at)), sentinel(at, end)); err != nil {
			return nil, err
		}
	}
	r.layOut(p)
	if m.timing {
		r.guard()
	}
	if r.err != nil {
		return nil, r.err
	}
	return r, m.b.Sync()
}

// piece is how much of an arena is written at a time.
const piece = 1 << 28

func (r *rig) layOut(p *plan) {
	r.off = guard
	r.plan = p
	if r.as.host.IDs == nil {
		r.as.host = p.host
	}
	r.host = r.as.host
	if r.as.period > 0 {
		r.host = firstPeriod(r.as.host, r.as.period)
	}
	dims := r.dims(p.dims)
	if !p.plain {
		h := r.as.host
		T, S, N := max(p.room, len(h.IDs)), len(h.SegStart)-1, max(len(h.Rows), 1)
		block := r.place("batch", scratch, ops.I32, ops.BatchWords(T, S, N))
		var err error
		if r.batch, err = ops.NewBatch(block.Tensor, T, S, N); err != nil {
			r.fail(err)
			return
		}
		r.load(h)
	}
	dims.Quantized = r.weight == ops.NF4
	r.work = r.place("workspace", scratch, ops.U8, int(r.b.WorkspaceBytes(dims))).Tensor
	if !r.sizing {
		r.b.SetWorkspace(r.work, dims) // for weights that the wiring makes
	}
	r.forget = func() { r.b.SetWorkspace(r.work, dims) }
	call := p.wire(r)
	if r.timing && r.weight != ops.NF4 { // a weight that a card has dequantised would be there for the next call, as in no step
		r.run = call
		return
	}
	r.run = func() {
		r.forget()
		call()
	}
}

// load fills the batch; while sizing, its views alone.
func (r *rig) load(h ops.HostBatch) {
	if r.sizing {
		_, err := r.batch.Load(h)
		r.fail(err)
		return
	}
	r.fail(r.b.LoadBatch(r.batch, h))
}

func (r *rig) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// all views the first n bytes of the arena.
func (r *rig) all(n int64) ops.Tensor {
	return ops.Tensor{Name: "arena", DType: ops.U8, Shape: []int{int(n)}, Buf: r.arena}
}

// sentinel is the pattern between tensors, for bytes lo to hi of the arena.
func sentinel(lo, hi int64) []byte {
	b := make([]byte, 0, hi-lo)
	for at := lo; at < hi; {
		part := pattern[at%int64(len(pattern)):]
		part = part[:min(int64(len(part)), hi-at)]
		b = append(b, part...)
		at += int64(len(part))
	}
	return b
}

// pattern has a prime length, so that a copy from elsewhere in the arena does not look right.
var pattern = func() []byte {
	b := make([]byte, 65521)
	r := rng("sentinel")
	for i := range b {
		b[i] = byte(r.Uint32()) | 1
	}
	return b
}()

// measure stands in for the arena while sizing.
type measure struct{}

func (measure) Bytes() int64 { return math.MaxInt64 }

func (r *rig) place(name string, ro role, d ops.DType, shape ...int) *slot {
	shape = r.shape(shape)
	s := &slot{Tensor: ops.Tensor{Name: name, DType: d, Shape: shape, Buf: r.arena, Off: r.off}, role: ro}
	if r.sizing {
		s.Buf = measure{}
	}
	if r.byName[name] != nil {
		r.fail(fmt.Errorf("opstest: two tensors named %s", name))
	}
	r.off = (r.off+s.Bytes()+ops.Align-1)/ops.Align*ops.Align + guard
	r.slots = append(r.slots, s)
	r.byName[name] = s
	return s
}

// tensor places and fills a tensor of the storage d, whose values are rounded to like.
func (r *rig) tensor(name string, ro role, d, like ops.DType, g gen, shape ...int) *slot {
	s := r.place(name, ro, d, shape...)
	if r.sizing || g == nil {
		return s
	}
	if r.timing {
		r.tile(s, g, like)
		return s
	}
	s.values = take(g, r.distinct(s), like)
	r.fail(r.fill(s))
	return s
}

// in is an activation that is read: normal values, or those of g.
func (r *rig) in(name string, g gen, shape ...int) ops.Tensor {
	if g == nil {
		g = normal(name, 1)
	}
	return r.tensor(name, input, r.act, r.store, g, shape...).Tensor
}

// out is an activation that is written.
func (r *rig) out(name string, tol tolerance, shape ...int) ops.Tensor {
	s := r.place(name, output, r.act, shape...)
	s.tol = tol
	return s.Tensor
}

// update is an activation that is read and written.
func (r *rig) update(name string, tol tolerance, shape ...int) ops.Tensor {
	s := r.tensor(name, update, r.act, r.store, normal(name, 1), shape...)
	s.tol = tol
	return s.Tensor
}

// inState and outState are statistics: float32, float64 on the oracle.
func (r *rig) inState(name string, g gen, shape ...int) ops.Tensor {
	return r.tensor(name, input, r.state, ops.F32, g, shape...).Tensor
}

func (r *rig) outState(name string, tol tolerance, shape ...int) ops.Tensor {
	s := r.place(name, output, r.state, shape...)
	s.tol = tol
	return s.Tensor
}

func (r *rig) updateState(name string, tol tolerance, g gen, shape ...int) ops.Tensor {
	s := r.tensor(name, update, r.state, ops.F32, g, shape...)
	s.tol = tol
	return s.Tensor
}

// wide is an activation in the column order of a fused weight.
func (r *rig) wide(name string, ro role, tol tolerance, g gen, rows int, spec ops.WeightSpec) ops.Tensor {
	s := r.place(name, ro, r.act, rows, spec.Rows())
	s.tol = tol
	c := r.columns(spec)
	if r.sizing {
		return s.Tensor
	}
	s.perm = c.perm
	if ro != output {
		if g == nil {
			g = normal(name, 1)
		}
		if r.timing {
			r.tile(s, g, r.store)
			return s.Tensor
		}
		s.values = take(g, r.distinct(s), r.store)
		r.fail(r.fill(s))
	}
	return s.Tensor
}

// newWeight loads a frozen weight of normal values (rounded to its storage), or those of g.
func (r *rig) newWeight(spec ops.WeightSpec, g gen) ops.Weight {
	mem := r.place(spec.Name, scratch, ops.U8, int(r.b.WeightBytes(spec)))
	if r.sizing {
		return sizedWeight{spec, mem.Bytes()}
	}
	mem.role = input
	var parts []ops.Source
	var bias []float32
	if r.timing {
		parts, bias = randomSources(spec)
	} else {
		var v []float64
		v, bias = r.weightValues(spec, g)
		parts = sources(spec, v)
	}
	w, err := r.b.NewWeight(mem.Tensor, spec, parts, bias)
	r.fail(err)
	return w
}

// weightValues is W, row by row, and the bias.
func (r *rig) weightValues(spec ops.WeightSpec, g gen) (w []float64, bias []float32) {
	if g == nil {
		g = normal(spec.Name, 1/math.Sqrt(float64(spec.Cols)))
	}
	w = take(g, spec.Rows()*spec.Cols, spec.DType)
	if spec.Bias {
		for _, v := range take(normal(spec.Name+" bias", 1), spec.Rows(), spec.DType) {
			bias = append(bias, float32(v))
		}
	}
	return w, bias
}

// sources cuts the rows of w into the parts of spec.
func sources(spec ops.WeightSpec, w []float64) []ops.Source {
	var parts []ops.Source
	row := 0
	for i, rows := range spec.Parts {
		part := w[row*spec.Cols : (row+rows)*spec.Cols]
		s := ops.Source{Name: fmt.Sprintf("%s part %d", spec.Name, i), Rows: rows, Cols: spec.Cols}
		s.ReadF32 = func(dst []float32, row, n int) error {
			for i := range dst[:n*spec.Cols] {
				dst[i] = float32(part[row*spec.Cols+i])
			}
			return nil
		}
		if spec.DType != ops.F32 {
			s.ReadBF16 = func(dst []byte, row, n int) error {
				copy(dst, encode(part[row*spec.Cols:(row+n)*spec.Cols], ops.BF16, nil))
				return nil
			}
		}
		parts = append(parts, s)
		row += rows
	}
	return parts
}

// sizedWeight stands in for a weight while sizing.
type sizedWeight struct {
	spec  ops.WeightSpec
	bytes int64
}

func (w sizedWeight) Spec() ops.WeightSpec { return w.spec }
func (w sizedWeight) Bytes() int64         { return w.bytes }

// get reads a tensor, in the model's order.
func (r *rig) get(name string) []float64 {
	s := r.byName[name]
	b := make([]byte, s.Bytes())
	if err := r.b.Read(b, s.Tensor); err != nil {
		r.fail(err)
	}
	return decode(b, s.DType, s.perm)
}

// set writes a tensor, in the model's order.
func (r *rig) set(name string, v []float64) {
	s := r.byName[name]
	r.fail(r.b.Write(s.Tensor, encode(v, s.DType, s.perm)))
}

// pack tells the backend of new values in the LoRA factors.
func (r *rig) pack() {
	r.b.PackLoRA(r.loras)
}

// poison fills what the op is to write with one byte, and gives updated tensors their values.
func (r *rig) poison(with byte) error {
	for _, s := range r.slots {
		switch s.role {
		case output:
			r.fail(r.flood(s.Tensor, with))
		case update:
			r.fail(r.fill(s))
		}
	}
	r.fail(r.flood(r.work, with))
	return r.err
}

// flood fills a tensor with one byte.
func (r *rig) flood(t ops.Tensor, with byte) error {
	all := ops.Tensor{Name: t.Name, DType: ops.U8, Shape: []int{int(t.Bytes())}, Buf: t.Buf, Off: t.Off}
	for at := 0; at < all.Len(); at += piece {
		part := all.Slice(t.Name, at, min(piece, all.Len()-at))
		if err := r.b.Write(part, bytes.Repeat([]byte{with}, part.Len())); err != nil {
			return err
		}
	}
	return nil
}

// image reads the arena.
func (r *rig) image() ([]byte, error) {
	b := make([]byte, r.off)
	if err := r.b.Read(b, r.all(r.off)); err != nil {
		return nil, err
	}
	return b, r.b.Sync()
}

// places are all slots and, behind them, the end.
func (r *rig) places() []*slot {
	return append(slices.Clip(r.slots), &slot{Tensor: ops.Tensor{Name: "the end of the arena", Off: r.off, Shape: []int{0}, DType: ops.U8}})
}

// intact compares two images outside what the op may write, and the gaps with the sentinels.
func (r *rig) intact(before, after []byte) error {
	end := int64(0)
	for _, s := range r.places() {
		if gap := sentinel(end, s.Off); !bytes.Equal(after[end:s.Off], gap) {
			at := end + firstDifference(after[end:s.Off], gap)
			return fmt.Errorf("a write outside: byte %d, before %s at %d", at, s.Name, s.Off)
		}
		end = s.Off + s.Bytes()
		if s.role == input && !bytes.Equal(before[s.Off:end], after[s.Off:end]) {
			return fmt.Errorf("input %s changed at byte %d", s, firstDifference(before[s.Off:end], after[s.Off:end]))
		}
	}
	return nil
}

func firstDifference(a, b []byte) int64 {
	for i := range a {
		if a[i] != b[i] {
			return int64(i)
		}
	}
	return -1
}

// results are the values of all tensors written, in the model's order, and their bytes.
func (r *rig) results(image []byte) map[string]result {
	all := map[string]result{}
	for _, s := range r.slots {
		if s.role == output || s.role == update {
			raw := image[s.Off : s.Off+s.Bytes()]
			all[s.Name] = result{s, raw, decode(raw, s.DType, s.perm)}
		}
	}
	return all
}

type result struct {
	*slot
	raw    []byte
	values []float64
}
