package data

import (
	"cmp"
	"fmt"
	"slices"
)

// Row is one packed row of T tokens: S segments laid end to end, which do not attend to each
// other.
type Row struct {
	IDs      []int32 // (T)
	Pos      []int32 // (T) position within the segment
	Sample   []int32 // (T) the sample's index within the optimizer step
	SegStart []int32 // (S+1) first token of each segment, then T
	Rows     []int32 // (N) tokens that predict a label, ascending
	Targets  []int32 // (N) the id each of them must predict
}

// Pad says how rows are rounded up: to a multiple of Multiple tokens (0 or 1: not at all), by
// a last segment of ID without labels. Its sample index is the number of samples in the step.
type Pad struct {
	Multiple int
	ID       int32
}

// Pack lays the samples of one optimizer step into few rows of at most maxTokens tokens: by
// length, the longest first, each into the first row with room. That takes at most one row more
// than 11/9 of the fewest possible (Dósa 2007). Within a row samples keep their order. The
// loss of the step is the sum over its labels divided by LabelTokens(step), in whatever rows
// they lie.
func Pack(step []Sample, maxTokens int, pad Pad) ([]Row, error) {
	multiple := max(pad.Multiple, 1)
	if maxTokens < 1 || maxTokens%multiple != 0 {
		return nil, fmt.Errorf("a row of %d tokens is no multiple of %d", maxTokens, multiple)
	}
	for _, s := range step {
		switch {
		case len(s.IDs) == 0 || len(s.IDs) != len(s.Labels):
			return nil, fmt.Errorf("%s, row %d: %d tokens with %d labels", s.File, s.Row, len(s.IDs), len(s.Labels))
		case len(s.IDs) > maxTokens:
			return nil, fmt.Errorf("%s, row %d: %d tokens do not fit a packed row of %d: lower --max_length", s.File, s.Row, len(s.IDs), maxTokens)
		}
	}
	var rows []Row
	for _, members := range firstFit(step, maxTokens) {
		rows = append(rows, layRow(step, members, multiple, pad.ID))
	}
	return rows, nil
}

// firstFit returns the samples of each row, ascending.
func firstFit(step []Sample, maxTokens int) [][]int {
	var rows [][]int
	var room []int
	for _, i := range byLength(step, identity(len(step))) {
		need := len(step[i].IDs)
		row := slices.IndexFunc(room, func(left int) bool { return left >= need })
		if row < 0 {
			row = len(rows)
			rows, room = append(rows, nil), append(room, maxTokens)
		}
		rows[row] = append(rows[row], i)
		room[row] -= need
	}
	for _, row := range rows {
		slices.Sort(row)
	}
	return rows
}

// byLength returns which samples, the longest first; of equals the first stays first.
func byLength(samples []Sample, which []int) []int {
	return slices.SortedStableFunc(slices.Values(which), func(a, b int) int { return cmp.Compare(len(samples[b].IDs), len(samples[a].IDs)) })
}

func layRow(step []Sample, members []int, multiple int, padID int32) Row {
	used := 0
	for _, i := range members {
		used += len(step[i].IDs)
	}
	t := (used + multiple - 1) / multiple * multiple
	row := Row{IDs: make([]int32, 0, t), Pos: make([]int32, 0, t), Sample: make([]int32, 0, t), SegStart: []int32{0}}
	segment := func(ids []int32, sample int) {
		for pos := range ids {
			row.Pos = append(row.Pos, int32(pos))
			row.Sample = append(row.Sample, int32(sample))
		}
		row.IDs = append(row.IDs, ids...)
		row.SegStart = append(row.SegStart, int32(len(row.IDs)))
	}
	for _, i := range members {
		start := int32(len(row.IDs))
		segment(step[i].IDs, i)
		for pos, label := range step[i].Labels[1:] { // the token at pos predicts the label at pos+1
			if label != Ignore {
				row.Rows = append(row.Rows, start+int32(pos))
				row.Targets = append(row.Targets, label)
			}
		}
	}
	if t > used {
		segment(slices.Repeat([]int32{padID}, t-used), len(step))
	}
	return row
}
