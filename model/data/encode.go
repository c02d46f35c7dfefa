package data

import (
	"errors"
	"fmt"
)

// fate is what became of a row.
type fate uint8

const (
	whole     fate = iota
	truncated      // kept, shortened
	invalid        // dropped: not a conversation, or one the template cannot write
	tooLong        // dropped by truncation strategy delete
	noLabel        // dropped: nothing in it is trained on
)

func (f fate) kept() bool { return f <= truncated }

// outcome is a row, encoded or not.
type outcome struct {
	file   string
	row    int
	sample Sample
	fate   fate
	detail string // of every fate but whole
	marked bool   // the row had a place for a name
	err    error  // a *FileError: the rest of the dataset cannot be trusted
}

// encoder turns rows into samples. It may be used from several goroutines.
type encoder struct {
	chat *Chat
	opt  Options
}

// encode reads row i of a dataset.
func (e encoder) encode(d *dataset, i int) outcome {
	ex, err := d.example(i, e.opt)
	out := outcome{file: ex.File, row: ex.Row, marked: ex.Marked}
	if err != nil && !isRowError(err) {
		out.err = err
		return out
	}
	if err == nil {
		out.sample, err = e.chat.sample(ex, e.opt.Vocab)
	}
	if err != nil {
		out.fate, out.detail = invalid, rowMessage(err)
		return out
	}
	out.fit(e.opt)
	return out
}

// rowMessage is what is wrong with a row, without its place.
func rowMessage(err error) string {
	var fault *RowError
	var file *FileError
	switch {
	case errors.As(err, &fault):
		return fault.Msg
	case errors.As(err, &file):
		return file.Err.Error()
	}
	return err.Error()
}

// Sample turns an example into ids and labels, however long. The error is a *RowError.
func (c *Chat) Sample(ex Example) (Sample, error) { return c.sample(ex, 0) }

func (c *Chat) sample(ex Example, vocab int) (Sample, error) {
	s := Sample{IDs: ex.IDs, Labels: ex.Labels, File: ex.File, Row: ex.Row}
	if ex.IDs == nil {
		var err error
		if s.IDs, s.Labels, err = c.Encode(ex.Conversation); err != nil {
			return s, &RowError{ex.File, ex.Row, err.Error()}
		}
		return s, nil
	}
	for i := range s.IDs {
		if vocab > 0 && int(max(s.IDs[i], s.Labels[i])) >= vocab {
			return s, &RowError{ex.File, ex.Row, fmt.Sprintf("the token at position %d is not below the vocabulary's %d", i, vocab)}
		}
	}
	s.Labels[0] = Ignore // nothing predicts the first token
	return s, nil
}

// fit shortens the sample to the limit, or says why it cannot be kept.
func (o *outcome) fit(opt Options) {
	s := &o.sample
	n := len(s.IDs)
	cut := opt.MaxLength > 0 && n > opt.MaxLength
	if cut {
		switch opt.Truncation {
		case Left:
			s.IDs, s.Labels = s.IDs[n-opt.MaxLength:], s.Labels[n-opt.MaxLength:]
			s.Labels[0] = Ignore
		case Right:
			s.IDs, s.Labels = s.IDs[:opt.MaxLength], s.Labels[:opt.MaxLength]
		default:
			o.fate, o.detail = tooLong, fmt.Sprintf("%d tokens, the limit is %d", n, opt.MaxLength)
			return
		}
	}
	switch labels := LabelTokens([]Sample{*s}); {
	case labels == 0 && cut:
		o.fate, o.detail = noLabel, fmt.Sprintf("no token to train on in the %d of %d tokens that fit", opt.MaxLength, n)
	case labels == 0:
		o.fate, o.detail = noLabel, "no token to train on"
	case cut:
		o.fate, o.detail = truncated, fmt.Sprintf("%d tokens cut to %d", n, opt.MaxLength)
	}
}
