package result

import (
	"maps"
	"slices"
)

// Join makes one of the files of a kind that one program wrote about one device: a run in several pieces. Of rows that
// several have, the newest stands; of a roof that several measured, the highest, as a run of fewer kernels reaches less. Files are oldest first, and those that are joined stand where the newest of them stood.
func Join(files []*File) []*File {
	type group struct {
		kind           Kind
		device, commit string
		dirty          bool
	}
	of := func(f *File) group {
		return group{f.Kind, f.Environment.Device(), f.Environment.Program.Commit, f.Environment.Program.Dirty}
	}
	last := map[group]int{}
	for i, f := range files {
		if f.Schema == Schema {
			last[of(f)] = i
		}
	}
	var all []*File
	for i, f := range files {
		if f.Schema != Schema {
			all = append(all, f)
			continue
		}
		if last[of(f)] != i {
			continue
		}
		joined := *f
		rows := map[string]int{}
		joined.Rows, joined.Roofs, joined.Notes = nil, nil, nil
		for _, one := range files[:i+1] {
			if one.Schema != Schema || of(one) != of(f) {
				continue
			}
			for _, r := range one.Rows {
				if at, ok := rows[r.Key()]; ok {
					joined.Rows[at] = r
					continue
				}
				rows[r.Key()] = len(joined.Rows)
				joined.Rows = append(joined.Rows, r)
			}
			joined.Roofs = highest(joined.Roofs, one.Roofs)
			for _, n := range one.Notes {
				if !slices.Contains(joined.Notes, n) {
					joined.Notes = append(joined.Notes, n)
				}
			}
			joined.Watch = joined.Watch.with(one.Watch)
		}
		all = append(all, &joined)
	}
	return all
}

// highest is the better of two measurements of each roof.
func highest(a, b []Roof) []Roof {
	all := slices.Clone(a)
	for _, r := range b {
		switch at := slices.IndexFunc(all, func(o Roof) bool { return o.Name == r.Name }); {
		case at < 0:
			all = append(all, r)
		case r.Rate() > all[at].Rate():
			all[at] = r
		}
	}
	return all
}

// with is what was seen in two stretches: the extremes of both, the middle of w.
func (w Watch) with(o Watch) Watch {
	for _, pair := range [][2]*Range{{&w.SMClock, &o.SMClock}, {&w.MemClock, &o.MemClock}, {&w.Power, &o.Power}, {&w.TempC, &o.TempC}} {
		a, b := pair[0], pair[1]
		if b.Max > 0 && (a.Max == 0 || b.Min < a.Min) {
			a.Min = b.Min
		}
		a.Max = max(a.Max, b.Max)
	}
	w.Throttled = maps.Clone(w.Throttled)
	for reason, share := range o.Throttled {
		if w.Throttled == nil {
			w.Throttled = map[string]float64{}
		}
		w.Throttled[reason] = max(w.Throttled[reason], share)
	}
	for _, other := range o.Others {
		if !slices.Contains(w.Others, other) {
			w.Others = append(slices.Clip(w.Others), other)
		}
	}
	return w
}
