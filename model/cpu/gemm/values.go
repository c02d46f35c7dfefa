package gemm

// Values is a frozen weight W (N,K) whose values are made whenever a product needs them, as those of quantised codes
// are: a panel at a time, so that W is never whole in memory. The products have the bits of a Matrix of the same values.
type Values struct {
	N, K int
	// Make writes columns k0..k0+kc of rows row..row+count to dst, row after row, ld apart. It may be called from several
	// goroutines at once.
	Make func(dst []float32, ld, row, count, k0, kc int)
}

// MulT is [Matrix.MulT].
func (v *Values) MulT(y []float32, ldy int, x []float32, ldx, M int, add bool) {
	check("x", x, ldx, M, v.K)
	check("y", y, ldy, M, v.N)
	kr := current
	p := product{m: M, n: v.N, k: v.K, a: x, lda: ldx, y: y, ldy: ldy, add: add}
	p.panel = func(s *scratch, panel, k0, kc int) *byte {
		row := panel * kr.nr
		count := min(kr.nr, v.N-row)
		v.Make(s.left[:], kc, row, count, k0, kc) // free: x lies in rows
		packTransposed(kr, s.panel[:kc*kr.nr], s.left[:], kc, count, kc)
		return bytesOf(s.panel[:])
	}
	p.run(kr)
}

// Mul is [Matrix.Mul].
func (v *Values) Mul(dx []float32, lddx int, dy []float32, lddy, M int, add bool) {
	check("dy", dy, lddy, M, v.N)
	check("dx", dx, lddx, M, v.K)
	kr := current
	p := product{m: M, n: v.K, k: v.N, a: dy, lda: lddy, y: dx, ldy: lddx, add: add}
	p.panel = func(s *scratch, panel, n0, nc int) *byte {
		column := panel * kr.nr
		count := min(kr.nr, v.K-column)
		if count < kr.nr {
			clear(s.panel[:nc*kr.nr])
		}
		v.Make(s.panel[:], kr.nr, n0, nc, column, count)
		return bytesOf(s.panel[:])
	}
	p.run(kr)
}
