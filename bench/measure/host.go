package measure

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"qlora/bench/result"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// Host is the probe of the processor: the monotonic clock, memory larger than its caches, and the meter of its energy
// where the system shows one. It has no yardstick.
type Host struct {
	b     ops.Backend
	marks []time.Time
	dirty []byte // what Flush writes
	src   []byte
	fill  byte
}

// NewHost returns the probe of a backend whose work is done when its methods return.
func NewHost(b ops.Backend) *Host { return &Host{b: b} }

// Mark notes the time.
func (h *Host) Mark() (Mark, error) {
	h.marks = append(h.marks, time.Now())
	return Mark(len(h.marks) - 1), nil
}

// Seconds is the time between marks.
func (h *Host) Seconds(from, to Mark) (float64, error) {
	return h.marks[to].Sub(h.marks[from]).Seconds(), nil
}

// Forget drops the marks.
func (h *Host) Forget() { h.marks = h.marks[:0] }

// Limits on the memory that Flush and the loads use.
const (
	leastFlush = 64 << 20
	mostFlush  = 512 << 20
)

// buffers makes the two blocks, each twice as large as the largest cache.
func (h *Host) buffers() {
	if h.dirty != nil {
		return
	}
	size := min(max(2*largestCache(), leastFlush), mostFlush)
	h.dirty, h.src = make([]byte, size), make([]byte, size)
	for i := range h.src {
		h.src[i] = byte(i)*167&0x7f + 1 // never 0, which read looks for
	}
}

// Flush writes all of a block.
func (h *Host) Flush() {
	h.buffers()
	h.fill++
	share(len(h.dirty), func(lo, hi int) {
		part := h.dirty[lo:hi]
		for i := range part {
			part[i] = h.fill
		}
	})
}

// share runs f over n bytes in as many pieces as there are threads.
func share(n int, f func(lo, hi int)) {
	threads := runtime.GOMAXPROCS(0)
	var all sync.WaitGroup
	for i := range threads {
		all.Go(func() { f(i*n/threads, (i+1)*n/threads) })
	}
	all.Wait()
}

// Loads are a copy, a search that finds nothing, and the backend's own product on operands that its caches hold: there is
// no higher roof of this processor that the program knows of.
func (h *Host) Loads() ([]Load, func() error, error) {
	h.buffers()
	n := float64(len(h.src))
	product, err := cachedProduct(h.b)
	return []Load{
		{Name: result.CopyRoof, Unit: "B/s", Bytes: 2 * n, Run: func() {
			share(len(h.src), func(lo, hi int) { copy(h.dirty[lo:hi], h.src[lo:hi]) })
		}},
		{Name: result.ReadRoof, Unit: "B/s", Bytes: n, Run: func() {
			share(len(h.src), func(lo, hi int) {
				if bytes.IndexByte(h.src[lo:hi], 0) >= 0 {
					panic("measure: a byte that is not there")
				}
			})
		}},
		product,
	}, nil, err
}

// cachedProduct is y = x·Wᵀ of 256 rows with a weight of 512 KiB in bfloat16.
func cachedProduct(b ops.Backend) (Load, error) {
	const T, N, K = 256, 512, 512
	act := b.Activation(ops.BF16)
	spec := ops.WeightSpec{Name: "roof", DType: ops.BF16, Parts: []int{N}, Cols: K}
	var off int64
	place := func(name string, d ops.DType, shape ...int) ops.Tensor {
		t := ops.Tensor{Name: name, DType: d, Shape: shape, Off: off}
		off = (off + t.Bytes() + ops.Align - 1) / ops.Align * ops.Align
		return t
	}
	x, y, mem := place("x", act, T, K), place("y", act, T, N), place("roof", ops.U8, int(b.WeightBytes(spec)))
	d := ops.Dims{T: T, S: 1, C: K, F: N, V: 1, H: 1, Hk: 1, D: 2}
	block, work := place("batch", ops.I32, ops.BatchWords(T, 1, 0)), place("workspace", ops.U8, int(b.WorkspaceBytes(d)))
	arena, err := b.NewArena(off)
	if err != nil {
		return Load{}, err
	}
	for _, t := range []*ops.Tensor{&x, &y, &mem, &block, &work} {
		t.Buf = arena
	}
	b.SetWorkspace(work, d)
	batch, err := ops.NewBatch(block, T, 1, 0)
	if err != nil {
		return Load{}, err
	}
	h := ops.HostBatch{IDs: make([]int32, T), Pos: make([]int32, T), Sample: make([]int32, T), SegStart: []int32{0, T}}
	some := func(dst []float32, at int) {
		for i := range dst {
			dst[i] = float32((i+at)*37%101-50) / 64 // exact in bfloat16
		}
	}
	w, err2 := b.NewWeight(mem, spec, []ops.Source{{Name: "roof", Rows: N, Cols: K, ReadF32: func(dst []float32, row, n int) error {
		some(dst[:n*K], row)
		return nil
	}}}, nil)
	values := make([]float32, T*K)
	some(values, 7)
	err = errors.Join(err2, b.LoadBatch(batch, h))
	if act == ops.F32 {
		err = errors.Join(err, ops.WriteF32(b, x, values))
	}
	return Load{Name: result.ComputeRoof, Unit: "FLOP/s", FLOPs: 2 * T * N * K, Run: func() {
		b.Linear(y, x, w, ops.Tensor{}, nil, ops.Epilogue{}, batch)
	}}, errors.Join(err, b.Sync())
}

// Yardstick: there is none.
func (*Host) Yardstick(opstest.Case) (string, func(), error) {
	return "", nil, errors.New("no library to compare with on a processor")
}

// Card: there is none.
func (*Host) Card() (*result.Card, []string) { return nil, nil }

// energyMeter is Linux's view of the processor's own meter, for the first socket.
const energyMeter = "/sys/class/powercap/intel-rapl:0/energy_uj"

// Sense reads the energy meter, if there is one and this user may.
func (*Host) Sense() (Reading, bool) {
	text, err := os.ReadFile(energyMeter)
	if err != nil {
		return Reading{}, false
	}
	microjoules, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
	return Reading{At: time.Now(), Energy: microjoules * 1e-6}, err == nil
}

// Others: a processor is shared, and nobody is named.
func (*Host) Others() []string { return nil }

// Memory is the most this process has held.
func (*Host) Memory() (int64, bool) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10, true
		}
	}
	return 0, false
}

// Close gives nothing back.
func (*Host) Close() error { return nil }

// largestCache is that of the first core in bytes, 0 where the system does not say.
func largestCache() int {
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu0/cache/index*/size") // the pattern is well formed
	most := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		number, unit := strings.TrimSpace(string(text)), 1
		for suffix, bytes := range map[string]int{"K": 1 << 10, "M": 1 << 20} {
			if digits, ok := strings.CutSuffix(number, suffix); ok {
				number, unit = digits, bytes
			}
		}
		if n, err := strconv.Atoi(number); err == nil {
			most = max(most, n*unit)
		}
	}
	return most
}
