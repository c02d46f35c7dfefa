package cpu

import (
	"qlora/model/cpu/gemm"
	"qlora/model/ops"
)

// The products of operands that change; those with a frozen weight are in weight.go. y (m,n) is row-major, ld* are row
// strides, and add keeps the old y. Terms are summed in blocks of ops.GradBlock, added in index order.

// mul is y = a (m,k) · b (k,n).
func mul[T Float](y []T, ldy int, a []T, lda int, b []T, ldb, m, n, k int, add bool) {
	switch y := any(y).(type) {
	case []float32:
		gemm.Mul(y, ldy, any(a).([]float32), lda, any(b).([]float32), ldb, m, n, k, add)
	case []float64:
		plain(y, ldy, any(a).([]float64), lda, 1, any(b).([]float64), ldb, 1, m, n, k, add)
	}
}

// mulT is y = a (m,k) · bᵀ, b (n,k).
func mulT[T Float](y []T, ldy int, a []T, lda int, b []T, ldb, m, n, k int, add bool) {
	switch y := any(y).(type) {
	case []float32:
		gemm.MulT(y, ldy, any(a).([]float32), lda, any(b).([]float32), ldb, m, n, k, add)
	case []float64:
		plain(y, ldy, any(a).([]float64), lda, 1, any(b).([]float64), 1, ldb, m, n, k, add)
	}
}

// tMul is y = aᵀ · b, a (k,m), b (k,n).
func tMul[T Float](y []T, ldy int, a []T, lda int, b []T, ldb, m, n, k int, add bool) {
	switch y := any(y).(type) {
	case []float32:
		gemm.TMul(y, ldy, any(a).([]float32), lda, any(b).([]float32), ldb, m, n, k, add)
	case []float64:
		plain(y, ldy, any(a).([]float64), 1, lda, any(b).([]float64), ldb, 1, m, n, k, add)
	}
}

// plain is the oracle's product, of a(i,k) = a[i*ai+k*ak] and b(k,j) = b[k*bk+j*bj], one of bk and bj 1.
func plain(y []float64, ldy int, a []float64, ai, ak int, b []float64, bk, bj, m, n, k int, add bool) {
	var left [ops.GradBlock]float64
	var sums [128]float64
	for i := range m {
		row := y[i*ldy : i*ldy+n]
		if !add {
			clear(row)
		}
		for k0 := 0; k0 < k; k0 += ops.GradBlock {
			x := left[:min(ops.GradBlock, k-k0)]
			for t := range x {
				x[t] = a[i*ai+(k0+t)*ak]
			}
			for j0 := 0; j0 < n; j0 += len(sums) {
				tile := sums[:min(len(sums), n-j0)]
				if bk == 1 {
					dots(tile, x, b[k0+j0*bj:], bj)
				} else {
					combine(tile, x, b[k0*bk+j0:], bk)
				}
				addTo(row[j0:j0+len(tile)], tile)
			}
		}
	}
}

// dots writes sums[j] = Σ x[t]·b[j*ld+t].
func dots(sums, x, b []float64, ld int) {
	n := len(x)
	j := 0
	for ; j+4 <= len(sums); j += 4 { // four sums at once, for each is a chain that waits for itself
		b0, b1, b2, b3 := b[j*ld:][:n], b[(j+1)*ld:][:n], b[(j+2)*ld:][:n], b[(j+3)*ld:][:n]
		var s0, s1, s2, s3 float64
		for t, v := range x {
			s0 += v * b0[t]
			s1 += v * b1[t]
			s2 += v * b2[t]
			s3 += v * b3[t]
		}
		sums[j], sums[j+1], sums[j+2], sums[j+3] = s0, s1, s2, s3
	}
	for ; j < len(sums); j++ {
		sums[j] = dot(x, b[j*ld:][:n])
	}
}

// combine writes sums[j] = Σ x[t]·b[t*ld+j].
func combine(sums, x, b []float64, ld int) {
	clear(sums)
	for t, v := range x {
		for j, w := range b[t*ld:][:len(sums)] {
			sums[j] += v * w
		}
	}
}
