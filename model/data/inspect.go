package data

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/montanaflynn/stats"
)

// LengthStats describes the lengths of samples in tokens. Percentiles are by nearest rank.
type LengthStats struct {
	Samples     int     `json:"samples"`
	Min         int     `json:"min"`
	Median      float64 `json:"median"`
	P90         int     `json:"p90"`
	P99         int     `json:"p99"`
	Max         int     `json:"max"`
	Mean        float64 `json:"mean"`
	Tokens      int     `json:"tokens"`
	LabelTokens int     `json:"label_tokens"`
}

// Lengths returns the statistics of at least one sample.
func Lengths(samples []Sample) (LengthStats, error) {
	if len(samples) == 0 {
		return LengthStats{}, fmt.Errorf("no samples to describe")
	}
	out := LengthStats{Samples: len(samples), LabelTokens: LabelTokens(samples)}
	lengths := make(stats.Float64Data, len(samples))
	for i, s := range samples {
		lengths[i] = float64(len(s.IDs))
		out.Tokens += len(s.IDs)
	}
	var err error
	take := func(v float64, e error) float64 {
		if err == nil {
			err = e
		}
		return v
	}
	out.Min, out.Max = int(take(lengths.Min())), int(take(lengths.Max()))
	out.Median, out.Mean = take(lengths.Median()), take(lengths.Mean())
	out.P90, out.P99 = int(take(lengths.PercentileNearestRank(90))), int(take(lengths.PercentileNearestRank(99)))
	return out, err
}

// Token is one token of a sample, for people to read.
type Token struct {
	Pos   int    `json:"pos"`
	ID    int32  `json:"id"`
	Text  string `json:"text"` // bytes that are no whole character as \x.. escapes
	Label bool   `json:"label"`
}

// Tokens lists a sample's tokens and its mask; bytes returns what a token stands for, if it is
// in the vocabulary.
func Tokens(s Sample, bytes func(id int32) (string, bool)) []Token {
	out := make([]Token, len(s.IDs))
	for i, id := range s.IDs {
		text, ok := bytes(id)
		switch {
		case !ok:
			text = "(no token)"
		case !utf8.ValidString(text):
			quoted := strconv.Quote(text)
			text = quoted[1 : len(quoted)-1]
		}
		out[i] = Token{Pos: i, ID: id, Text: text, Label: s.Labels[i] != Ignore}
	}
	return out
}
