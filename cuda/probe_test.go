//go:build cuda

package cuda

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"unsafe"

	"gorgonia.org/cu"

	"qlora/cuda/nvml"
	"qlora/model/ops"
)

// openTestProbe returns a probe of the card; on a machine without one the test fails.
func openTestProbe(t *testing.T) *Probe {
	t.Helper()
	b, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProbe(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%s", b.Describe())
	return p
}

// read copies bytes from the card.
func (p *Probe) read(t *testing.T, from cu.DevicePtr, off, n int64) []byte {
	t.Helper()
	raw := make([]byte, n)
	if err := p.b.dev.do(func() error { return cu.MemcpyDtoH(unsafe.Pointer(&raw[0]), from+cu.DevicePtr(off), n) }); err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestCardProbes runs the loads of the roofs. A copy leaves its source, and no rate is above what the card's clocks and
// width allow, nor far below: of a roof that is too low, and of one that cannot be, nothing is to be learnt.
func TestCardProbes(t *testing.T) {
	p := openTestProbe(t)
	copies, reads, products, done, err := p.Loads()
	if err != nil {
		t.Fatal(err)
	}
	facts, err := p.b.dev.id.Attributes(cu.MemoryClockRate, cu.GlobalMemoryBusWidth, cu.ClockRate, cu.MultiprocessorCount)
	if err != nil {
		t.Fatal(err)
	}
	memory := float64(facts[0]) * 1e3 * 2 * float64(facts[1]) / 8
	each := map[int]float64{80: 2048, 90: 4096, 100: 8192}[10*p.b.dev.Major+p.b.dev.Minor] // of a multiprocessor and cycle, bf16
	if each == 0 {
		each = 1024
	}
	compute := float64(facts[2]) * 1e3 * float64(facts[3]) * each
	for _, one := range []struct {
		name       string
		load       Load
		work, most float64
	}{{"copy", copies, copies.Bytes, memory}, {"read", reads, reads.Bytes, memory}, {"products", products, products.FLOPs, compute}} {
		t.Run(one.name, func(t *testing.T) {
			const n = 20
			one.load.Run()
			from, err := p.Mark()
			if err != nil {
				t.Fatal(err)
			}
			for range n {
				one.load.Run()
			}
			to, err := p.Mark()
			if err != nil {
				t.Fatal(err)
			}
			if err := p.b.Sync(); err != nil {
				t.Fatal(err)
			}
			seconds, err := p.Seconds(from, to)
			if err != nil {
				t.Fatal(err)
			}
			p.Forget()
			rate := one.work * n / seconds
			t.Logf("%.4g a second, %.1f %% of what clocks and width make", rate, 100*rate/one.most)
			if rate > one.most || rate < one.most/8 {
				t.Errorf("a rate of %.4g, where %.4g is possible", rate, one.most)
			}
		})
	}
	t.Run("copied", func(t *testing.T) {
		const part = 1 << 20
		for _, off := range []int64{0, loadBytes / 2, loadBytes - part} {
			src, dst := p.read(t, p.loads[1], off, part), p.read(t, p.loads[0], off, part)
			if !bytes.Equal(src, dst) {
				t.Errorf("at %d the copy differs from its source", off)
			}
			if bytes.Equal(src, make([]byte, part)) {
				t.Errorf("at %d the source is zeros", off)
			}
		}
	})
	if err := done(); err != nil {
		t.Fatal(err)
	}
}

// wide reads bfloat16 numbers.
func (p *Probe) wide(t *testing.T, from cu.DevicePtr, n int) []float64 {
	t.Helper()
	raw := p.read(t, from, 0, 2*int64(n))
	v := make([]float64, n)
	for i := range v {
		v[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(raw[2*i:])) << 16))
	}
	return v
}

// TestSplit: this process is told from others by its number, and by being alone.
func TestSplit(t *testing.T) {
	one, two := nvml.Process{PID: 7, Bytes: 100}, nvml.Process{PID: 8, Bytes: 200}
	for _, c := range []struct {
		all    []nvml.Process
		own    int64
		others []nvml.Process
	}{{nil, 0, nil}, {[]nvml.Process{two}, 200, nil}, {[]nvml.Process{two, one}, 100, []nvml.Process{two}}, {[]nvml.Process{two, two}, 0, []nvml.Process{two, two}}} {
		own, others := split(c.all, 7)
		if own != c.own || !slices.Equal(others, c.others) {
			t.Errorf("%v: %d, %v", c.all, own, others)
		}
	}
}

// near holds what a library made to what it should be: a yardstick that computes something else measures nothing.
func near(t *testing.T, name string, got, want []float64) {
	t.Helper()
	var far, size float64
	for i := range want {
		far += (got[i] - want[i]) * (got[i] - want[i])
		size += want[i] * want[i]
	}
	if e := math.Sqrt(far / size); !(e < 0.01) {
		t.Errorf("%s is off by %.3g of itself", name, e)
	}
}

// TestCardYardsticks holds cuBLAS and cuDNN to plain loops, in the layouts the harness compares kernels in. It is skipped
// where they are not installed.
func TestCardYardsticks(t *testing.T) {
	p := openTestProbe(t)
	t.Run("products", func(t *testing.T) {
		const M, N, K = 40, 24, 56
		for _, back := range []bool{false, true} {
			library, run, err := p.Products([]Product{{M, N, K, back}})
			if run == nil {
				t.Skip(err)
			}
			t.Log(library)
			y, x, w := p.wide(t, p.scratch[0], M*N), p.wide(t, p.scratch[1], M*K), p.wide(t, p.scratch[2], N*K)
			got, want := y, make([]float64, M*N)
			if back {
				got, want = x, make([]float64, M*K)
				// x was overwritten; y is what the card filled it with.
			}
			for m := range M {
				for n := range N {
					for k := range K {
						if back {
							want[m*K+k] += y[m*N+n] * w[n*K+k]
						} else {
							want[m*N+n] += x[m*K+k] * w[n*K+k]
						}
					}
				}
			}
			near(t, library, got, want)
		}
	})
	for _, h := range []ops.Heads{{H: 4, Hk: 2, D: 64}, {H: 3, Hk: 3, D: 128}} {
		t.Run("attention", func(t *testing.T) {
			const T = 200
			library, run, err := p.Attention(T, h, true)
			if run == nil {
				t.Skip(err)
			}
			t.Log(library)
			wide, narrow := T*h.H*h.D, T*h.Hk*h.D
			in := make([][]float64, 9)
			for i, n := range []int{wide, narrow, narrow, wide, 0, wide, wide, narrow, narrow} {
				if n > 0 {
					in[i] = p.wide(t, p.scratch[i], n)
				}
			}
			o, dq, dk, dv := plainAttention(T, h, in[0], in[1], in[2], in[5])
			for i, want := range map[int][]float64{3: o, 6: dq, 7: dk, 8: dv} {
				near(t, []string{3: "o", 6: "dq", 7: "dk", 8: "dv"}[i], in[i], want)
			}
		})
	}
}

// plainAttention is causal attention and its gradients, of tensors (T, heads, D).
func plainAttention(T int, h ops.Heads, q, k, v, do []float64) (o, dq, dk, dv []float64) {
	o, dq, dk, dv = make([]float64, len(q)), make([]float64, len(q)), make([]float64, len(k)), make([]float64, len(k))
	scale := 1 / math.Sqrt(float64(h.D))
	for head := range h.H {
		for i := range T {
			row := func(x []float64, t, heads, head int) []float64 { return x[(t*heads+head)*h.D:][:h.D] }
			dot := func(a, b []float64) (s float64) {
				for c := range a {
					s += a[c] * b[c]
				}
				return s
			}
			shared := head / (h.H / h.Hk)
			qi, doi, oi, dqi := row(q, i, h.H, head), row(do, i, h.H, head), row(o, i, h.H, head), row(dq, i, h.H, head)
			p, sum := make([]float64, i+1), 0.0
			for j := range p {
				p[j] = math.Exp(scale * dot(qi, row(k, j, h.Hk, shared)))
				sum += p[j]
			}
			for j := range p {
				p[j] /= sum
				for c, x := range row(v, j, h.Hk, shared) {
					oi[c] += p[j] * x
				}
			}
			delta := dot(doi, oi)
			for j := range p {
				kj, vj, dkj, dvj := row(k, j, h.Hk, shared), row(v, j, h.Hk, shared), row(dk, j, h.Hk, shared), row(dv, j, h.Hk, shared)
				ds := p[j] * (dot(doi, vj) - delta) * scale
				for c := range kj {
					dvj[c] += p[j] * doi[c]
					dqi[c] += ds * kj[c]
					dkj[c] += ds * qi[c]
				}
			}
		}
	}
	return o, dq, dk, dv
}
