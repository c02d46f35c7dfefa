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

// plain is the oracle's product, of a(i,k) = a[i*ai+k*ak] and b(k,j) = b[k*bk+j*bj], row by row.
func plain(y []float64, ldy int, a []float64, ai, ak int, b []float64, bk, bj, m, n, k int, add bool) {
	var tile [64]float64
	for i := range m {
		row := y[i*ldy : i*ldy+n]
		if !add {
			clear(row)
		}
		for k0 := 0; k0 < k; k0 += ops.GradBlock {
			for j0 := 0; j0 < n; j0 += len(tile) {
				sums := tile[:min(len(tile), n-j0)]
				clear(sums)
				for t := k0; t < min(k, k0+ops.GradBlock); t++ {
					x := a[i*ai+t*ak]
					for j := range sums {
						sums[j] += x * b[t*bk+(j0+j)*bj]
					}
				}
				for j, sum := range sums {
					row[j0+j] += sum
				}
			}
		}
	}
}
