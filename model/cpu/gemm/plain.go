package gemm

// MulT computes y (m,n) = a (m,k) · bᵀ, b (n,k), plus the old y if add; ld* are row strides in values. The result must
// not overlap an operand.
func MulT(y []float32, ldy int, a []float32, lda int, b []float32, ldb int, m, n, k int, add bool) {
	check("a", a, lda, m, k)
	check("b", b, ldb, n, k)
	check("y", y, ldy, m, n)
	kr := current
	p := product{m: m, n: n, k: k, a: a, lda: lda, y: y, ldy: ldy, add: add}
	p.panel = func(s *scratch, panel, k0, kc int) *byte {
		n0 := panel * kr.nr
		packTransposed(kr, s.panel[:kc*kr.nr], b[n0*ldb+k0:], ldb, min(kr.nr, n-n0), kc)
		return bytesOf(s.panel[:])
	}
	p.run(kr)
}

// Mul computes y (m,n) = a (m,k) · b (k,n), plus the old y if add; ld* are row strides in values. The result must not
// overlap an operand.
func Mul(y []float32, ldy int, a []float32, lda int, b []float32, ldb int, m, n, k int, add bool) {
	check("a", a, lda, m, k)
	check("b", b, ldb, k, n)
	check("y", y, ldy, m, n)
	p := product{m: m, n: n, k: k, a: a, lda: lda, y: y, ldy: ldy, add: add}
	p.panel = rowPanels(current, b, ldb, n)
	p.run(current)
}

// TMul computes y (m,n) = aᵀ · b, a (k,m), b (k,n), plus the old y if add; ld* are row strides in values. The result
// must not overlap an operand. This is the product of a weight gradient, with k the tokens: the sums of the tokens
// [0,256), [256,512), ... are added in this order, so that a caller who passes the tokens in pieces cut at multiples
// of 256, with add from the second on, gets the same bits.
func TMul(y []float32, ldy int, a []float32, lda int, b []float32, ldb int, m, n, k int, add bool) {
	check("a", a, lda, k, m)
	check("b", b, ldb, k, n)
	check("y", y, ldy, m, n)
	p := product{m: m, n: n, k: k, a: a, lda: lda, aT: true, y: y, ldy: ldy, add: add}
	p.panel = rowPanels(current, b, ldb, n)
	p.run(current)
}

// rowPanels makes panels of a row-major b (k,n).
func rowPanels(kr *kernels, b []float32, ldb, n int) func(s *scratch, p, k0, kc int) *byte {
	return func(s *scratch, panel, k0, kc int) *byte {
		n0 := panel * kr.nr
		from := b[k0*ldb+n0:]
		if n0+kr.nr <= n {
			kr.copyPanel(bytesOf(s.panel[:]), bytesOf(from), uintptr(4*ldb), kc)
			return bytesOf(s.panel[:])
		}
		for k := range kc {
			row := s.panel[k*kr.nr : (k+1)*kr.nr]
			clear(row[copy(row, from[k*ldb:k*ldb+n-n0]):])
		}
		return bytesOf(s.panel[:])
	}
}

// packTransposed writes the (rows, cols) block at src, rows at most nr, to dst as (cols, nr), zero beyond rows.
func packTransposed(kr *kernels, dst, src []float32, lds, rows, cols int) {
	rows8, cols8 := rows&^7, cols&^7
	if rows8 > 0 && cols8 > 0 {
		kr.transposeF32(bytesOf(dst), uintptr(4*kr.nr), bytesOf(src), uintptr(4*lds), rows8/8, cols8/8)
	}
	for c := range cols {
		from := 0
		if c < cols8 {
			from = rows8
		}
		row := dst[c*kr.nr : (c+1)*kr.nr]
		for r := from; r < rows; r++ {
			row[r] = src[r*lds+c]
		}
		clear(row[rows:])
	}
}
