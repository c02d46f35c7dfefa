package ops

import (
	"math"
	"strings"
	"testing"
)

func TestBatchLoadLaysOutTheBlock(t *testing.T) {
	r := newRoom()
	b, err := NewBatch(r.t("batch", I32, BatchWords(10, 4, 5)), 10, 4, 5)
	if err != nil {
		t.Fatal(err)
	}
	h := testHost()
	h.Seed, h.Step = 0xffffffff, 7
	words, err := b.Load(h)
	if err != nil {
		t.Fatal(err)
	}
	header := []int32{6, 2, 3, -1, 7, int32(math.Float32bits(0.5)), 0, 0}
	for i, w := range header {
		if words[i] != w {
			t.Errorf("word %d is %d, want %d", i, words[i], w)
		}
	}
	if len(words) != BatchWords(6, 2, 3) {
		t.Errorf("%d words, want %d", len(words), BatchWords(6, 2, 3))
	}
	at := func(v Tensor) []int32 {
		lo := int(v.Off-b.Block.Off) / 4
		return words[lo : lo+v.Len()]
	}
	for _, v := range []struct {
		t    Tensor
		want []int32
	}{{b.IDs, h.IDs}, {b.Pos, h.Pos}, {b.Sample, h.Sample}, {b.SegStart, h.SegStart}, {b.Rows, h.Rows}, {b.Targets, h.Targets}} {
		got := at(v.t)
		for i := range v.want {
			if len(got) != len(v.want) || got[i] != v.want[i] {
				t.Errorf("%s is %v, want %v", v.t.Name, got, v.want)
				break
			}
		}
	}
}

func TestBatchLoadRefuses(t *testing.T) {
	r := newRoom()
	if _, err := NewBatch(r.t("batch", I32, BatchWords(6, 2, 3)-1), 6, 2, 3); err == nil {
		t.Error("a block that is too small is accepted")
	}
	for want, spoil := range map[string]func(h *HostBatch){
		"does not fit the room":               func(h *HostBatch) { h.IDs = append(h.IDs, 1) },
		"5 positions":                         func(h *HostBatch) { h.Pos = h.Pos[:5] },
		"2 targets":                           func(h *HostBatch) { h.Targets = h.Targets[:2] },
		"segments run from 1 to 6":            func(h *HostBatch) { h.SegStart[0] = 1 },
		"segment 1 is empty":                  func(h *HostBatch) { h.SegStart = []int32{0, 6, 6} },
		"label row 6 at index 2 is outside":   func(h *HostBatch) { h.Rows[2] = 6 },
		"label row 1 at index 1 is outside":   func(h *HostBatch) { h.Rows[1] = 1 },
		"T=0 S=2 N=3 does not fit the room":   func(h *HostBatch) { h.IDs = nil },
		"S=-1 N=3 does not fit the room of T": func(h *HostBatch) { h.SegStart = nil },
	} {
		h := testHost()
		spoil(&h)
		if _, err := r.batch(t).Load(h); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant an error with %q", err, want)
		}
	}
}
