package data

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"qlora/internal/golden"
)

// sampleOf makes a sample of n tokens that no other sample has, each a label with chance p.
func sampleOf(rng *rand.Rand, row, n int, p float64) Sample {
	s := Sample{File: "f", Row: row, IDs: make([]int32, n), Labels: make([]int32, n)}
	for i := range s.IDs {
		s.IDs[i] = int32(row*10000 + i)
		s.Labels[i] = Ignore
		if i > 0 && rng.Float64() < p {
			s.Labels[i] = s.IDs[i]
		}
	}
	return s
}

func TestPackByHand(t *testing.T) {
	step := []Sample{
		{IDs: []int32{10, 11, 12}, Labels: []int32{-100, 11, 12}},
		{IDs: []int32{20, 21, 22, 23}, Labels: []int32{-100, -100, 22, -100}},
		{IDs: []int32{30}, Labels: []int32{30}}, // nothing predicts a first token
		{IDs: []int32{40, 41}, Labels: []int32{-100, 41}},
	}
	got, err := Pack(step, 8, Pad{Multiple: 4, ID: 99})
	if err != nil {
		t.Fatal(err)
	}
	want := []Row{
		{ // lengths 4 and 3, then 1; the 2 that came between found no room
			IDs:      []int32{10, 11, 12, 20, 21, 22, 23, 30},
			Pos:      []int32{0, 1, 2, 0, 1, 2, 3, 0},
			Sample:   []int32{0, 0, 0, 1, 1, 1, 1, 2},
			SegStart: []int32{0, 3, 7, 8},
			Rows:     []int32{0, 1, 4},
			Targets:  []int32{11, 12, 22},
		},
		{
			IDs:      []int32{40, 41, 99, 99},
			Pos:      []int32{0, 1, 0, 1},
			Sample:   []int32{3, 3, 4, 4},
			SegStart: []int32{0, 2, 4},
			Rows:     []int32{0},
			Targets:  []int32{41},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := LabelTokens(step); n != 4 {
		t.Errorf("%d label tokens, want 4", n)
	}
}

// Whatever the step: every token and label is in the rows once, targets stay in their
// segment, rows keep to the limit, and the same step packs the same way.
func TestPackProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for trial := range 300 {
		multiple := []int{0, 1, 8, 64}[trial%4]
		const maxTokens = 256
		var step []Sample
		total := 0
		for i := range rng.IntN(40) {
			s := sampleOf(rng, i, 1+rng.IntN([]int{4, 60, maxTokens}[rng.IntN(3)]), []float64{0, 0.3, 1}[rng.IntN(3)])
			step = append(step, s)
			total += len(s.IDs)
		}
		rows, err := Pack(step, maxTokens, Pad{multiple, 7})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRows(step, rows, maxTokens, max(multiple, 1)); err != nil {
			t.Fatalf("trial %d: %v", trial, err)
		}
		if fewest := (total + maxTokens - 1) / maxTokens; len(rows) < fewest || 9*len(rows) > 11*fewest*2+9 {
			t.Fatalf("trial %d: %d rows where %d might do", trial, len(rows), fewest)
		}
		again, _ := Pack(step, maxTokens, Pad{multiple, 7})
		if !reflect.DeepEqual(rows, again) {
			t.Fatalf("trial %d: packed differently the second time", trial)
		}
	}
}

func checkRows(step []Sample, rows []Row, maxTokens, multiple int) error {
	seen := make([]bool, len(step))
	labels := 0
	for r, row := range rows {
		n := len(row.IDs)
		if n == 0 || n > maxTokens || n%multiple != 0 || len(row.Pos) != n || len(row.Sample) != n || len(row.Rows) != len(row.Targets) {
			return fmt.Errorf("row %d: %d tokens, %d positions, %d samples", r, n, len(row.Pos), len(row.Sample))
		}
		if row.SegStart[0] != 0 || int(row.SegStart[len(row.SegStart)-1]) != n || !slices.IsSorted(row.Rows) {
			return fmt.Errorf("row %d: segments %v, label rows %v", r, row.SegStart, row.Rows)
		}
		next := 0 // label row to come
		for seg := range len(row.SegStart) - 1 {
			from, to := int(row.SegStart[seg]), int(row.SegStart[seg+1])
			i := int(row.Sample[from])
			var s Sample
			if i == len(step) {
				s = Sample{IDs: slices.Repeat([]int32{7}, to-from), Labels: slices.Repeat([]int32{Ignore}, to-from)}
				if seg != len(row.SegStart)-2 || to-from >= multiple {
					return fmt.Errorf("row %d: padding of %d in segment %d", r, to-from, seg)
				}
			} else {
				if seen[i] {
					return fmt.Errorf("sample %d twice", i)
				}
				seen[i], s = true, step[i]
			}
			if !slices.Equal(row.IDs[from:to], s.IDs) {
				return fmt.Errorf("row %d segment %d is not sample %d", r, seg, i)
			}
			for pos := range to - from {
				if int(row.Pos[from+pos]) != pos || int(row.Sample[from+pos]) != i {
					return fmt.Errorf("row %d token %d: position %d, sample %d", r, from+pos, row.Pos[from+pos], row.Sample[from+pos])
				}
				if pos > 0 && s.Labels[pos] != Ignore {
					if next >= len(row.Rows) || int(row.Rows[next]) != from+pos-1 || row.Targets[next] != s.Labels[pos] {
						return fmt.Errorf("row %d: label row %d is not that of token %d", r, next, from+pos)
					}
					next++
				}
			}
		}
		if next != len(row.Rows) {
			return fmt.Errorf("row %d: %d label rows, want %d", r, len(row.Rows), next)
		}
		labels += next
	}
	if i := slices.Index(seen, false); i >= 0 {
		return fmt.Errorf("sample %d is in no row", i)
	}
	if want := LabelTokens(step); labels != want {
		return fmt.Errorf("%d labels, want %d", labels, want)
	}
	return nil
}

func TestPackRefuses(t *testing.T) {
	ok := Sample{File: "f", Row: 3, IDs: make([]int32, 9), Labels: make([]int32, 9)}
	for want, try := range map[string]func() ([]Row, error){
		"f, row 3: 9 tokens do not fit a packed row of 8": func() ([]Row, error) { return Pack([]Sample{ok}, 8, Pad{}) },
		"no multiple of 8": func() ([]Row, error) { return Pack([]Sample{ok}, 12, Pad{Multiple: 8}) },
		"a row of 0":       func() ([]Row, error) { return Pack(nil, 0, Pad{}) },
		"f, row 4: 0 tok":  func() ([]Row, error) { return Pack([]Sample{{File: "f", Row: 4}}, 8, Pad{}) },
		"1 tokens with 0":  func() ([]Row, error) { return Pack([]Sample{{IDs: []int32{1}}}, 8, Pad{}) },
	} {
		if _, err := try(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// The golden packed rows of the model tests are Pack's, given the samples in their order.
func TestPackGolden(t *testing.T) {
	pattern := golden.Path(t, "packing", "*", "inputs.json")
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatal("no golden packed rows:", pattern, err)
	}
	for _, file := range files {
		var golden struct {
			Sequences [][]int32 `json:"sequences"`
			Labels    [][]int32 `json:"labels"`
			SegStart  []int32   `json:"cu_seqlens"`
			IDs       []int32   `json:"packed_input_ids"`
			AllLabels []int32   `json:"packed_labels"`
			Pos       []int32   `json:"position_ids"`
			Segments  []int32   `json:"segment_ids"`
			Loss      map[string]struct {
				N int `json:"n_label_tokens"`
			} `json:"loss"`
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &golden); err != nil {
			t.Fatal(file, err)
		}
		var step []Sample
		for i, ids := range golden.Sequences {
			step = append(step, Sample{IDs: ids, Labels: golden.Labels[i]})
		}
		rows, err := Pack(step, len(golden.IDs), Pad{})
		if err != nil || len(rows) != 1 {
			t.Fatal(file, len(rows), err)
		}
		got := rows[0]
		if !slices.Equal(got.IDs, golden.IDs) || !slices.Equal(got.SegStart, golden.SegStart) ||
			!slices.Equal(got.Pos, golden.Pos) || !slices.Equal(got.Sample, golden.Segments) {
			t.Errorf("%s: %+v", file, got)
		}
		for name, loss := range golden.Loss {
			if n := LabelTokens(step); n != loss.N {
				t.Errorf("%s: %d label tokens, %s has %d", file, n, name, loss.N)
			}
		}
		n := 0
		for i, label := range golden.AllLabels {
			if label != Ignore {
				if got.Rows[n] != int32(i-1) || got.Targets[n] != label {
					t.Errorf("%s: label %d: row %d, target %d", file, n, got.Rows[n], got.Targets[n])
				}
				n++
			}
		}
		if n != len(got.Rows) || n == 0 {
			t.Errorf("%s: %d label rows, want %d", file, len(got.Rows), n)
		}
	}
}

func BenchmarkPack(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	var step []Sample
	for i := range 64 {
		step = append(step, sampleOf(rng, i, 1+rng.IntN(1024), 0.5))
	}
	for b.Loop() {
		if _, err := Pack(step, 4096, Pad{1024, 0}); err != nil {
			b.Fatal(err)
		}
	}
}
