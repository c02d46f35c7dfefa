package memory

import (
	"math/rand/v2"
	"testing"
)

// overlap fails the test where two buffers that matter at the same moment share a byte.
func overlap(t *testing.T, p Plan, align int64) {
	t.Helper()
	for i, a := range p.Buffers {
		if p.Offsets[i]%align != 0 || p.Offsets[i]+a.Bytes > p.Bytes {
			t.Fatalf("%s lies at %d, %d bytes of a block of %d", a.Name, p.Offsets[i], a.Bytes, p.Bytes)
		}
		for j, b := range p.Buffers[:i] {
			lives := a.First <= b.Last && b.First <= a.Last
			shares := p.Offsets[i] < p.Offsets[j]+b.Bytes && p.Offsets[j] < p.Offsets[i]+a.Bytes
			if lives && shares {
				t.Fatalf("%s and %s share bytes at moments %d..%d", a.Name, b.Name, max(a.First, b.First), min(a.Last, b.Last))
			}
		}
	}
}

func TestLayoutKeepsLivingBuffersApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var bs []Buffer
		for range rng.IntN(60) + 1 {
			first := rng.IntN(20)
			bs = append(bs, Buffer{Name: string(rune('a' + len(bs)%26)), Bytes: rng.Int64N(5000), First: first, Last: first + rng.IntN(8)})
		}
		p, err := Layout(bs, 256)
		if err != nil {
			t.Fatal(err)
		}
		overlap(t, p, 256)
	}
}

func TestLayoutReusesDeadBuffers(t *testing.T) {
	p, err := Layout([]Buffer{
		{Name: "kept", Bytes: 1024, First: 0, Last: 9},
		{Name: "early", Bytes: 4096, First: 0, Last: 4},
		{Name: "late", Bytes: 4096, First: 5, Last: 9},
	}, 256)
	if err != nil {
		t.Fatal(err)
	}
	if p.Bytes != 1024+4096 {
		t.Errorf("block of %d bytes, want the two 4096-byte buffers at one place beside 1024", p.Bytes)
	}
}

func TestPeakCountsWhatLivesTogether(t *testing.T) {
	p, _ := Layout([]Buffer{
		{Name: "a", Category: Activations, Bytes: 100, First: 0, Last: 2},
		{Name: "b", Category: Activations, Bytes: 50, First: 2, Last: 3},
		{Name: "c", Category: Activations, Bytes: 120, First: 3, Last: 4},
		{Name: "w", Category: Weights, Bytes: 7, First: 0, Last: 4},
	}, 1)
	if got := p.Peak(Activations); got != 170 {
		t.Errorf("peak %d, want b and c together at moment 3: 170", got)
	}
	if got := p.Peak(Weights); got != 7 {
		t.Errorf("weights %d, want 7", got)
	}
}

func TestLayoutRefusesNonsense(t *testing.T) {
	if _, err := Layout([]Buffer{{Name: "x", Bytes: -1}}, 1); err == nil {
		t.Error("negative size accepted")
	}
	if _, err := Layout([]Buffer{{Name: "x", Bytes: 1, First: 2, Last: 1}}, 1); err == nil {
		t.Error("span that ends before it begins accepted")
	}
}
