package data

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
)

// dataset is the rows of the files that a name stands for.
type dataset struct {
	spec    Spec
	text    string // as the user wrote it
	files   []source
	leftOut []string // files of its folder that are not read
	tables  []table
	ends    []int // row after the last of each file
}

func openDataset(text string) (*dataset, error) {
	spec, err := ParseSpec(text)
	if err != nil {
		return nil, err
	}
	d := &dataset{spec: spec, text: text}
	if d.files, d.leftOut, err = spec.files(); err != nil {
		var fault *FileError
		if !errors.As(err, &fault) {
			err = &FileError{spec.Name, 0, err}
		}
		return nil, err
	}
	n := 0
	for _, s := range d.files {
		t, err := openTable(s.file)
		if err != nil {
			d.Close()
			return nil, err
		}
		n += t.Len()
		d.tables, d.ends = append(d.tables, t), append(d.ends, n)
	}
	return d, nil
}

// openDatasets opens all or none.
func openDatasets(texts []string) ([]*dataset, error) {
	var all []*dataset
	for _, text := range texts {
		d, err := openDataset(text)
		if err != nil {
			closeDatasets(all)
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

func closeDatasets(all []*dataset) {
	for _, d := range all {
		d.Close()
	}
}

func (d *dataset) Close() {
	for _, t := range d.tables {
		t.Close() // only read from
	}
}

func (d *dataset) Len() int { return d.ends[len(d.ends)-1] }

// example reads row i, from 0, with the names put in. The example names its file and row also where there is an error:
// a *RowError, or a *FileError.
func (d *dataset) example(i int, opt Options) (Example, error) {
	f, _ := slices.BinarySearch(d.ends, i+1)
	if f > 0 {
		i -= d.ends[f-1]
	}
	ex := Example{File: d.files[f].file}
	rec, err := d.tables[f].read(i)
	if err != nil {
		var fault *FileError
		if errors.As(err, &fault) {
			ex.Row = fault.Row
		}
		return ex, err
	}
	ex.Row = rec.row
	err = rec.example(&ex, opt.Columns)
	ex.Marked = opt.Names.fill(&ex.Conversation, ex.Tag)
	d.files[f].add.apply(&ex.Conversation)
	return ex, err
}

// example reads a record by its columns. The error is a *RowError.
func (r record) example(ex *Example, rename map[string]string) error {
	cols, err := newColumns(r.members, rename)
	if err == nil {
		err = cols.example(ex)
	}
	if err != nil {
		return &RowError{ex.File, ex.Row, err.Error()}
	}
	return nil
}

// Rows streams all rows of a dataset, in their order, whatever count its name has; of the
// options it takes Columns and Names. A *RowError stands for a row that cannot be used, and the
// rows after it follow; any other error is the last of the sequence.
func Rows(dataset string, opt Options) iter.Seq2[Example, error] {
	return func(yield func(Example, error) bool) {
		d, err := openDataset(dataset)
		if err != nil {
			yield(Example{}, err)
			return
		}
		defer d.Close()
		for i := range d.Len() {
			ex, err := d.example(i, opt)
			if !yield(ex, err) || err != nil && !isRowError(err) {
				return
			}
		}
	}
}

// Chosen streams the rows that Load would take of datasets, as Rows does.
func Chosen(datasets []string, opt Options) iter.Seq2[Example, error] {
	return chosen(datasets, opt, func(train, _ []int) []int { return train })
}

// SetAside streams the rows that LoadSplit would set aside of datasets, as Rows does.
func SetAside(datasets []string, opt Options) iter.Seq2[Example, error] {
	return chosen(datasets, opt, func(_, held []int) []int { return held })
}

func chosen(datasets []string, opt Options, which func(train, held []int) []int) iter.Seq2[Example, error] {
	return func(yield func(Example, error) bool) {
		all, err := openDatasets(datasets)
		if err != nil {
			yield(Example{}, err)
			return
		}
		defer closeDatasets(all)
		for number, d := range all {
			faults := func(ex Example, err error) bool { return yield(ex, err) }
			train, held, err := d.choose(number, opt, faults)
			if errors.Is(err, errStopped) {
				return
			}
			if err != nil {
				yield(Example{}, err)
				return
			}
			for _, i := range which(train, held) {
				ex, err := d.example(i, opt)
				if !yield(ex, err) || err != nil && !isRowError(err) {
					return
				}
			}
		}
	}
}

func isRowError(err error) bool {
	var fault *RowError
	return errors.As(err, &fault)
}

// errStopped ends a pass over rows whose consumer wants no more.
var errStopped = errors.New("stopped")

// choose returns the rows that are taken of a dataset, and those that are set aside for
// validation, out of the rows that can be used. faults is told of others that were met, and ends
// the reading by returning false.
func (d *dataset) choose(number int, opt Options, faults func(Example, error) bool) (train, held []int, err error) {
	if d.spec.Count == 0 && opt.SplitRatio == 0 {
		return identity(d.Len()), nil, nil
	}
	stream := newStream(opt.Seed, streamSample, uint64(number))
	usable := identity(d.Len())
	if !opt.Lazy {
		if usable, err = d.usable(opt, stream, faults); err != nil || len(usable) == 0 {
			return nil, nil, err
		}
	}
	train, held, err = split(len(usable), d.spec.Count, opt.SplitRatio, opt.Shuffle, stream)
	if err != nil {
		return nil, nil, fmt.Errorf("dataset %s: %w", d.text, err)
	}
	for _, rows := range [][]int{train, held} {
		for i, row := range rows {
			rows[i] = usable[row]
		}
	}
	return train, held, nil
}

// usable returns rows that hold a conversation or token ids: all in their order, or where fewer
// are wanted and any will do as many of them, tried in random order, so that few of a large
// file need be read.
func (d *dataset) usable(opt Options, stream *rand.ChaCha8, faults func(Example, error) bool) ([]int, error) {
	order, want := identity(d.Len()), d.Len()
	if d.spec.Count > 0 && d.spec.Count < want && (opt.Shuffle || opt.SplitRatio == 0) {
		want = d.spec.Count
		if opt.Shuffle {
			shuffle(order, stream)
		}
	}
	type tried struct {
		ex  Example // its place alone
		err error
	}
	var usable []int
	n := 0
	for t := range inOrder(order, opt.workers(), func(i int) tried {
		ex, err := d.example(i, opt)
		return tried{Example{File: ex.File, Row: ex.Row}, err}
	}) {
		switch {
		case t.err == nil:
			usable = append(usable, order[n])
		case !isRowError(t.err):
			return nil, t.err
		case !faults(t.ex, t.err):
			return nil, errStopped
		}
		n++
		opt.reading("finding rows of", d, min(n, want), want)
		if len(usable) == want {
			break
		}
	}
	if n == len(order) {
		slices.Sort(usable)
	}
	return usable, nil
}
