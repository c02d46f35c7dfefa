//go:build cuda

package cuda_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"qlora/cuda/sizes"
	"qlora/internal/bfloat16"
	"qlora/internal/nf4"
	"qlora/internal/random"
	"qlora/model/ops"
)

// ways are how a weight in NF4 comes to the card.
var ways = []string{"made on the card", "read in bfloat16", "read in float32", "read in NF4"}

// TestCardNF4Weight brings weights to the card in every way, and demands the bits that the host quantises them to.
func TestCardNF4Weight(t *testing.T) {
	needCard(t)
	for _, spec := range []ops.WeightSpec{
		{Name: "plain", Kind: ops.Plain, Parts: []int{40}, Cols: 320},
		{Name: "wide", Kind: ops.Plain, Parts: []int{512}, Cols: 18944}, // more than a block of a copy
		{Name: "qkv", Kind: ops.QKV, Parts: []int{7 * 64, 128, 128}, Cols: 448, HeadDim: 64, Bias: true},
		{Name: "gateup", Kind: ops.GateUp, Parts: []int{200, 200}, Cols: 128},
		{Name: "single", Kind: ops.GateUp, Parts: []int{200, 200}, Cols: 128, Single: true},
	} {
		spec.DType = ops.NF4
		for _, way := range ways {
			t.Run(spec.Name+", "+way, func(t *testing.T) {
				if err := loadNF4(t, spec, way); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// loadNF4 loads a weight and compares its parts.
func loadNF4(t *testing.T, spec ops.WeightSpec, way string) error {
	t.Helper()
	b := open(t)
	defer b.Close()
	d := ops.Dims{T: 8, S: 1, N: 8, C: spec.Cols, F: spec.Rows(), V: 8, H: 1, Hk: 1, D: 8, Quantized: true}
	arena, err := b.NewArena(b.WorkspaceBytes(d) + b.WeightBytes(spec))
	if err != nil {
		t.Fatal(err)
	}
	tensor := func(name string, off, n int64) ops.Tensor {
		return ops.Tensor{Name: name, DType: ops.U8, Shape: []int{int(n)}, Buf: arena, Off: off}
	}
	work, mem := tensor("work", 0, b.WorkspaceBytes(d)), tensor(spec.Name, b.WorkspaceBytes(d), b.WeightBytes(spec))
	b.SetWorkspace(work, d)
	var parts []ops.Source
	var want []*nf4.Tensor
	for i, rows := range spec.Parts {
		source, q := partOf(t, spec, i, rows, way)
		parts, want = append(parts, source), append(want, q)
	}
	var bias []float32
	if spec.Bias {
		bias = make([]float32, spec.Rows())
		for i := range bias {
			bias[i] = float32(i)
		}
	}
	if _, err := b.NewWeight(mem, spec, parts, bias); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, mem.Bytes())
	if err := b.Read(raw, mem); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for i, q := range want {
		if err := samePart(raw[at:], sizes.PartOf(spec, i), q); err != nil {
			return fmt.Errorf("part %d: %w", i, err)
		}
		at += sizes.PartOf(spec, i).Bytes()
	}
	return nil
}

// partOf is a part as a source, and what it should become.
func partOf(t *testing.T, spec ops.WeightSpec, i, rows int, way string) (ops.Source, *nf4.Tensor) {
	t.Helper()
	n := random.Normal{Seed: 42, Stream: uint32(i), Std: 0.02}
	s := ops.Source{Name: fmt.Sprint("part ", i), Rows: rows, Cols: spec.Cols}
	s.ReadF32 = func(dst []float32, row, _ int) error { n.Fill(dst, int64(row)*int64(spec.Cols)); return nil }
	q, err := nf4.Quantize(rows, spec.Cols, !spec.Single, func(dst []float32, row, count int) error {
		err := s.ReadF32(dst, row, count)
		for i, v := range dst {
			dst[i] = bfloat16.Round(v)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	unread := func([]float32, int, int) error { return fmt.Errorf("read in float32") }
	switch way {
	case "made on the card":
		s.Random, s.ReadF32 = &n, unread
	case "read in bfloat16":
		read := s.ReadF32
		s.ReadBF16 = func(dst []byte, row, count int) error {
			values := make([]float32, count*spec.Cols)
			err := read(values, row, count)
			for i, v := range values {
				binary.LittleEndian.PutUint16(dst[2*i:], bfloat16.Bits(v))
			}
			return err
		}
		s.ReadF32 = unread
	case "read in NF4":
		s.NF4 = &ops.NF4Source{Scales: q.Scales, ReadCodes: func(dst []byte, at int) error { copy(dst, q.Codes[at:]); return nil }}
		s.ReadF32 = unread
	}
	return s, q
}

// samePart compares a part as it lies on the card.
func samePart(raw []byte, size sizes.Part, q *nf4.Tensor) error {
	floats := func(values []float32) (all []byte) {
		for _, v := range values {
			all = binary.LittleEndian.AppendUint32(all, math.Float32bits(v))
		}
		return all
	}
	absmax, nested, offset := q.Absmax8, floats(q.Nested), floats([]float32{q.Offset})
	if !q.Double() {
		absmax, nested, offset = floats(q.Absmax), nil, nil
	}
	for _, p := range []struct {
		name string
		at   int64
		want []byte
	}{{"codes", 0, q.Codes}, {"absmax", size.Codes, absmax}, {"nested", size.Codes + size.Absmax, nested}, {"offset", size.Codes + size.Absmax + size.Nested, offset}} {
		if got := raw[p.at : p.at+int64(len(p.want))]; !bytes.Equal(got, p.want) {
			return fmt.Errorf("%s are not what the host makes", p.name)
		}
	}
	return nil
}

// TestCardHostMemory writes, reads and transfers tensors of host memory, and looks rows of a table up that lies there.
func TestCardHostMemory(t *testing.T) {
	needCard(t)
	b := open(t)
	defer b.Close()
	const bytesEach = 48 << 20
	host, err := b.NewHostArena(2 * bytesEach)
	if err != nil {
		t.Fatal(err)
	}
	card, err := b.NewArena(2 * bytesEach)
	if err != nil {
		t.Fatal(err)
	}
	view := func(a ops.Buffer, i int) ops.Tensor {
		return ops.Tensor{Name: "piece", DType: ops.U8, Shape: []int{bytesEach}, Buf: a, Off: int64(i) * bytesEach}
	}
	pattern := make([]byte, bytesEach)
	for i := range pattern {
		pattern[i] = byte(i*7 + i>>13)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, bytesEach)
	must(b.Write(view(host, 0), pattern))
	must(b.Read(got, view(host, 0)))
	if !bytes.Equal(got, pattern) {
		t.Fatal("host memory does not hold what was written")
	}
	// Host to card, to host, to card: each behind the one before.
	b.Transfer(view(card, 0), view(host, 0))
	b.AwaitTransfers()
	b.Transfer(view(host, 1), view(card, 0))
	b.AwaitTransfers()
	b.Zero(view(card, 0)) // behind the transfer out of it
	b.Transfer(view(card, 1), view(host, 1))
	b.AwaitTransfers()
	must(b.Read(got, view(card, 1)))
	if !bytes.Equal(got, pattern) {
		t.Error("what came back is not what went")
	}
	must(b.Read(got, view(card, 0)))
	if !bytes.Equal(got, make([]byte, bytesEach)) {
		t.Error("a tensor is not zero behind its transfer")
	}
	b.Zero(view(host, 0))
	must(b.Read(got, view(host, 0)))
	if !bytes.Equal(got, make([]byte, bytesEach)) {
		t.Error("host memory is not zero")
	}
	must(b.Sync())
}

// TestCardHostTable embeds from a table in host memory as from one on the card.
func TestCardHostTable(t *testing.T) {
	needCard(t)
	var first []byte
	for _, hosted := range []bool{false, true} {
		got, err := embed(t, hosted)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		if !bytes.Equal(got, first) || bytes.Equal(got, make([]byte, len(got))) {
			t.Errorf("hosted %v: other rows", hosted)
		}
	}
}

func embed(t *testing.T, hosted bool) ([]byte, error) {
	t.Helper()
	const V, C, T = 1000, 896, 64
	b := open(t)
	defer b.Close()
	spec := ops.WeightSpec{Name: "table", Kind: ops.Plain, DType: ops.BF16, Parts: []int{V}, Cols: C}
	arena, err := b.NewArena(1 << 22)
	if err != nil {
		return nil, err
	}
	table := arena
	if hosted {
		if table, err = b.NewHostArena(b.WeightBytes(spec)); err != nil {
			return nil, err
		}
	}
	n := random.Normal{Seed: 1, Stream: 2, Std: 1}
	source := ops.Source{Name: "table", Rows: V, Cols: C, ReadF32: func(dst []float32, row, _ int) error { n.Fill(dst, int64(row)*C); return nil }}
	w, err := b.NewWeight(ops.Tensor{Name: "table", DType: ops.U8, Shape: []int{int(b.WeightBytes(spec))}, Buf: table}, spec, []ops.Source{source}, nil)
	if err != nil {
		return nil, err
	}
	block := ops.Tensor{Name: "batch", DType: ops.I32, Shape: []int{ops.BatchWords(T, 1, 1)}, Buf: arena, Off: 2 << 20}
	batch, err := ops.NewBatch(block, T, 1, 1)
	if err != nil {
		return nil, err
	}
	h := ops.HostBatch{SegStart: []int32{0, T}, Rows: []int32{}, Targets: []int32{}}
	for i := range int32(T) {
		h.IDs, h.Pos, h.Sample = append(h.IDs, i*37%V), append(h.Pos, i), append(h.Sample, 0)
	}
	if err := b.LoadBatch(batch, h); err != nil {
		return nil, err
	}
	x := ops.Tensor{Name: "x", DType: ops.BF16, Shape: []int{T, C}, Buf: arena, Off: 3 << 20}
	b.Embed(x, w, batch)
	raw := make([]byte, x.Bytes())
	if err := b.Read(raw, x); err != nil {
		return nil, err
	}
	return raw, b.Sync()
}
