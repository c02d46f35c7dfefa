package compare

import (
	"fmt"

	"qlora/bench/result"
)

// settings are what must be the same on both sides, or times say nothing of the code. It returns what is not, and notes
// what a reader should know beside.
func (r *Report) settings(old, new []*result.File) (differ []string) {
	a, b := old[0], new[0]
	for _, side := range []struct {
		name  string
		files []*result.File
	}{{"old", old}, {"new", new}} {
		for _, f := range side.files[1:] {
			for _, d := range differences(side.files[0].Environment, f.Environment) {
				differ = append(differ, "files of the "+side.name+" side: "+d)
			}
		}
		for _, f := range side.files {
			r.remark(side.name, f)
		}
	}
	differ = append(differ, differences(a.Environment, b.Environment)...)
	if x, y := a.Environment.Card, b.Environment.Card; x != nil && y != nil && x.Name == y.Name && x.ID != y.ID {
		r.Notices = append(r.Notices, "two cards of one model: they may differ by some percent")
	}
	if x, y := a.Environment.Card, b.Environment.Card; x != nil && y != nil && x.Driver != y.Driver {
		r.Notices = append(r.Notices, fmt.Sprintf("driver %s against %s", x.Driver, y.Driver))
	}
	return differ
}

// remark notes what makes a file's times doubtful.
func (r *Report) remark(side string, f *result.File) {
	note := func(format string, args ...any) {
		r.Notices = append(r.Notices, fmt.Sprintf("%s (%s): %s", side, f.Path, fmt.Sprintf(format, args...)))
	}
	if len(f.Watch.Others) > 0 {
		note("other processes were on the card: %v", f.Watch.Others)
	}
	if f.Environment.Program.Dirty {
		note("the program was built from files that differ from commit %s", f.Environment.Program.Commit)
	}
}

// differences name the settings in which two environments differ.
func differences(a, b result.Environment) []string {
	var all []string
	differ := func(what string, x, y any) {
		if x != y {
			all = append(all, fmt.Sprintf("%s: %v against %v", what, x, y))
		}
	}
	differ("backend", a.Backend, b.Backend)
	differ("device", a.Device(), b.Device())
	if a.Card == nil || b.Card == nil {
		if a.Card == nil && b.Card == nil {
			differ("threads", a.Host.Threads, b.Host.Threads)
		}
		return all
	}
	x, y := *a.Card, *b.Card
	differ("memory of the card", x.Memory, y.Memory)
	differ("power limit (W)", x.PowerLimit, y.PowerLimit)
	differ("largest SM clock (MHz)", x.SMClockMax, y.SMClockMax)
	differ("SM clock set (MHz)", x.SMClockLimit, y.SMClockLimit)
	differ("largest memory clock (MHz)", x.MemClockMax, y.MemClockMax)
	differ("ECC", x.ECC, y.ECC)
	differ("MIG", x.MIG, y.MIG)
	return all
}
