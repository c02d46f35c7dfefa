package data

import (
	"errors"
	"fmt"
	"math/rand/v2"
)

// split chooses of n rows as ms-swift does: count of them (0: n), of which a share is set aside
// for validation, where no row comes twice. It draws its own random numbers, not numpy's, so
// that which rows are chosen differs from ms-swift while their numbers do not.
func split(n, count int, share float64, random bool, stream *rand.ChaCha8) (train, held []int, err error) {
	if count == 0 {
		count = n
	}
	if share == 0 {
		return choose(n, count, random, stream), nil, nil
	}
	if share == 1 {
		if count > n {
			return nil, nil, fmt.Errorf("%d rows for validation, but there are %d", count, n)
		}
		return nil, choose(n, count, random, stream), nil
	}
	nHeld := max(int(float64(min(n, count))*share), 1)
	if nHeld >= n || nHeld >= count {
		return nil, nil, errors.New("setting a share aside for validation leaves no row to train on")
	}
	order := identity(n)
	rest := order[:n-nHeld]
	held = order[n-nHeld:]
	if random {
		shuffle(order, stream)
		held, rest = order[:nHeld], order[nHeld:]
	}
	train = choose(len(rest), count-nHeld, random, stream)
	for i, j := range train {
		train[i] = rest[j]
	}
	return train, held, nil
}

// choose takes count of n rows: all of them as often as they fit, and then, for the rest, some
// without replacement, or the first.
func choose(n, count int, random bool, stream *rand.ChaCha8) []int {
	rows := make([]int, 0, count)
	for range count / n {
		rows = append(rows, identity(n)...)
	}
	if rest := count % n; rest > 0 {
		order := identity(n)
		if random {
			shuffle(order, stream)
		}
		rows = append(rows, order[:rest]...)
	}
	return rows
}

// identity returns 0..n-1.
func identity(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	return order
}
