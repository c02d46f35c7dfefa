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

// Pre-tokenizers by GGUF's names.
const (
	preQwen2  = "qwen2"
	preSmolLM = "smollm"
	preGPT2   = "gpt-2"
)

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
	p := parts{pre: v.Pre, bos: v.BOS, eos: v.EOS, pad: v.Pad}
	switch v.Pre {
	case preQwen2:
		p.next, p.nfc = qwen2, true
	case preSmolLM:
		p.next = smollm
	case preGPT2:
		p.next = gpt2
	default:
		return nil, fmt.Errorf("tokenizer.ggml.pre: %q is not supported (qwen2, smollm and gpt-2 are)", v.Pre)
	}
	if len(v.Types) != len(v.Tokens) {
		return nil, fmt.Errorf("tokenizer.ggml.token_type: %d types for %d tokens", len(v.Types), len(v.Tokens))
	}
	p.vocab = make(map[string]int32, len(v.Tokens))
	for i, tok := range v.Tokens {
		switch typ := v.Types[i]; typ {
		case typeNormal:
			if old, ok := p.vocab[tok]; ok {
				return nil, fmt.Errorf("tokenizer.ggml.tokens: ids %d and %d are the same token %q", old, i, tok)
			}
			p.vocab[tok] = int32(i)
		case typeControl, typeUserDefined:
			p.added = append(p.added, addedToken{tok, int32(i), typ == typeControl})
		case typeUnused:
		default:
			return nil, fmt.Errorf("tokenizer.ggml.token_type[%d]: type %d is not one of byte-level BPE (normal 1, control 3, user-defined 4, unused 5)", i, typ)
		}
	}
	p.merges = make([][2]string, len(v.Merges))
	for i, m := range v.Merges {
		left, right, ok := strings.Cut(m, " ")
		if !ok {
			return nil, fmt.Errorf("tokenizer.ggml.merges[%d]: %q is not a pair of tokens", i, m)
		}
		p.merges[i] = [2]string{left, right}
	}
	return p.build()
}

// parts is what both sources of a tokenizer are brought to. Tokens are in
// printable form, but for those added.
type parts struct {
	pre    string // GGUF's name of what next and nfc do, "" where it has none
	next   splitter
	nfc    bool
	vocab  map[string]int32
	merges [][2]string // by rank
	added  []addedToken

	bos, eos, pad int32
}

// maxUnused bounds the ids without a token: published models leave few, and each takes memory.
const maxUnused = 1 << 13

// tokens returns the bytes of each token of the vocabulary by id.
func (p *parts) tokens() ([]string, error) {
	top, n := None, len(p.vocab)+len(p.added)
	for tok, id := range p.vocab {
		if id < 0 || int(id) >= n+maxUnused {
			return nil, fmt.Errorf("token %q has id %d of %d tokens", tok, id, n)
		}
		top = max(top, id)
	}
	for _, a := range p.added {
		if a.id < 0 || int(a.id) >= n+maxUnused {
			return nil, fmt.Errorf("added token %q has id %d of %d tokens", a.content, a.id, n)
		}
		top = max(top, a.id)
	}
	tokens := make([]string, top+1)
	for tok, id := range p.vocab {
		raw, err := fromPrintable(tok)
		switch {
		case err != nil:
			return nil, fmt.Errorf("id %d: %w", id, err)
		case raw == "":
			return nil, fmt.Errorf("the token of id %d is empty", id)
		case tokens[id] != "":
			return nil, fmt.Errorf("id %d is both %q and %q", id, tokens[id], raw)
		}
		tokens[id] = raw
	}
	return tokens, nil
}

// rules resolves the merges to ids.
func (p *parts) rules() ([]merge, error) {
	rules := make([]merge, len(p.merges))
	var joined []byte
	for rank, m := range p.merges {
		joined = append(append(joined[:0], m[0]...), m[1]...)
		left, okLeft := p.vocab[m[0]]
		right, okRight := p.vocab[m[1]]
		made, okMade := p.vocab[string(joined)]
		if !okLeft || !okRight || !okMade {
			return nil, fmt.Errorf("merge %d (%q, %q): the vocabulary lacks a part or the result", rank, m[0], m[1])
		}
		rules[rank] = merge{left, right, made}
	}
	return rules, nil
}

func (p *parts) build() (*Tokenizer, error) {
	tokens, err := p.tokens()
	if err != nil {
		return nil, err
	}
	rules, err := p.rules()
	if err != nil {
		return nil, err
	}
	bpe, err := newBPE(tokens, rules)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{
		normalize: func(s string) string { return s },
		next:      p.next,
		bpe:       bpe,
		tokens:    tokens,
		special:   make([]bool, len(tokens)),
		vocab:     p.vocab,
		parts:     p,
		ids:       make(map[string]int32, len(p.added)),
		bos:       p.bos,
		eos:       p.eos,
		pad:       p.pad,
	}
	if p.nfc {
		t.normalize = nfc
	}
	for _, a := range p.added {
		_, twice := t.ids[a.content]
		same, plain := p.vocab[toPrintable(a.content)]
		switch {
		case a.content == "" || !utf8.ValidString(a.content):
			return nil, fmt.Errorf("added token %q (id %d) is not text", a.content, a.id)
		case twice:
			return nil, fmt.Errorf("added token %q occurs twice", a.content)
		case tokens[a.id] != "" && tokens[a.id] != a.content:
			return nil, fmt.Errorf("added token %q has id %d, which is %q already", a.content, a.id, tokens[a.id])
		case plain && same != a.id:
			return nil, fmt.Errorf("added token %q has id %d, but is id %d of the vocabulary", a.content, a.id, same)
		case a.special && slices.Contains(bpe.id, a.id):
			return nil, fmt.Errorf("special token %q (id %d) is the result of a merge, so that text could form it", a.content, a.id)
		}
		t.ids[a.content] = a.id
		tokens[a.id] = a.content
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
