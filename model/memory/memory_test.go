package memory

import (
	"math/rand/v2"
	"testing"
)

// overlap fails the test where two buffers that matter at the same moment share a byte of one block.
func overlap(t *testing.T, p Plan, align int64) {
	t.Helper()
	for i, a := range p.Buffers {
		bytes := p.Bytes
		if a.Host {
			bytes = p.HostBytes
		}
		if p.Offsets[i]%align != 0 || p.Offsets[i]+a.Bytes > bytes {
			t.Fatalf("%s lies at %d, %d bytes of a block of %d", a.Name, p.Offsets[i], a.Bytes, bytes)
		}
		for j, b := range p.Buffers[:i] {
			lives := a.First <= b.Last && b.First <= a.Last && a.Host == b.Host
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
			b := Buffer{Name: string(rune('a' + len(bs)%26)), Bytes: rng.Int64N(5000), First: first, Last: first + rng.IntN(8), Host: rng.IntN(4) == 0}
			if rng.IntN(5) == 0 {
				b.First, b.Last = 0, 27
			}
			bs = append(bs, b)
		}
		p, err := Layout(bs, 256)
		if err != nil {
			t.Fatal(err)
		}
		overlap(t, p, 256)
		if least := Least(bs, 256); least > p.Bytes {
			t.Fatalf("at least %d bytes, and the layout has %d", least, p.Bytes)
		}
		var sum int64
		for _, n := range p.Fullest() {
			sum += n
		}
		if sum != Least(bs, 256) {
			t.Fatalf("the fullest moment adds up to %d, want %d", sum, Least(bs, 256))
		}
	}
}

func TestLayoutReusesDeadBuffers(t *testing.T) {
	p, err := Layout([]Buffer{
		{Name: "kept", Bytes: 1024, First: 0, Last: 9},
		{Name: "early", Bytes: 4096, First: 0, Last: 4},
		{Name: "late", Bytes: 4096, First: 5, Last: 9},
		{Name: "elsewhere", Bytes: 9999, First: 0, Last: 9, Host: true},
	}, 256)
	if err != nil {
		t.Fatal(err)
	}
	if p.Bytes != 1024+4096 || p.HostBytes != 10240 {
		t.Errorf("blocks of %d and %d bytes, want the two 4096-byte buffers at one place beside 1024, and 10240", p.Bytes, p.HostBytes)
	}
}

func TestPeakCountsWhatLivesTogether(t *testing.T) {
	p, _ := Layout([]Buffer{
		{Name: "a", Category: Activations, Bytes: 100, First: 0, Last: 2},
		{Name: "b", Category: Activations, Bytes: 50, First: 2, Last: 3},
		{Name: "c", Category: Activations, Bytes: 120, First: 3, Last: 4},
		{Name: "w", Category: Weights, Bytes: 7, First: 0, Last: 4},
		{Name: "h", Category: Weights, Bytes: 70, First: 0, Last: 4, Host: true},
	}, 1)
	if got := Peak(p.Buffers, Activations, 1); got != 170 {
		t.Errorf("peak %d, want b and c together at moment 3: 170", got)
	}
	if got := Peak(p.Buffers, Weights, 1); got != 7 {
		t.Errorf("weights %d, want 7", got)
	}
	if got := p.Fullest(); got[Activations] != 170 || got[Weights] != 7 {
		t.Errorf("at the fullest moment %v, want 170 of activations and 7 of weights", got)
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
