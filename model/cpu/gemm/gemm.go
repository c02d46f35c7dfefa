// Package gemm multiplies float32 matrices on the processor, in assembly made by avo (AVX-512, AVX2) or plain Go.
//
// A frozen weight W (N,K) is packed once (Pack), as float32 or bfloat16, and then serves the forward product
// y = x·Wᵀ (Matrix.MulT) and the backward product dx = dy·W (Matrix.Mul). MulT, Mul and TMul are the products of
// operands that change, such as LoRA's. Arithmetic is float32. M N K are the letters of BLAS: y (M,N), sums over K.
//
// The order of a sum is part of the contract. Its terms are taken in blocks of 256, cut at multiples of 256; a block is
// one chain of fused multiply-adds from zero in index order; the block sums are added in index order, onto the old value
// where the product adds. So an output depends on its own row and column alone: not on M or N, on the place in a
// tile, on GOMAXPROCS, or on a split of the sum at a multiple of 256. AVX2 and AVX-512 give the same bits; plain Go
// rounds the product of each term and gives others.
//
// The method is that of K. Goto and R. A. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS
// 34(3), 2008): a panel of the right operand stays in the L1 cache, a block of the left one in L2, and a tile of
// outputs in registers.
//
// All functions may be called by several goroutines at once; each uses up to GOMAXPROCS cores.
package gemm
