package data

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Truncation says what becomes of a row longer than the limit.
type Truncation string

const (
	Delete Truncation = "delete" // the row is dropped
	Left   Truncation = "left"   // its first tokens are cut off
	Right  Truncation = "right"  // its last tokens are cut off
)

// Options say how rows become samples.
type Options struct {
	MaxLength  int        // tokens of a sample; 0: no limit
	Truncation Truncation // "": Delete
	Strict     bool       // a row that cannot be used is an error, not a line of the report
	Vocab      int        // ids of pre-tokenised rows must be below it; 0: not checked
	ReportMax  int        // rows the report names for each reason; 0: 20

	Edit func(*Conversation) // changes a conversation before it is encoded; may be nil
}

// Load reads datasets, in their order, into samples. The report counts the rows left out or
// shortened; it is complete also when the error is that no row is left.
func Load(datasets []string, chat *Chat, opt Options) ([]Sample, *Report, error) {
	switch opt.Truncation {
	case "", Delete, Left, Right:
	default:
		return nil, nil, fmt.Errorf("unknown truncation strategy %q: choose delete, left or right", opt.Truncation)
	}
	if opt.ReportMax == 0 {
		opt.ReportMax = 20
	}
	report := &Report{max: opt.ReportMax}
	var samples []Sample
	for _, dataset := range datasets {
		for ex, err := range Rows(dataset) {
			var fault *RowError
			if err != nil && !errors.As(err, &fault) {
				return nil, report, err
			}
			report.Rows++
			var s Sample
			if err == nil {
				s, err = chat.sample(ex, opt)
			}
			if errors.As(err, &fault) {
				if opt.Strict {
					return nil, report, err
				}
				report.add(&report.Invalid, ex, fault.Msg)
				continue
			}
			if report.fit(&s, ex, opt) {
				samples = append(samples, s)
			}
		}
	}
	report.Kept = len(samples)
	if len(samples) == 0 {
		return nil, report, report.nothingLeft(datasets)
	}
	return samples, report, nil
}

// sample turns an example into ids and labels. The error is a *RowError.
func (c *Chat) sample(ex Example, opt Options) (Sample, error) {
	s := Sample{IDs: ex.IDs, Labels: ex.Labels, File: ex.File, Row: ex.Row}
	if ex.IDs == nil {
		if opt.Edit != nil {
			opt.Edit(&ex.Conversation)
		}
		var err error
		if s.IDs, s.Labels, err = c.Encode(ex.Conversation); err != nil {
			return s, &RowError{ex.File, ex.Row, err.Error()}
		}
		return s, nil
	}
	for i := range s.IDs {
		if opt.Vocab > 0 && int(max(s.IDs[i], s.Labels[i])) >= opt.Vocab {
			return s, &RowError{ex.File, ex.Row, fmt.Sprintf("the token at position %d is not below the vocabulary's %d", i, opt.Vocab)}
		}
	}
	s.Labels[0] = Ignore // nothing predicts the first token
	return s, nil
}

// fit shortens s to the limit and reports whether it is to be kept.
func (r *Report) fit(s *Sample, ex Example, opt Options) bool {
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
			r.add(&r.TooLong, ex, fmt.Sprintf("%d tokens, the limit is %d", n, opt.MaxLength))
			return false
		}
	}
	if LabelTokens([]Sample{*s}) == 0 {
		why := "no token to train on"
		if cut {
			why = fmt.Sprintf("no token to train on in the %d of %d tokens that fit", opt.MaxLength, n)
		}
		r.add(&r.NoLabel, ex, why)
		return false
	}
	if cut {
		r.add(&r.Truncated, ex, fmt.Sprintf("%d tokens cut to %d", n, opt.MaxLength))
	}
	return true
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
