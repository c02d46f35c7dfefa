// Package data turns datasets into the rows a training step reads.
//
//	name ── Spec ──▶ files ── table ──▶ Example ── Chat.Encode ──▶ Sample
//	Source of Samples, Packed or Lazy ── Loader, by an Order ──▶ optimizer step ── Pack ──▶ Row
//
// A Spec names files, a folder or a repository in a hub's cache, and how many of its rows to take.
// A table is a file's rows by an index, to be read in any order. Their columns are recognised as
// ms-swift does; a Chat writes a conversation in its model's template and masks everything but
// the assistant's turns. Load reads samples into memory; LoadLazy finds them and reads them when
// a Loader, which is ahead of the training loop, asks for them. Pack lays the samples of one
// optimizer step end to end in as few rows as fit.
//
// Nothing is dropped silently: a Report counts every row that is left out or shortened, and says
// why, by file and row. Whatever is read by several goroutines is the same for any number of them.
package data

// Ignore is the label of a token that is not trained on, as in PyTorch's cross entropy.
const Ignore = -100

// Encoder is the part of a tokenizer that this package needs.
type Encoder interface {
	// AppendEncode appends the ids of text to dst. Text is plain: what looks like a
	// control token in it never becomes one.
	AppendEncode(dst []int32, text string) []int32

	// ID returns the id of a token of the vocabulary, control tokens included.
	ID(token string) (id int32, ok bool)
}

// Sample is one training sequence.
type Sample struct {
	IDs    []int32 // (T) token ids
	Labels []int32 // (T) the token's own id where it is trained on, else Ignore; Labels[0] is Ignore
	File   string  // dataset the row came from
	Row    int     // line of a jsonl file, element of a json array; 1-based
}

// LabelTokens counts the tokens that a step trains on: the denominator of its loss.
func LabelTokens(step []Sample) int {
	n := 0
	for _, s := range step {
		for i, label := range s.Labels {
			if i > 0 && label != Ignore { // nothing predicts the first token
				n++
			}
		}
	}
	return n
}
