package data

import (
	"slices"
	"testing"
)

func TestOrderIsPermutation(t *testing.T) {
	for _, o := range []Order{{N: 0, EpochShuffle: true}, {N: 1, EpochShuffle: true}, {N: 8}, {N: 1000, Seed: 42, EpochShuffle: true},
		{N: 1000, DatasetShuffle: true}, {N: 1000, DatasetShuffle: true, EpochShuffle: true}} {
		for epoch := range 3 {
			order := o.Epoch(epoch)
			sorted := slices.Sorted(slices.Values(order))
			for i, v := range sorted {
				if i != v {
					t.Fatalf("%+v, epoch %d: %v", o, epoch, order)
				}
			}
			if len(order) != o.N {
				t.Fatalf("%+v: %d samples", o, len(order))
			}
			if !slices.Equal(order, o.Epoch(epoch)) {
				t.Errorf("%+v: epoch %d differs from itself", o, epoch)
			}
		}
	}
}

// A checkpoint holds a cursor and no order, so the order may never change: it is written down.
func TestOrderIsPinned(t *testing.T) {
	for _, c := range []struct {
		order Order
		epoch int
		want  []int
	}{
		{Order{N: 8}, 0, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{Order{N: 8, Seed: 42, EpochShuffle: true}, 0, []int{3, 4, 2, 0, 7, 1, 5, 6}},
		{Order{N: 8, Seed: 42, EpochShuffle: true}, 1, []int{1, 0, 4, 3, 2, 5, 7, 6}},
		{Order{N: 8, Seed: 43, EpochShuffle: true}, 0, []int{7, 4, 6, 5, 3, 0, 2, 1}},
		{Order{N: 8, Seed: 42, DatasetShuffle: true}, 0, []int{5, 2, 0, 3, 4, 7, 1, 6}},
		{Order{N: 8, Seed: 42, DatasetShuffle: true}, 9, []int{5, 2, 0, 3, 4, 7, 1, 6}},
	} {
		if got := c.order.Epoch(c.epoch); !slices.Equal(got, c.want) {
			t.Errorf("%+v, epoch %d: %#v", c.order, c.epoch, got)
		}
	}
}

// Each of the 24 orders of four samples comes about equally often: chi-squared with 23 degrees
// of freedom is below 49.7 but once in a thousand, and the seeds are fixed.
func TestShuffleIsUniform(t *testing.T) {
	const epochs = 24 * 500
	count := map[[4]int]int{}
	for epoch := range epochs {
		count[[4]int(Order{N: 4, Seed: 7, EpochShuffle: true}.Epoch(epoch))]++
	}
	chi := 0.0
	for _, n := range count {
		chi += float64(n-500) * float64(n-500) / 500
	}
	if len(count) != 24 || chi > 49.7 {
		t.Errorf("%d orders, chi-squared %.1f", len(count), chi)
	}
}

// From any cursor on, the steps are those of a run that began at the beginning.
func TestSamplerResumes(t *testing.T) {
	o := Order{N: 10, Seed: 42, EpochShuffle: true}
	start, err := NewSampler(o, Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	var steps [][]int
	var cursors []Cursor
	for range 3 * o.StepsPerEpoch(4) {
		cursors = append(cursors, start.Cursor())
		steps = append(steps, start.Next(4))
	}
	for epoch := range 3 { // steps of 4, 4 and 2: none reaches into the next epoch
		got := slices.Concat(steps[3*epoch : 3*epoch+3]...)
		if !slices.Equal(got, o.Epoch(epoch)) {
			t.Errorf("epoch %d: %v, want %v", epoch, got, o.Epoch(epoch))
		}
	}
	for from, at := range cursors {
		resumed, err := NewSampler(o, at)
		if err != nil {
			t.Fatal(at, err)
		}
		for i := from; i < len(steps); i++ {
			if got := resumed.Next(4); !slices.Equal(got, steps[i]) {
				t.Fatalf("resumed at %+v, step %d: %v, want %v", at, i, got, steps[i])
			}
		}
	}
	for _, bad := range []Cursor{{-1, 0}, {0, -1}, {0, 10}} {
		if _, err := NewSampler(o, bad); err == nil {
			t.Errorf("cursor %+v was accepted", bad)
		}
	}
}
