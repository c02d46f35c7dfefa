package gemm

import (
	"fmt"

	"qlora/model/cpu/vec"
)

// Matrix is a frozen weight W (N,K), out and in features, packed once for both products. Panels of nr rows of W follow
// each other; a panel is (kPad, nr): for each column k of W the nr values side by side. N and K are padded with zeros
// to a multiple of nr, so that a panel is a row of (nr,nr) tiles, which Mul transposes one by one.
//
// A Matrix is read-only after Pack and may be used by several goroutines at once.
type Matrix struct {
	N, K int

	kr   *kernels
	kPad int
	f32  []float32 // one of the two
	bf16 []uint16
}

// Pack builds the matrix of n rows and k columns, stored as bfloat16 (rounded to nearest, ties to even) or float32.
// rows fills dst, count·k long, with the rows from row on; its error ends the packing and is returned.
func Pack(n, k int, bf16 bool, rows func(row, count int, dst []float32) error) (*Matrix, error) {
	if n <= 0 || k <= 0 {
		return nil, fmt.Errorf("gemm: pack a matrix of shape (%d,%d): both must be positive", n, k)
	}
	kr := current
	m := &Matrix{N: n, K: k, kr: kr, kPad: ceilDiv(k, kr.nr) * kr.nr}
	size := ceilDiv(n, kr.nr) * m.kPad * kr.nr
	if bf16 {
		m.bf16 = make([]uint16, size)
	} else {
		m.f32 = make([]float32, size)
	}
	block := make([]float32, kr.nr*k)
	panel := make([]float32, k*kr.nr)
	for row := 0; row < n; row += kr.nr {
		count := min(kr.nr, n-row)
		if err := rows(row, count, block[:count*k]); err != nil {
			return nil, err
		}
		to := row * m.kPad
		if bf16 {
			packTransposed(kr, panel, block, k, count, k)
			vec.ToBF16(m.bf16[to:to+len(panel)], panel)
		} else {
			packTransposed(kr, m.f32[to:to+k*kr.nr], block, k, count, k)
		}
	}
	return m, nil
}

// PackedBytes is the size of what Pack(n, k, bf16, ...) keeps.
func PackedBytes(n, k int, bf16 bool) int64 {
	size := 4
	if bf16 {
		size = 2
	}
	nr := current.nr
	return int64(size) * int64(ceilDiv(n, nr)*nr) * int64(ceilDiv(k, nr)*nr)
}

// Bytes is the size of the packed values.
func (m *Matrix) Bytes() int64 { return 4*int64(len(m.f32)) + 2*int64(len(m.bf16)) }

// Row writes row n of W, as it is stored, to dst[:K].
func (m *Matrix) Row(dst []float32, n int) {
	if n < 0 || n >= m.N {
		panic(fmt.Sprintf("gemm: row %d of a matrix of %d rows", n, m.N))
	}
	nr := m.kr.nr
	at := n/nr*nr*m.kPad + n%nr
	var one [1]float32
	for k := range dst[:m.K] {
		if m.f32 != nil {
			dst[k] = m.f32[at+k*nr]
			continue
		}
		vec.FromBF16(one[:], m.bf16[at+k*nr:at+k*nr+1])
		dst[k] = one[0]
	}
}

// MulT computes y (M,N) = x (M,K) · Wᵀ, plus the old y if add; ldy and ldx are row strides in values. A row's result
// does not depend on M, on the other rows or on where it stands.
func (m *Matrix) MulT(y []float32, ldy int, x []float32, ldx, M int, add bool) {
	check("x", x, ldx, M, m.K)
	check("y", y, ldy, M, m.N)
	if M == 0 {
		return
	}
	if M <= m.kr.mr {
		m.fewRows(y, ldy, x, ldx, M, add)
		return
	}
	nr := m.kr.nr
	p := product{m: M, n: m.N, k: m.K, a: x, lda: ldx, y: y, ldy: ldy, add: add}
	p.panel = func(s *scratch, panel, k0, kc int) *byte {
		at := (panel*m.kPad + k0) * nr
		if m.f32 != nil {
			return bytesOf(m.f32[at:])
		}
		vec.FromBF16(s.panel[:kc*nr], m.bf16[at:at+kc*nr])
		return bytesOf(s.panel[:])
	}
	p.run(m.kr)
}

// Mul computes dx (M,K) = dy (M,N) · W, plus the old dx if add; lddx and lddy are row strides in values. A row's
// result does not depend on M, on the other rows or on where it stands.
func (m *Matrix) Mul(dx []float32, lddx int, dy []float32, lddy, M int, add bool) {
	check("dy", dy, lddy, M, m.N)
	check("dx", dx, lddx, M, m.K)
	nr := m.kr.nr
	p := product{m: M, n: m.K, k: m.N, a: dy, lda: lddy, y: dx, ldy: lddx, add: add}
	p.panel = func(s *scratch, panel, n0, nc int) *byte {
		for n := n0; n < n0+nc; n += nr {
			to := bytesOf(s.panel[(n-n0)*nr:])
			at := n*m.kPad + panel*nr*nr
			if m.f32 != nil {
				m.kr.transposeF32(to, uintptr(4*nr), bytesOf(m.f32[at:]), uintptr(4*nr), nr/8, nr/8)
			} else {
				m.kr.transposeBF16(to, uintptr(4*nr), bytesOf(m.bf16[at:]), uintptr(2*nr), nr/8, nr/8)
			}
		}
		return bytesOf(s.panel[:])
	}
	p.run(m.kr)
}

// fewRows is MulT for M up to one register tile, as in decoding: W is read once, straight from its storage, and the
// time is that of the memory. The sums are those of product, term by term.
func (m *Matrix) fewRows(y []float32, ldy int, x []float32, ldx, M int, add bool) {
	kr := m.kr
	byRows, stored, size := kr.f32, bytesOf(m.f32), 4
	if m.bf16 != nil {
		byRows, stored, size = kr.bf16, bytesOf(m.bf16), 2
	}
	panels := ceilDiv(m.N, kr.nr)
	_, most := wide(byRows, M, panels)
	cores := coresFor(8 * m.N * m.K) // reading a value takes as long as some eight multiply-adds
	width := ceilDiv(panelsPerTask(panels, 1, cores), most) * most
	ps := uintptr(m.kPad * kr.nr * size)
	parallel(ceilDiv(panels, width), cores, func(task int, s *scratch) {
		end := min((task+1)*width, panels)
		for p := task * width; p < end; {
			kernel, count := wide(byRows, M, min(end, m.N/kr.nr)-p)
			edge := (p+count)*kr.nr > m.N
			for k0 := 0; k0 < m.K; k0 += kBlock {
				b := offset(stored, uintptr((p*m.kPad+k0)*kr.nr*size))
				kc := min(kBlock, m.K-k0)
				sum := add || k0 > 0
				if !edge {
					kernel(1, bytesOf(x[k0:]), uintptr(4*ldx), 4, b, ps, kc, bytesOf(y[p*kr.nr:]), uintptr(4*ldy), toInt(sum))
					continue
				}
				kernel(1, bytesOf(x[k0:]), uintptr(4*ldx), 4, b, ps, kc, bytesOf(s.edge[:]), uintptr(4*kr.nr), 0)
				for i := range M {
					storeEdge(y[i*ldy+p*kr.nr:i*ldy+m.N], s.edge[i*kr.nr:], sum)
				}
			}
			p += count
		}
	})
}
