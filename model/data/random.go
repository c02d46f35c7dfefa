package data

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
)

// RandomPrefix begins the name of a dataset of random tokens.
const RandomPrefix = "random:"

// RandomRows describes a dataset of random tokens, to measure by: Rows of Length ids each, any of the vocabulary with the
// same chance, the last ones of each row trained on.
type RandomRows struct {
	Length, Rows int
	Labels       float64 // share of a row's tokens that are trained on; the first never is
}

// ParseRandomRows reads "random:2048x12", or with a share of label tokens "random:2048x12:0.3" (1 where it is not given).
func ParseRandomRows(name string) (RandomRows, error) {
	text, ok := strings.CutPrefix(name, RandomPrefix)
	shape, share, shared := strings.Cut(text, ":")
	length, rows, crossed := strings.Cut(shape, "x")
	r := RandomRows{Labels: 1}
	var errs [3]error
	r.Length, errs[0] = strconv.Atoi(length)
	r.Rows, errs[1] = strconv.Atoi(rows)
	if shared {
		r.Labels, errs[2] = strconv.ParseFloat(share, 64)
	}
	switch {
	case !ok || !crossed || errs != [3]error{}:
		return r, fmt.Errorf("%s: write random:TOKENSxROWS or random:TOKENSxROWS:SHARE, as in random:2048x12:0.3", name)
	case r.Length < 2 || r.Rows < 1 || r.Length > math.MaxInt32/r.Rows:
		return r, fmt.Errorf("%s: rows have at least 2 tokens, and there is at least one; all together have at most %d", name, math.MaxInt32)
	case !(r.Labels > 0 && r.Labels <= 1):
		return r, fmt.Errorf("%s: the share of label tokens is above 0 and at most 1", name)
	}
	return r, nil
}

// Samples makes the rows. The same seed gives the same tokens.
func (r RandomRows) Samples(vocab int, seed uint64) Samples {
	first := min(max(r.Length-int(math.Round(r.Labels*float64(r.Length))), 1), r.Length-1) // that is trained on
	all := make(Samples, r.Rows)
	for i := range all {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		s := Sample{IDs: make([]int32, r.Length), Labels: make([]int32, r.Length), File: fmt.Sprintf("%s%dx%d", RandomPrefix, r.Length, r.Rows), Row: i + 1}
		for t := range s.IDs {
			s.IDs[t] = random.Int32N(int32(vocab))
			s.Labels[t] = Ignore
			if t >= first {
				s.Labels[t] = s.IDs[t]
			}
		}
		all[i] = s
	}
	return all
}
