package gemm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// eachVariantBench runs the benchmark with every variant but plain Go, unless there is no other.
func eachVariantBench(b *testing.B, bench func(b *testing.B)) {
	kept := current
	defer func() { current = kept }()
	for i, k := range variants {
		if i == 0 && len(variants) > 1 {
			continue
		}
		current = k
		b.Run(k.variant, bench)
	}
}

// measure times f and reports amount a second, in billions of unit, of the best run: on a machine that others use as
// well the best run is what the code can do.
func measure(b *testing.B, amount float64, unit string, f func()) {
	best := time.Duration(math.MaxInt64)
	for b.Loop() {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	b.ReportMetric(amount/1e9/best.Seconds(), "best-"+unit)
}

func flops(m, n, k int) float64 { return 2 * float64(m) * float64(n) * float64(k) }

// BenchmarkPacked times y = x·Wᵀ and dx = dy·W on shapes (M,N,K) of SmolLM2-135M and of its language-model head.
func BenchmarkPacked(b *testing.B) {
	eachVariantBench(b, func(b *testing.B) {
		for _, s := range [][3]int{{800, 1536, 576}, {100, 1536, 576}, {585, 1536, 576}, {585, 576, 1536}, {585, 576, 576},
			{585, 192, 576}, {100, 576, 1536}, {16, 1536, 576}, {150, 49152, 576}} {
			M, N, K := s[0], s[1], s[2]
			r := rand.New(rand.NewPCG(1, 1))
			w, x, y := randomMatrix(r, N, K), randomMatrix(r, M, K), randomMatrix(r, M, N)
			for _, bf16 := range []bool{false, true} {
				m := pack(b, w, bf16)
				b.Run(fmt.Sprintf("MulT/%dx%dx%d/bf16=%v", M, N, K, bf16), func(b *testing.B) {
					measure(b, flops(M, N, K), "GFLOP/s", func() { m.MulT(y.data(), y.ld, x.data(), x.ld, M, false) })
				})
				b.Run(fmt.Sprintf("Mul/%dx%dx%d/bf16=%v", M, N, K, bf16), func(b *testing.B) {
					measure(b, flops(M, N, K), "GFLOP/s", func() { m.Mul(x.data(), x.ld, y.data(), y.ld, M, false) })
				})
			}
		}
	})
}

// BenchmarkLoRA times the six products of one adapter: T tokens, C in, N out, rank R.
func BenchmarkLoRA(b *testing.B) {
	eachVariantBench(b, func(b *testing.B) {
		const T, C, N = 585, 576, 1536
		for _, R := range []int{8, 16, 64} {
			r := rand.New(rand.NewPCG(1, 1))
			x, dy, A, B := randomMatrix(r, T, C), randomMatrix(r, T, N), randomMatrix(r, R, C), randomMatrix(r, N, R)
			u, dA, dB := randomMatrix(r, T, R), newMatrix(R, C), newMatrix(N, R)
			run := func(name string, m, n, k int, f func()) {
				b.Run(fmt.Sprintf("%s/R=%d", name, R), func(b *testing.B) { measure(b, flops(m, n, k), "GFLOP/s", f) })
			}
			run("u=x·Aᵀ", T, R, C, func() { MulT(u.data(), u.ld, x.data(), x.ld, A.data(), A.ld, T, R, C, false) })
			run("y+=u·Bᵀ", T, N, R, func() { MulT(dy.data(), dy.ld, u.data(), u.ld, B.data(), B.ld, T, N, R, true) })
			run("du=dy·B", T, R, N, func() { Mul(u.data(), u.ld, dy.data(), dy.ld, B.data(), B.ld, T, R, N, false) })
			run("dx+=du·A", T, C, R, func() { Mul(x.data(), x.ld, u.data(), u.ld, A.data(), A.ld, T, C, R, true) })
			run("dA=duᵀ·x", R, C, T, func() { TMul(dA.data(), dA.ld, u.data(), u.ld, x.data(), x.ld, R, C, T, false) })
			run("dB=dyᵀ·u", N, R, T, func() { TMul(dB.data(), dB.ld, dy.data(), dy.ld, u.data(), u.ld, N, R, T, false) })
		}
	})
}

// BenchmarkDecode times few rows on a matrix that no cache holds, in bytes of W a second; BenchmarkRead is the
// yardstick.
func BenchmarkDecode(b *testing.B) {
	eachVariantBench(b, func(b *testing.B) {
		const N, K = 49152, 2048
		r := rand.New(rand.NewPCG(1, 1))
		w := make([]float32, K)
		for i := range w {
			w[i] = float32(r.NormFloat64())
		}
		for _, bf16 := range []bool{false, true} {
			m, err := Pack(N, K, bf16, func(row, count int, dst []float32) error {
				for i := range count {
					copy(dst[i*K:], w)
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			for _, M := range []int{1, 2, 4} {
				x, y := randomMatrix(r, M, K), newMatrix(M, N)
				b.Run(fmt.Sprintf("M=%d/bf16=%v", M, bf16), func(b *testing.B) {
					measure(b, float64(m.Bytes()), "GB/s", func() { m.MulT(y.data(), y.ld, x.data(), x.ld, M, false) })
				})
			}
		}
	})
}

// BenchmarkRead reads memory as fast as the cores can together: the loop that copies panels, onto one small place.
func BenchmarkRead(b *testing.B) {
	data := make([]float32, 400<<18)
	for i := range data {
		data[i] = 1
	}
	sinks := make([][kBlock * maxNR]float32, 2*runtime.GOMAXPROCS(0))
	share := len(data) / len(sinks)
	step := kBlock * current.nr
	measure(b, float64(4*len(data)), "GB/s", func() {
		var wg sync.WaitGroup
		for c := range sinks {
			wg.Go(func() {
				for at := c * share; at+step <= (c+1)*share; at += step {
					current.copyPanel(bytesOf(sinks[c][:]), bytesOf(data[at:]), uintptr(4*current.nr), kBlock)
				}
			})
		}
		wg.Wait()
	})
}
