// Package tokenizer is the byte-level BPE of Qwen2.5 and SmolLM2: text to token
// ids and back, id for id as the tokenizers library computes them.
//
// Encoding is a pipeline. Text is cut at added tokens such as <tool_call>, what
// lies between them is normalised (NFC, where the model asks for it), split into
// pieces by the model's pattern, and each piece of UTF-8 bytes is merged pair by
// pair, lowest rank first (Sennrich et al. 2016, over bytes as in GPT-2).
//
// Special tokens (<|im_start|> and its like) are never formed from text by
// Encode, so user text cannot forge a control token; a template asks for their
// ids by name with ID. Every step takes time about linear in the text, whatever
// the text is.
//
// A Tokenizer is built by Load (tokenizer.json) or FromVocab (GGUF metadata), is
// immutable, and may be used by any number of goroutines. Invalid UTF-8 is
// encoded byte by byte and never rejected.
package tokenizer

// None is the id of a token that the tokenizer does not have.
const None int32 = -1

// Tokenizer maps text to token ids and back.
type Tokenizer struct {
	normalize func(string) string
	next      splitter
	bpe       *bpe
	added     matcher

	tokens  []string         // id -> the bytes it stands for; "" where the id is unused
	special []bool           // id -> a control token
	vocab   map[string]int32 // token of the vocabulary, in printable form -> id
	ids     map[string]int32 // content of an added token -> id
	parts   *parts           // what it was built from

	bos, eos, pad int32
}

// Encode returns the token ids of text as plain text: added tokens that are not
// special (<tool_call>, <|fim_prefix|>) are recognised, special ones are not.
func (t *Tokenizer) Encode(text string) []int32 {
	return t.AppendEncode(nil, text)
}

// AppendEncode appends the ids of Encode(text) to dst.
func (t *Tokenizer) AppendEncode(dst []int32, text string) []int32 {
	return t.encode(dst, text, false)
}

// EncodeSpecial is Encode with special tokens recognised too. It is for text the
// program itself wrote: in user text it would let anybody end a turn.
func (t *Tokenizer) EncodeSpecial(text string) []int32 {
	return t.encode(nil, text, true)
}

func (t *Tokenizer) encode(dst []int32, text string, special bool) []int32 {
	plain, from := 0, 0 // start of the text not encoded yet, of the text not searched yet
	for {
		start, tok := t.added.find(text, from)
		if tok == nil {
			return t.encodePlain(dst, text[plain:])
		}
		from = start + len(tok.content)
		if tok.special && !special {
			continue
		}
		dst = t.encodePlain(dst, text[plain:start])
		dst = append(dst, tok.id)
		plain = from
	}
}

// encodePlain appends the ids of a text without added tokens.
func (t *Tokenizer) encodePlain(dst []int32, text string) []int32 {
	text = t.normalize(text)
	for i := 0; i < len(text); {
		j := t.next(text, i)
		dst = t.bpe.appendPiece(dst, text[i:j])
		i = j
	}
	return dst
}

// VocabSize returns one more than the highest id that has a token. A model may
// have more rows than that; the rest are padding and must never be sampled.
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// Token returns the bytes that id stands for, which need not be whole
// characters, and whether there is such a token.
func (t *Tokenizer) Token(id int32) (string, bool) {
	if id < 0 || int(id) >= len(t.tokens) {
		return "", false
	}
	return t.tokens[id], t.tokens[id] != ""
}

// ID returns the id of the token that stands for exactly these bytes, added
// tokens (by their content) before the others, and whether there is one.
func (t *Tokenizer) ID(token string) (int32, bool) {
	if id, ok := t.ids[token]; ok {
		return id, true
	}
	id, ok := t.vocab[toPrintable(token)]
	return id, ok
}

// IsSpecial reports whether id is a control token, which no text encodes to.
func (t *Tokenizer) IsSpecial(id int32) bool {
	return id >= 0 && int(id) < len(t.special) && t.special[id]
}

// BOS returns the id that begins a sequence, or None.
func (t *Tokenizer) BOS() int32 { return t.bos }

// EOS returns the id that ends an answer, or None.
func (t *Tokenizer) EOS() int32 { return t.eos }

// Pad returns the id that fills short rows, or None.
func (t *Tokenizer) Pad() int32 { return t.pad }

// MissingBytes returns the bytes for which the vocabulary has no token, in order.
// Encode drops them, as the tokenizers library does. Qwen2.5 lacks none; SmolLM2
// lacks a few control characters and the lead bytes of unused Unicode planes.
func (t *Tokenizer) MissingBytes() []byte {
	var missing []byte
	for b, id := range t.bpe.id[:numBytes] {
		if id == None {
			missing = append(missing, byte(b))
		}
	}
	return missing
}
