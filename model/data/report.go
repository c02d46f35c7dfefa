package data

import (
	"fmt"
	"strings"
)

// Report counts what became of the rows that were chosen, one that was chosen again each time,
// and of those that were met and could not be chosen: Rows = Kept + Invalid + TooLong + NoLabel.
type Report struct {
	Rows int `json:"rows"`
	Kept int `json:"kept"` // became samples, shortened ones included

	Invalid   Tally `json:"invalid"`   // dropped: not a conversation, or one the template cannot write
	TooLong   Tally `json:"too_long"`  // dropped by truncation strategy delete
	NoLabel   Tally `json:"no_label"`  // dropped: nothing in it is trained on
	Truncated Tally `json:"truncated"` // kept, shortened

	Marked  int      `json:"marked"`            // rows with a place for a name
	Notices []string `json:"notices,omitempty"` // what else to know

	max int // rows named in a tally
}

// Tally counts the rows that met one fate, and names the first of them.
type Tally struct {
	Count int     `json:"count"`
	First []Issue `json:"first,omitempty"`
}

// Issue is a row and what is wrong with it.
type Issue struct {
	File   string `json:"file"`
	Row    int    `json:"row"`
	Detail string `json:"detail"`
}

func (i Issue) String() string { return fmt.Sprintf("%s, row %d: %s", i.File, i.Row, i.Detail) }

func (o outcome) issue() Issue { return Issue{o.file, o.row, o.detail} }

func (r *Report) add(out outcome) {
	r.Rows++
	if out.marked {
		r.Marked++
	}
	tally := map[fate]*Tally{truncated: &r.Truncated, invalid: &r.Invalid, tooLong: &r.TooLong, noLabel: &r.NoLabel}[out.fate]
	if tally == nil {
		return
	}
	tally.Count++
	if len(tally.First) < r.max {
		tally.First = append(tally.First, out.issue())
	}
}

func (r *Report) notice(format string, args ...any) {
	r.Notices = append(r.Notices, fmt.Sprintf(format, args...))
}

// Dropped is the number of rows that became no sample.
func (r *Report) Dropped() int { return r.Invalid.Count + r.TooLong.Count + r.NoLabel.Count }

func (r *Report) nothingLeft(datasets []string) error {
	why := "it holds no rows"
	for _, t := range []Tally{r.Invalid, r.TooLong, r.NoLabel} {
		if len(t.First) > 0 {
			why = fmt.Sprintf("of %d rows, %d are not usable, %d too long, %d without anything to train on; the first: %s",
				r.Rows, r.Invalid.Count, r.TooLong.Count, r.NoLabel.Count, t.First[0])
			break
		}
	}
	return fmt.Errorf("nothing to train on in %s: %s", strings.Join(datasets, ", "), why)
}
