package data

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// Lazy is a Source of rows that are read and encoded when they are asked for. A row that cannot
// be used is found only then: another, chosen at random, stands in for it, as in ms-swift.
type Lazy struct {
	encoder
	seed  uint64
	sets  []*dataset
	rows  []lazyRow
	print string
}

// lazyRow is a row by its place in the datasets.
type lazyRow struct{ set, row int32 }

// tries is how many rows are tried for a unit: ms-swift's n_try_fetch.
const tries = 10

// LoadLazy finds the rows that LoadSplit would take, as far as that can be told without reading
// them: where rows are counted, those that cannot be used count too. Rows set aside for
// validation are read at once, and the report is of them. Close the result when it is no longer
// used.
func LoadLazy(datasets []string, chat *Chat, opt Options) (train *Lazy, validation Samples, report *Report, err error) {
	if opt.MaxLength < 1 {
		return nil, nil, nil, errors.New("data: reading rows when they are asked for needs a limit to their length")
	}
	opt.Lazy = true
	l, err := newLoading(datasets, chat, opt)
	if err != nil {
		return nil, nil, nil, err
	}
	train = &Lazy{encoder: l.encoder, seed: opt.Seed, sets: l.sets}
	defer func() {
		if err != nil {
			train.Close()
		}
	}()
	for number, d := range l.sets {
		taken, held, err := d.choose(number, opt, l.fault)
		if err == nil {
			validation, err = l.read(validation, d, held)
		}
		if err != nil {
			return nil, nil, l.report, l.failed(err)
		}
		for _, row := range taken {
			train.rows = append(train.rows, lazyRow{int32(number), int32(row)})
		}
	}
	l.report.Kept = len(validation)
	train.print, err = train.fingerprint()
	return train, validation, l.report, err
}

// Close closes the files.
func (l *Lazy) Close() { closeDatasets(l.sets) }

func (l *Lazy) Len() int            { return len(l.rows) }
func (l *Lazy) Fingerprint() string { return l.print }

func (l *Lazy) Bounds() Bounds {
	return Bounds{Sample: l.opt.MaxLength, Unit: 1, Total: len(l.rows) * l.opt.MaxLength}
}

// Unit reads and encodes a row, or one in its place.
func (l *Lazy) Unit(i int) (Unit, error) {
	var u Unit
	stream := newStream(l.seed, streamInstead, uint64(i))
	for at := l.rows[i]; ; at = l.rows[below(uint64(len(l.rows)), stream)] {
		out := l.encode(l.sets[at.set], int(at.row))
		var broken *FileError
		switch {
		case errors.As(out.err, &broken) && broken.Row > 0 && !l.opt.Strict: // this row's text alone: others were found without it
			out.fate, out.detail = invalid, rowMessage(out.err)
		case out.err != nil:
			return Unit{}, out.err
		case out.fate.kept():
			u.Samples = []Sample{out.sample}
			return u, nil
		case out.fate == invalid && l.opt.Strict:
			return Unit{}, &RowError{out.file, out.row, out.detail}
		}
		u.Passed = append(u.Passed, out.issue())
		if len(u.Passed) == tries {
			return Unit{}, fmt.Errorf("%d rows were tried and none can be trained on, the last: %s", tries, out.issue())
		}
	}
}

// fingerprint is of all that the units are made from: the files, which of their rows, and how
// they are encoded.
func (l *Lazy) fingerprint() (string, error) {
	opt := l.opt
	how := struct {
		Template         Template
		LastRound        bool
		MaxLength, Vocab int
		Truncation       Truncation
		Strict           bool
		Columns          map[string]string
		Chinese, Other   string
		Seed             uint64
		Files            []string
		Added            []wording
	}{l.chat.Template, l.chat.LastRound, opt.MaxLength, opt.Vocab, opt.Truncation, opt.Strict, opt.Columns,
		opt.Names.sample(true), opt.Names.sample(false), l.seed, nil, nil}
	for _, d := range l.sets {
		for i, t := range d.tables {
			how.Files, how.Added = append(how.Files, t.digest()), append(how.Added, d.files[i].add)
		}
	}
	hash := sha256.New()
	if err := json.NewEncoder(hash).Encode(how); err != nil {
		return "", err
	}
	block := make([]byte, 8)
	for _, r := range l.rows {
		binary.LittleEndian.PutUint32(block, uint32(r.set))
		binary.LittleEndian.PutUint32(block[4:], uint32(r.row))
		hash.Write(block)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
