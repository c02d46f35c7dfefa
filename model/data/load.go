package data

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
)

// Truncation says what becomes of a row longer than the limit.
type Truncation string

const (
	Delete Truncation = "delete" // the row is dropped
	Left   Truncation = "left"   // its first tokens are cut off
	Right  Truncation = "right"  // its last tokens are cut off
)

// Options say which rows are taken, and how they become samples.
type Options struct {
	MaxLength  int        // tokens of a sample; 0: no limit
	Truncation Truncation // "": Delete
	Strict     bool       // a row that cannot be used is an error, not a line of the report
	Vocab      int        // ids of pre-tokenised rows must be below it; 0: not checked
	ReportMax  int        // rows the report names for each reason; 0: 20

	Columns map[string]string // new names of columns by their old ones, both in lower case: see ParseColumns
	Names   Names

	Seed       uint64  // of the choice of rows
	Shuffle    bool    // rows are chosen at random; else the first
	SplitRatio float64 // share of each dataset set aside for validation, 0 to 1
	Lazy       bool    // for LoadLazy: rows are read when they are asked for
	Workers    int     // goroutines that read rows; 0: as many as there are processors

	// Progress, where set, is told how many rows of a dataset are read, of how many, and what for.
	Progress func(what string, done, total int)
}

func (o Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// reading is Progress for the rows of a dataset.
func (o Options) reading(what string, d *dataset, done, total int) {
	if o.Progress != nil {
		o.Progress(what+" "+d.text, done, total)
	}
}

func (o Options) check() error {
	switch o.Truncation {
	case "", Delete, Left, Right:
	default:
		return fmt.Errorf("unknown truncation strategy %q: choose delete, left or right", o.Truncation)
	}
	if !(o.SplitRatio >= 0 && o.SplitRatio <= 1) {
		return fmt.Errorf("a share of %v set aside for validation: must be 0 to 1", o.SplitRatio)
	}
	return nil
}

// Load reads datasets, in their order, into samples. The report counts the rows left out or
// shortened; it is complete also when the error is that no row is left.
func Load(datasets []string, chat *Chat, opt Options) (Samples, *Report, error) {
	if opt.SplitRatio != 0 {
		return nil, nil, errors.New("data: Load does not split: use LoadSplit")
	}
	samples, _, report, err := LoadSplit(datasets, chat, opt)
	return samples, report, err
}

// LoadSplit is Load that sets aside a share of every dataset for validation.
func LoadSplit(datasets []string, chat *Chat, opt Options) (train, validation Samples, report *Report, err error) {
	opt.Lazy = false
	l, err := newLoading(datasets, chat, opt)
	if err != nil {
		return nil, nil, nil, err
	}
	defer closeDatasets(l.sets)
	for number, d := range l.sets {
		taken, held, err := d.choose(number, opt, l.fault)
		if err == nil {
			train, err = l.read(train, d, taken)
		}
		if err == nil {
			validation, err = l.read(validation, d, held)
		}
		if err != nil {
			return nil, nil, l.report, l.failed(err)
		}
	}
	l.report.Kept = len(train) + len(validation)
	if len(train) == 0 && opt.SplitRatio < 1 || l.report.Kept == 0 {
		return nil, nil, l.report, l.report.nothingLeft(datasets)
	}
	return train, validation, l.report, nil
}

// loading is the reading of datasets.
type loading struct {
	encoder
	sets   []*dataset
	report *Report
	strict error // what ended it, where Strict is set
}

func newLoading(datasets []string, chat *Chat, opt Options) (*loading, error) {
	if err := opt.check(); err != nil {
		return nil, err
	}
	if opt.ReportMax == 0 {
		opt.ReportMax = 20
	}
	l := &loading{encoder: encoder{chat, opt}, report: &Report{max: opt.ReportMax}}
	var err error
	if l.sets, err = openDatasets(datasets); err != nil {
		return nil, err
	}
	for _, d := range l.sets {
		if len(d.leftOut) > 0 {
			l.report.notice("%s: of %d files %d are left out, %s among them", d.text, len(d.files)+len(d.leftOut), len(d.leftOut), d.leftOut[0])
		}
	}
	return l, nil
}

// fault takes up a row that cannot be used, and reports whether to go on.
func (l *loading) fault(ex Example, err error) bool {
	if l.opt.Strict {
		l.strict = err
		return false
	}
	l.report.add(outcome{file: ex.File, row: ex.Row, fate: invalid, detail: rowMessage(err)})
	return true
}

func (l *loading) failed(err error) error {
	if errors.Is(err, errStopped) {
		return l.strict
	}
	return err
}

// read appends the samples of rows of a dataset. A row that comes again is encoded once.
func (l *loading) read(samples Samples, d *dataset, rows []int) (Samples, error) {
	fresh := rows
	if d.spec.Count > 0 {
		fresh = rows[:distinct(rows)]
	}
	if len(fresh) < len(rows) {
		l.report.notice("%s: %d rows are wanted of %d that can be used, so rows are repeated", d.text, len(rows), len(fresh))
	}
	known := map[int]outcome{}
	take := func(out outcome) error {
		switch {
		case out.err != nil:
			return out.err
		case out.fate == invalid && l.opt.Strict:
			return &RowError{out.file, out.row, out.detail}
		}
		if l.report.add(out); out.fate.kept() {
			samples = append(samples, out.sample)
		}
		return nil
	}
	i := 0
	for out := range inOrder(fresh, l.opt.workers(), func(i int) outcome { return l.encode(d, i) }) {
		if len(fresh) < len(rows) {
			known[fresh[i]] = out
		}
		if err := take(out); err != nil {
			return nil, err
		}
		i++
		l.opt.reading("reading", d, i, len(fresh))
	}
	for _, row := range rows[len(fresh):] {
		if err := take(known[row]); err != nil {
			return nil, err
		}
	}
	return samples, nil
}

// distinct is how many rows come before the first that came already: choose gives a whole set
// before it repeats a row.
func distinct(rows []int) int {
	seen := make(map[int]bool, len(rows))
	for i, row := range rows {
		if seen[row] {
			return i
		}
		seen[row] = true
	}
	return len(rows)
}

// Fingerprint returns the sha256 of the samples' ids and labels, in order: what a resumed
// run must find unchanged.
func Fingerprint(samples []Sample) string {
	hash := sha256.New()
	var block []byte
	for _, s := range samples {
		block = binary.LittleEndian.AppendUint64(block[:0], uint64(len(s.IDs)))
		for i, id := range s.IDs {
			block = binary.LittleEndian.AppendUint32(block, uint32(id))
			block = binary.LittleEndian.AppendUint32(block, uint32(s.Labels[i]))
		}
		hash.Write(block)
	}
	return hex.EncodeToString(hash.Sum(nil))
}
