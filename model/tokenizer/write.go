package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
)

// Vocab is the tokenizer as GGUF metadata holds it, so that FromVocab gives the same tokenizer. An id between others
// that has no token is an unused one.
func (t *Tokenizer) Vocab() (Vocab, error) {
	p := t.parts
	if p.pre == "" {
		return Vocab{}, fmt.Errorf("GGUF has no name for this tokenizer's normalizer and pre_tokenizer together")
	}
	v := Vocab{Pre: p.pre, BOS: t.bos, EOS: t.eos, Pad: t.pad, Tokens: make([]string, len(t.tokens)), Types: make([]int32, len(t.tokens))}
	for i := range v.Tokens {
		v.Tokens[i], v.Types[i] = fmt.Sprintf("[PAD%d]", i), typeUnused
	}
	for token, id := range p.vocab {
		v.Tokens[id], v.Types[id] = token, typeNormal
	}
	for _, a := range p.added {
		v.Tokens[a.id], v.Types[a.id] = a.content, typeUserDefined
		if a.special {
			v.Types[a.id] = typeControl
		}
	}
	for _, m := range p.merges {
		v.Merges = append(v.Merges, m[0]+" "+m[1])
	}
	return v, nil
}

// PadTo makes n tokens of a vocabulary, with unused ones at the end, as GGUF wants one for every row of the embedding.
func (v Vocab) PadTo(n int) Vocab {
	tokens, types := append([]string(nil), v.Tokens...), append([]int32(nil), v.Types...)
	for i := len(tokens); i < n; i++ {
		tokens, types = append(tokens, fmt.Sprintf("[PAD%d]", i)), append(types, typeUnused)
	}
	v.Tokens, v.Types = tokens, types
	return v
}

// byteLevel is the component ByteLevel.
func byteLevel(trim, regex bool) map[string]any {
	return map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim, "use_regex": regex}
}

// MarshalJSON writes the tokenizer as a tokenizer.json of the tokenizers library.
func (t *Tokenizer) MarshalJSON() ([]byte, error) {
	p := t.parts
	var normalizer any
	var pre map[string]any
	if p.nfc {
		normalizer = map[string]any{"type": "NFC"}
	}
	switch p.pre {
	case preQwen2:
		pre = map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Split", "pattern": map[string]any{"Regex": qwen2Pattern}, "behavior": "Isolated", "invert": false},
			byteLevel(false, false)}}
	case preSmolLM:
		pre = map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Digits", "individual_digits": true}, byteLevel(true, true)}}
	case preGPT2:
		pre = byteLevel(true, true)
	default:
		return nil, fmt.Errorf("this tokenizer came from a tokenizer.json: copy that")
	}
	added := make([]addedEntry, 0, len(p.added))
	for _, a := range p.added {
		added = append(added, addedEntry{ID: a.id, Content: a.content, Special: a.special})
	}
	vocab := p.vocab
	if !p.addedBehind() { // the library numbers added tokens behind the vocabulary, unless they are in it
		vocab = maps.Clone(vocab)
		for _, a := range p.added {
			if toPrintable(a.content) != a.content {
				return nil, fmt.Errorf("the added token %q has a place in the vocabulary that a tokenizer.json cannot say", a.content)
			}
			vocab[a.content] = a.id
		}
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(map[string]any{
		"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added, "normalizer": normalizer,
		"pre_tokenizer": pre, "post_processor": byteLevel(false, true), "decoder": byteLevel(true, true),
		"model": map[string]any{"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": "", "end_of_word_suffix": "",
			"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": p.merges},
	})
	return out.Bytes(), err
}

// addedBehind reports whether the added tokens have the ids that follow those of the vocabulary, in their order.
func (p *parts) addedBehind() bool {
	next := int32(0)
	for _, id := range p.vocab {
		next = max(next, id+1)
	}
	for _, a := range p.added {
		if a.id != next {
			return false
		}
		next++
	}
	return int(next) == len(p.vocab)+len(p.added)
}
