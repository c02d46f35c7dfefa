package result

import (
	"testing"
	"time"
)

func TestJoin(t *testing.T) {
	at := func(minute int, kind Kind, commit string, rows ...Row) *File {
		return &File{Schema: Schema, Kind: kind, Time: time.Date(2026, 11, 27, 12, minute, 0, 0, time.UTC), Environment: Environment{Backend: "cuda", Card: &Card{Name: "NVIDIA H200"}, Program: Program{Commit: commit}},
			Watch: Watch{Power: Range{Min: 100 + float64(minute), Median: 300, Max: 400 + float64(minute)}}, Rows: rows, Notes: []string{"a note"}}
	}
	row := func(name string, seconds float64) Row { return Row{Name: name, Seconds: Samples{seconds}} }
	old := &File{Schema: 1, Kind: Kernels, Environment: Environment{Card: &Card{Name: "NVIDIA H200"}}}
	first, second := at(1, Kernels, "a", row("x", 1), row("y", 2)), at(3, Kernels, "a", row("y", 3), row("z", 4))
	first.Roofs = []Roof{{Name: CopyRoof}}
	files := []*File{old, first, at(2, Step, "a", row("s", 5)), second, at(4, Kernels, "b", row("x", 6))}
	got := Join(files)
	if len(got) != 4 || got[0] != old || got[1].Kind != Step || got[3].Environment.Program.Commit != "b" {
		t.Fatalf("%d files: %+v", len(got), got)
	}
	one := got[2]
	if len(one.Rows) != 3 || one.Rows[0].Seconds[0] != 1 || one.Rows[1].Seconds[0] != 3 || one.Rows[2].Seconds[0] != 4 {
		t.Errorf("rows %+v", one.Rows)
	}
	if !one.Time.Equal(second.Time) || len(one.Roofs) != 1 || len(one.Notes) != 1 || one.Watch.Power != (Range{Min: 101, Median: 300, Max: 403}) {
		t.Errorf("%+v", one)
	}
	if len(first.Rows) != 2 || len(second.Rows) != 2 || second.Watch.Power.Min != 103 {
		t.Error("what was joined has changed")
	}
	if again := Join(got); len(again) != 4 || len(again[2].Rows) != 3 {
		t.Error("joined twice it is not the same")
	}
}
