package data

import (
	"slices"
	"strings"
	"testing"
)

// times counts how often each of n rows was taken.
func times(rows []int, n int) []int {
	count := make([]int, n)
	for _, i := range rows {
		count[i]++
	}
	return count
}

// Counts are those of ms-swift's post_process and sample_dataset.
func TestSplit(t *testing.T) {
	for _, c := range []struct {
		n, count    int
		share       float64
		train, held int
		err         string
	}{
		{10, 0, 0, 10, 0, ""},
		{10, 4, 0, 4, 0, ""},
		{10, 10, 0, 10, 0, ""},
		{10, 25, 0, 25, 0, ""},
		{10, 0, 0.01, 9, 1, ""}, // at least one
		{10, 0, 0.25, 8, 2, ""}, // rounded down
		{10, 4, 0.5, 2, 2, ""},
		{10, 25, 0.5, 20, 5, ""}, // the share is of the rows there are, the rest is trained on, repeated
		{10, 0, 1, 0, 10, ""},
		{10, 3, 1, 0, 3, ""},
		{10, 11, 1, 0, 0, "11 rows for validation, but there are 10"},
		{1, 0, 0.5, 0, 0, "leaves no row to train on"},
		{10, 1, 0.5, 0, 0, "leaves no row to train on"},
		{1, 5, 0.5, 0, 0, "leaves no row to train on"},
	} {
		for _, random := range []bool{false, true} {
			train, held, err := split(c.n, c.count, c.share, random, newStream(42, streamSample, 0))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%+v: %v", c, err)
				}
				continue
			}
			if err != nil || len(train) != c.train || len(held) != c.held {
				t.Errorf("%+v: %d and %d rows, %v", c, len(train), len(held), err)
				continue
			}
			// Every row is taken equally often, or once more; none is in both parts; none is held twice.
			inTrain, inHeld := times(train, c.n), times(held, c.n)
			pool := c.n - c.held
			for i := range c.n {
				switch {
				case inHeld[i] > 1, inHeld[i] == 1 && inTrain[i] > 0:
					t.Errorf("%+v: row %d is held %d times and trained on %d times", c, i, inHeld[i], inTrain[i])
				case c.share < 1 && inHeld[i] == 0 && (inTrain[i] < c.train/pool || inTrain[i] > c.train/pool+1):
					t.Errorf("%+v: row %d is taken %d times", c, i, inTrain[i])
				}
			}
			if !random && c.share == 0 && !slices.Equal(train, choose(c.n, max(c.count, 0)+b2i(c.count == 0)*c.n, false, nil)) {
				t.Errorf("%+v: %v", c, train)
			}
		}
	}
	// Not at random: the first rows, whole sets first; the last ones are held.
	train, held, _ := split(5, 12, 0.4, false, nil)
	if !slices.Equal(train, []int{0, 1, 2, 0, 1, 2, 0, 1, 2, 0}) || !slices.Equal(held, []int{3, 4}) {
		t.Errorf("%v, %v", train, held)
	}
	train, _, _ = split(3, 7, 0, true, newStream(1, streamSample, 0))
	if !slices.Equal(train[:6], []int{0, 1, 2, 0, 1, 2}) {
		t.Errorf("%v does not begin with the whole set twice", train)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A choice depends on the seed and the dataset's number, and is fair.
func TestChoiceIsFair(t *testing.T) {
	draw := func(seed, number uint64) []int { return choose(50, 5, true, newStream(seed, streamSample, number)) }
	if !slices.Equal(draw(1, 0), draw(1, 0)) || slices.Equal(draw(1, 0), draw(2, 0)) || slices.Equal(draw(1, 0), draw(1, 1)) {
		t.Error("the choice does not follow seed and number alone")
	}
	count := make([]int, 50)
	for seed := range uint64(2000) {
		for i, n := range times(draw(seed, 0), 50) {
			count[i] += n
		}
	}
	for i, n := range count { // 200 expected, standard deviation 13.4
		if n < 140 || n > 260 {
			t.Errorf("row %d was taken %d times of 2000, 200 expected", i, n)
		}
	}
}
