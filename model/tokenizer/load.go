package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"qlora/internal/strictjson"
)

// LoadDir reads tokenizer.json and, if it is there, tokenizer_config.json of a
// model folder. See Load.
func LoadDir(dir string) (*Tokenizer, error) {
	path := filepath.Join(dir, "tokenizer.json")
	model, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config, err := os.ReadFile(filepath.Join(dir, "tokenizer_config.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t, err := Load(model, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return t, nil
}

// Load builds a tokenizer from the text of tokenizer.json (the tokenizers
// library's format) and of tokenizer_config.json, which names the bos, eos and
// pad tokens; config may be nil, and then there are none.
//
// What the package does not do exactly as the library is an error that names the
// field, so that a model is never fed other ids than it was trained on.
func Load(model, config []byte) (*Tokenizer, error) {
	p, err := parseModel(model)
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	if p.bos, p.eos, p.pad, err = parseConfig(config, p.find); err != nil {
		return nil, fmt.Errorf("tokenizer_config.json: %w", err)
	}
	t, err := p.build()
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	return t, nil
}

type modelFile struct {
	Version       string          `json:"version"`
	Truncation    any             `json:"truncation"`
	Padding       any             `json:"padding"`
	AddedTokens   json.RawMessage `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         bpeModel        `json:"model"`
}

type addedEntry struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// component has the fields of the normalizers, pre-tokenizers, post-processors
// and decoders that are supported.
type component struct {
	Type          string            `json:"type"`
	Pretokenizers []json.RawMessage `json:"pretokenizers"`
	Pattern       struct {
		Regex string
	} `json:"pattern"`
	Behavior         string `json:"behavior"`
	Invert           bool   `json:"invert"`
	AddPrefixSpace   *bool  `json:"add_prefix_space"`
	TrimOffsets      *bool  `json:"trim_offsets"` // offsets are not computed here
	UseRegex         *bool  `json:"use_regex"`
	IndividualDigits bool   `json:"individual_digits"`
}

type bpeModel struct {
	Type                    string          `json:"type"`
	Dropout                 *float64        `json:"dropout"`
	UnkToken                *string         `json:"unk_token"`
	ContinuingSubwordPrefix string          `json:"continuing_subword_prefix"`
	EndOfWordSuffix         string          `json:"end_of_word_suffix"`
	FuseUnk                 bool            `json:"fuse_unk"` // of no effect without unk_token
	ByteFallback            bool            `json:"byte_fallback"`
	IgnoreMerges            bool            `json:"ignore_merges"`
	Vocab                   json.RawMessage `json:"vocab"`
	Merges                  json.RawMessage `json:"merges"`
}

func parseModel(data []byte) (*parts, error) {
	var f modelFile
	if err := strict(data, &f); err != nil {
		return nil, err
	}
	p, m := new(parts), &f.Model
	if err := p.setPipeline(&f); err != nil {
		return nil, err
	}
	switch {
	case m.Type != "BPE":
		return nil, fmt.Errorf("model.type %q is not supported (BPE is)", m.Type)
	case m.Dropout != nil && *m.Dropout != 0:
		return nil, fmt.Errorf("model.dropout %v is not supported", *m.Dropout)
	case m.UnkToken != nil:
		return nil, fmt.Errorf("model.unk_token %q is not supported: byte-level BPE has none", *m.UnkToken)
	case m.ContinuingSubwordPrefix != "":
		return nil, fmt.Errorf("model.continuing_subword_prefix %q is not supported", m.ContinuingSubwordPrefix)
	case m.EndOfWordSuffix != "":
		return nil, fmt.Errorf("model.end_of_word_suffix %q is not supported", m.EndOfWordSuffix)
	case m.ByteFallback:
		return nil, errors.New("model.byte_fallback is not supported")
	case m.IgnoreMerges:
		return nil, errors.New("model.ignore_merges is not supported")
	}
	if err := p.setAdded(f.AddedTokens); err != nil {
		return nil, err
	}
	if err := p.setVocab(m.Vocab); err != nil {
		return nil, fmt.Errorf("model.vocab: %w", err)
	}
	if err := p.setMerges(m.Merges); err != nil {
		return nil, fmt.Errorf("model.merges: %w", err)
	}
	return p, nil
}

// setPipeline takes what surrounds the model: it must be one of the pipelines
// that this package is.
func (p *parts) setPipeline(f *modelFile) error {
	switch {
	case f.Version != "1.0":
		return fmt.Errorf("version %q is not supported (1.0 is)", f.Version)
	case f.Truncation != nil:
		return errors.New("truncation is not supported: set it to null")
	case f.Padding != nil:
		return errors.New("padding is not supported: set it to null")
	}
	switch got := describe(f.Normalizer); got {
	case "none":
	case "NFC":
		p.nfc = true
	default:
		return fmt.Errorf("normalizer %s is not supported (NFC or none is)", got)
	}
	switch got := describe(f.PreTokenizer); got {
	case "Split(" + qwen2Pattern + "), ByteLevel":
		p.next = qwen2
		if p.nfc {
			p.pre = preQwen2
		}
	case "Digits, ByteLevel(gpt2)":
		p.next = smollm
		if !p.nfc {
			p.pre = preSmolLM
		}
	case "ByteLevel(gpt2)":
		p.next = gpt2
		if !p.nfc {
			p.pre = preGPT2
		}
	default:
		return fmt.Errorf("pre_tokenizer %s is not supported (those of Qwen2.5, SmolLM2 and GPT-2 are)", got)
	}
	// In these two the options of ByteLevel change nothing but offsets.
	if got := describe(f.PostProcessor); got != "none" && !strings.HasPrefix(got, "ByteLevel") {
		return fmt.Errorf("post_processor %s is not supported (ByteLevel or none is)", got)
	}
	if got := describe(f.Decoder); !strings.HasPrefix(got, "ByteLevel") {
		return fmt.Errorf("decoder %s is not supported (ByteLevel is)", got)
	}
	return nil
}

// describe writes a component in short: what it does if that is one of the
// things this package does, else its JSON.
func describe(data json.RawMessage) string {
	if len(data) == 0 || string(data) == "null" {
		return "none"
	}
	var c component
	if strict(data, &c) != nil {
		return string(data)
	}
	isTrue := func(b *bool) bool { return b == nil || *b } // the library's default
	switch {
	case c.Type == "NFC":
		return "NFC"
	case c.Type == "Sequence" && len(c.Pretokenizers) > 0:
		var list []string
		for _, sub := range c.Pretokenizers {
			list = append(list, describe(sub))
		}
		return strings.Join(list, ", ")
	case c.Type == "Split" && c.Behavior == "Isolated" && !c.Invert:
		return "Split(" + c.Pattern.Regex + ")"
	case c.Type == "Digits" && c.IndividualDigits:
		return "Digits"
	case c.Type == "ByteLevel" && isTrue(c.AddPrefixSpace):
		return "ByteLevel(add_prefix_space)"
	case c.Type == "ByteLevel" && isTrue(c.UseRegex):
		return "ByteLevel(gpt2)"
	case c.Type == "ByteLevel":
		return "ByteLevel"
	}
	return string(data)
}

// maxAdded bounds the added tokens; Qwen2.5 has 22.
const maxAdded = 1 << 13

// setAdded takes the added tokens.
func (p *parts) setAdded(list []byte) error {
	if len(list) > 0 && list[0] == '[' {
		if n := strictjson.Elements(list); n > maxAdded {
			return fmt.Errorf("added_tokens: %d of them, more than %d", n, maxAdded)
		}
	}
	var entries []addedEntry
	if list != nil {
		if err := strict(list, &entries); err != nil {
			return fmt.Errorf("added_tokens: %w", err)
		}
	}
	for _, a := range entries {
		if a.SingleWord || a.LStrip || a.RStrip || a.Normalized {
			return fmt.Errorf("added_tokens: token %q: single_word, lstrip, rstrip and normalized are not supported", a.Content)
		}
		p.added = append(p.added, addedToken{a.Content, a.ID, a.Special})
	}
	return nil
}

// setVocab takes the ids of the tokens.
func (p *parts) setVocab(data []byte) error {
	if len(data) == 0 {
		return errors.New("missing")
	}
	o, err := strictjson.Parse(data, len(data))
	if err != nil {
		return err
	}
	p.vocab = make(map[string]int32, o.Len())
	return json.Unmarshal(data, &p.vocab)
}

// setMerges takes the rules, which files write as "left right" or, since
// tokenizers 0.20, as ["left", "right"].
func (p *parts) setMerges(data []byte) error {
	if len(data) == 0 || data[0] != '[' {
		return errors.New(`missing, or no list of "left right" or ["left", "right"]`)
	}
	n := strictjson.Elements(data)
	if first := bytes.TrimLeft(data[1:], " \t\r\n"); first[0] == '[' {
		p.merges = make([][2]string, 0, n)
		return strictjson.Unmarshal(data, len(data), &p.merges)
	}
	lines := make([]string, 0, n)
	if err := strictjson.Unmarshal(data, len(data), &lines); err != nil {
		return err
	}
	p.merges = make([][2]string, n)
	for i, line := range lines {
		left, right, ok := strings.Cut(line, " ")
		if !ok || strings.Contains(right, " ") {
			return fmt.Errorf("[%d]: %.80q is not a pair of tokens", i, line)
		}
		p.merges[i] = [2]string{left, right}
	}
	return nil
}

// find returns the id of a token by its content, as tokenizer_config.json names it.
func (p *parts) find(content string) (int32, bool) {
	for _, a := range p.added {
		if a.content == content {
			return a.id, true
		}
	}
	return None, false
}

// parseConfig reads the named tokens of tokenizer_config.json, each a string or
// an object with a content. Its other fields belong to other programs.
func parseConfig(data []byte, find func(string) (int32, bool)) (bos, eos, pad int32, err error) {
	bos, eos, pad = None, None, None
	if data == nil {
		return bos, eos, pad, nil
	}
	var c struct {
		BOS      json.RawMessage `json:"bos_token"`
		EOS      json.RawMessage `json:"eos_token"`
		Pad      json.RawMessage `json:"pad_token"`
		AddBOS   bool            `json:"add_bos_token"`
		AddEOS   bool            `json:"add_eos_token"`
		AddSpace bool            `json:"add_prefix_space"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return bos, eos, pad, err
	}
	if c.AddBOS || c.AddEOS || c.AddSpace {
		return bos, eos, pad, errors.New("add_bos_token, add_eos_token and add_prefix_space are not supported")
	}
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		id   *int32
	}{{"bos_token", c.BOS, &bos}, {"eos_token", c.EOS, &eos}, {"pad_token", c.Pad, &pad}} {
		if f.raw == nil || string(f.raw) == "null" {
			continue
		}
		content := ""
		if json.Unmarshal(f.raw, &content) != nil {
			var object struct {
				Content string `json:"content"`
			}
			if err := json.Unmarshal(f.raw, &object); err != nil {
				return bos, eos, pad, fmt.Errorf("%s: %w", f.name, err)
			}
			content = object.Content
		}
		id, ok := find(content)
		if !ok {
			return bos, eos, pad, fmt.Errorf("%s %q is not among the added tokens of tokenizer.json", f.name, content)
		}
		*f.id = id
	}
	return bos, eos, pad, nil
}

// strict decodes JSON in which every field must be known.
func strict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}
