package plan

import (
	"errors"
	"strings"
	"testing"

	"qlora/cuda/sizes"
	"qlora/model/lora"
	"qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

const gib = 1 << 30

// request is a run of a published shape with rank 8 on all linear layers on a card.
func request(t *testing.T, model, card string, d ops.DType, length, samples int) Request {
	t.Helper()
	src, err := weights.NewRandom(model, 1)
	if err != nil {
		t.Fatal(err)
	}
	set, err := lora.New(src.Config, lora.Config{R: 8, Alpha: 32, Targets: []string{lora.AllLinear}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := CardNamed(card)
	if err != nil {
		t.Fatal(err)
	}
	h := Row(length, samples, 1)
	T := len(h.IDs)
	return Request{Sizes: sizes.Card{Multiprocessors: c.Multiprocessors}, Card: c, Src: src, Batch: h, HostBudget: 200 * gib,
		Options: qwen2.Options{DType: d, Training: true, MaxT: T, MaxS: samples, MaxN: T, Adapter: set}}
}

// What runs are known to take, with everything kept.
func TestKnownSizes(t *testing.T) {
	for _, c := range []struct {
		model           string
		d               ops.DType
		length, samples int
		from, to        float64 // GiB
	}{
		{"qwen2.5-7b", ops.BF16, 2048, 1, 20.6, 20.8},
		{"qwen2.5-7b", ops.NF4, 2048, 1, 11.9, 12.1},
		{"qwen2.5-7b", ops.NF4, 2048, 2, 17.5, 18.0},
		{"qwen2.5-14b", ops.BF16, 2048, 1, 37.5, 38.1},
		{"qwen2.5-0.5b", ops.BF16, 2048, 1, 2.4, 2.8},
	} {
		r := request(t, c.model, "h200", c.d, c.length, c.samples)
		choice, err := Choose(r)
		if err != nil {
			t.Fatal(err)
		}
		got := float64(choice.Plan.Bytes) / gib
		if got < c.from || got > c.to || choice.Saving != (qwen2.Saving{}) {
			t.Errorf("%s %v %dx%d: %.2f GiB, want %.1f to %.1f; %+v", c.model, c.d, c.samples, c.length, got, c.from, c.to, choice.Saving)
		}
		if least := memory.Least(choice.Plan.Buffers, ops.Align); float64(choice.Plan.Bytes) > 1.01*float64(least) {
			t.Errorf("%s %v %dx%d: %d bytes laid out, %d at the fullest moment: more than 1 %% lies between buffers", c.model, c.d, c.samples, c.length, choice.Plan.Bytes, least)
		}
	}
}

// Runs that a 24 GB card must hold: a process within 23.0 GiB.
func TestFits24GB(t *testing.T) {
	for _, c := range []struct {
		model           string
		d               ops.DType
		length, samples int
		plain           bool // with nothing kept less of
	}{
		{"qwen2.5-7b", ops.BF16, 2048, 1, true},
		{"qwen2.5-7b", ops.NF4, 2048, 2, true},
		{"qwen2.5-14b", ops.NF4, 4096, 1, false},
		{"qwen2.5-32b", ops.NF4, 2048, 1, false},
		{"qwen2.5-7b", ops.NF4, 65536, 1, false},
		{"qwen2.5-7b", ops.NF4, 131072, 1, false},
	} {
		r := request(t, c.model, "rtx4090", c.d, c.length, c.samples)
		r.Budget = int64(r.Card.GiB*gib) - Context
		choice, err := Choose(r)
		if err != nil {
			t.Errorf("%s %v %dx%d: %v", c.model, c.d, c.samples, c.length, err)
			continue
		}
		t.Logf("%s %v %dx%d: %s, host %s, %.3f s (%.0f tok/s) on %s, %+v", c.model, c.d, c.samples, c.length, GiB(choice.Plan.Bytes), GiB(choice.Plan.HostBytes),
			choice.Meter.Seconds, float64(len(r.Batch.IDs))/choice.Meter.Seconds, r.Card.Title, choice.Saving)
		for _, f := range choice.Fallbacks {
			t.Logf("  %v", f)
		}
		if choice.Plan.Bytes > r.Budget || (choice.Saving == qwen2.Saving{}) != c.plain || len(choice.Fallbacks) == 0 != c.plain {
			t.Errorf("%s: %d bytes of %d, %+v, %d fallbacks", c.model, choice.Plan.Bytes, r.Budget, choice.Saving, len(choice.Fallbacks))
		}
	}
}

// What is promised of a Hopper card within the budgets of smaller ones, as predicted: tokens a second.
func TestPromises(t *testing.T) {
	for _, c := range []struct {
		model           string
		d               ops.DType
		length, samples int
		arena           float64 // GiB
		least           float64 // tokens a second
	}{
		{"qwen2.5-7b", ops.NF4, 2048, 2, 18, 15_700},
		{"qwen2.5-7b", ops.NF4, 2048, 1, 12.1, 14_400},
		{"qwen2.5-7b", ops.NF4, 2048, 1, 6.2, 9_900},
		{"qwen2.5-32b", ops.NF4, 2048, 1, 23 - Context/float64(gib), 2_800},
		{"qwen2.5-14b", ops.NF4, 4096, 1, 23 - Context/float64(gib), 0},
		{"qwen2.5-7b", ops.NF4, 65536, 1, 23 - Context/float64(gib), 4_500},
		{"qwen2.5-7b", ops.NF4, 131072, 1, 23 - Context/float64(gib), 0},
	} {
		r := request(t, c.model, "h200", c.d, c.length, c.samples)
		r.Budget = int64(c.arena * gib)
		choice, err := Choose(r)
		if err != nil {
			t.Errorf("%s %dx%d: %v", c.model, c.samples, c.length, err)
			continue
		}
		rate := float64(len(r.Batch.IDs)) / choice.Meter.Seconds
		t.Logf("%s %dx%d in %.2f GiB: %s, host %s, %.0f tokens/s, %+v", c.model, c.samples, c.length, c.arena, GiB(choice.Plan.Bytes), GiB(choice.Plan.HostBytes), rate, choice.Saving)
		for _, f := range choice.Fallbacks {
			t.Logf("  %v", f)
		}
		if rate < c.least {
			t.Errorf("%s %dx%d: %.0f tokens/s predicted, %.0f promised", c.model, c.samples, c.length, rate, c.least)
		}
	}
}

// A smaller budget never gives a faster step, every choice stays within it, and what is too small is refused with what it
// would take.
func TestBudgets(t *testing.T) {
	r := request(t, "qwen2.5-7b", "h200", ops.NF4, 2048, 1)
	before := 0.0
	for _, budget := range []float64{23, 16, 12, 11, 10, 9, 8, 7, 6.5, 6} {
		r.Budget = int64(budget * gib)
		c, err := Choose(r)
		if err != nil {
			t.Fatalf("%g GiB: %v", budget, err)
		}
		t.Logf("%g GiB: %s, %.1f ms, %+v", budget, GiB(c.Plan.Bytes), 1e3*c.Meter.Seconds, c.Saving)
		if c.Plan.Bytes > r.Budget || c.Meter.Seconds < before/alike {
			t.Errorf("%g GiB: %d bytes, %.4f s after %.4f s with more memory", budget, c.Plan.Bytes, c.Meter.Seconds, before)
		}
		before = c.Meter.Seconds
	}
	r.Budget = 3 * gib
	_, err := Choose(r)
	var no *NoFit
	if !errors.As(err, &no) || no.Need <= r.Budget || no.Budget != r.Budget || !strings.Contains(err.Error(), "at least") {
		t.Errorf("3 GiB: %v", err)
	}
	r.Budget, r.HostBudget = 8*gib, 0
	c, err := Choose(r)
	if err != nil {
		t.Fatal(err)
	}
	if c.Saving.HostEmbedding || c.Saving.Offload > 0 || c.Plan.HostBytes > 0 {
		t.Errorf("without host memory: %+v, %d bytes of it", c.Saving, c.Plan.HostBytes)
	}
}

// The longest row with nothing made again, and with whatever it takes.
func TestLongest(t *testing.T) {
	r := request(t, "qwen2.5-7b", "rtx4090", ops.NF4, 2048, 1)
	r.Budget = int64(23*gib) - Context
	plain, frugal, err := Longest(r, func(T int) ops.HostBatch { return Row(T, 1, 1) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("7B NF4 in 23.0 GiB: %d tokens with nothing made again, %d at most", plain, frugal)
	if plain < 4096 || plain > 8192 || frugal < 131072 {
		t.Errorf("%d and %d tokens", plain, frugal)
	}
}
