package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Vocab is a byte-level BPE vocabulary as GGUF metadata holds it
// (tokenizer.ggml.model = "gpt2").
type Vocab struct {
	Pre    string   // tokenizer.ggml.pre: "qwen2", "smollm" or "gpt-2"
	Tokens []string // id -> token, bytes in printable form
	Types  []int32  // id -> token type; as long as Tokens
	Merges []string // rank -> "left right"

	BOS, EOS, Pad int32 // None where there is none
}

// Token types of GGUF.
const (
	typeNormal      = 1
	typeControl     = 3
	typeUserDefined = 4
	typeUnused      = 5
)

// FromVocab builds a tokenizer from GGUF metadata. Control tokens are special,
// user-defined ones are added tokens that text may form, unused ids have no
// token. The error names the key and index of what is wrong or not supported.
func FromVocab(v Vocab) (*Tokenizer, error) {
	p := parts{bos: v.BOS, eos: v.EOS, pad: v.Pad}
	switch v.Pre {
	case "qwen2":
		p.next, p.nfc = qwen2, true
	case "smollm":
		p.next = smollm
	case "gpt-2":
		p.next = gpt2
	default:
		return nil, fmt.Errorf("tokenizer.ggml.pre: %q is not supported (qwen2, smollm and gpt-2 are)", v.Pre)
	}
	if len(v.Types) != len(v.Tokens) {
		return nil, fmt.Errorf("tokenizer.ggml.token_type: %d types for %d tokens", len(v.Types), len(v.Tokens))
	}
	p.tokens = make([]string, len(v.Tokens))
	for i, tok := range v.Tokens {
		switch typ := v.Types[i]; typ {
		case typeNormal:
			raw, err := fromPrintable(tok)
			if err != nil {
				return nil, fmt.Errorf("tokenizer.ggml.tokens[%d]: %w", i, err)
			}
			p.tokens[i] = raw
		case typeControl, typeUserDefined:
			p.added = append(p.added, addedToken{tok, int32(i), typ == typeControl})
		case typeUnused:
		default:
			return nil, fmt.Errorf("tokenizer.ggml.token_type[%d]: type %d is not one of byte-level BPE (normal 1, control 3, user-defined 4, unused 5)", i, typ)
		}
	}
	p.merges = make([][2]string, len(v.Merges))
	for i, m := range v.Merges {
		left, right, _ := strings.Cut(m, " ") // setMerge refuses an empty part
		if err := p.setMerge(i, left, right); err != nil {
			return nil, fmt.Errorf("tokenizer.ggml.merges[%d]: %w", i, err)
		}
	}
	return p.build()
}

// parts is what both sources of a tokenizer are brought to.
type parts struct {
	next   splitter
	nfc    bool
	tokens []string // id -> bytes of a token of the vocabulary, "" elsewhere
	merges [][2]string
	added  []addedToken

	bos, eos, pad int32
}

// setMerge stores a rule given in printable form.
func (p *parts) setMerge(rank int, left, right string) error {
	if left == "" || right == "" {
		return fmt.Errorf("%q %q is not a pair of tokens", left, right)
	}
	for i, s := range [2]string{left, right} {
		raw, err := fromPrintable(s)
		if err != nil {
			return err
		}
		p.merges[rank][i] = raw
	}
	return nil
}

func (p *parts) build() (*Tokenizer, error) {
	bpe, err := newBPE(p.tokens, p.merges)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{
		normalize: func(s string) string { return s },
		next:      p.next,
		bpe:       bpe,
		tokens:    p.tokens,
		ids:       make(map[string]int32, len(p.added)),
		bos:       p.bos,
		eos:       p.eos,
		pad:       p.pad,
	}
	if p.nfc {
		t.normalize = nfc
	}
	t.special = make([]bool, len(p.tokens))
	for _, a := range p.added {
		_, twice := t.ids[a.content]
		switch {
		case a.content == "" || !utf8.ValidString(a.content):
			return nil, fmt.Errorf("added token %q (id %d) is not text", a.content, a.id)
		case twice:
			return nil, fmt.Errorf("added token %q occurs twice", a.content)
		case p.tokens[a.id] != "" && p.tokens[a.id] != a.content:
			return nil, fmt.Errorf("added token %q has id %d, which is %q already", a.content, a.id, p.tokens[a.id])
		case a.special && slices.Contains(bpe.result, a.id):
			return nil, fmt.Errorf("special token %q (id %d) is the result of a merge, so that text could form it", a.content, a.id)
		}
		t.ids[a.content] = a.id
		t.tokens[a.id] = a.content
		t.special[a.id] = a.special
	}
	t.added = newMatcher(p.added)
	for len(t.tokens) > 0 && t.tokens[len(t.tokens)-1] == "" {
		t.tokens = t.tokens[:len(t.tokens)-1]
	}
	for _, named := range []struct {
		name string
		id   int32
	}{{"bos", t.bos}, {"eos", t.eos}, {"pad", t.pad}} {
		if _, ok := t.Token(named.id); !ok && named.id != None {
			return nil, fmt.Errorf("the %s token has id %d, for which there is no token", named.name, named.id)
		}
	}
	return t, nil
}
