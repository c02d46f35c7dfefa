package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/internal/golden"
)

// tiny is a tokenizer.json of three letters; the tests replace parts of it.
const tiny = `{"version": "1.0", "truncation": null, "padding": null,
"added_tokens": [
  {"id": 5, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
  {"id": 6, "content": "<call>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}],
"normalizer": {"type": "NFC"},
"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
"post_processor": null,
"decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
  "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4}, "merges": ["a b", "Ġ ab"]}}`

const tinyConfig = `{"bos_token": null, "eos_token": "<end>", "pad_token": {"content": "<call>", "lstrip": false}, "model_max_length": 8}`

func TestLoad(t *testing.T) {
	pairs := strings.Replace(tiny, `["a b", "Ġ ab"]`, `[["a", "b"], ["Ġ", "ab"]]`, 1)
	for _, model := range []string{
		tiny, pairs,
		strings.Replace(tiny, `"add_prefix_space": true`, `"add_prefix_space": false`, 1),
	} {
		tok, err := Load([]byte(model), []byte(tinyConfig))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := tok.Encode("ab ab<call>b<end>zé"), []int32{3, 4, 6, 1}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if got, want := tok.EncodeSpecial("ab<end>"), []int32{3, 5}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if tok.BOS() != None || tok.EOS() != 5 || tok.Pad() != 6 || tok.VocabSize() != 7 {
			t.Errorf("bos, eos, pad, size = %d, %d, %d, %d", tok.BOS(), tok.EOS(), tok.Pad(), tok.VocabSize())
		}
		if id, ok := tok.ID(" ab"); !ok || id != 4 {
			t.Errorf("ID = %d, %v", id, ok)
		}
		if id, ok := tok.ID("ba"); ok {
			t.Errorf("ID of no token = %d", id)
		}
		for id, want := range map[int32]string{4: " ab", 5: "<end>", 7: "", -1: ""} {
			if s, ok := tok.Token(id); s != want || ok != (want != "") {
				t.Errorf("Token(%d) = %q, %v", id, s, ok)
			}
		}
		if !tok.IsSpecial(5) || tok.IsSpecial(6) || tok.IsSpecial(-1) || tok.IsSpecial(99) {
			t.Error("IsSpecial")
		}
		if n := len(tok.MissingBytes()); n != 253 {
			t.Errorf("%d bytes missing", n)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{`"1.0"`, `"2.0"`, `version "2.0"`},
		{`"truncation": null`, `"truncation": {"max_length": 8}`, "truncation"},
		{`"padding": null`, `"padding": {}`, "padding"},
		{`"version"`, `"surprise": 1, "version"`, `"surprise"`},
		{`{"type": "NFC"}`, `{"type": "NFKC"}`, `normalizer {"type": "NFKC"}`},
		{`{"type": "NFC"}`, `{"type": "Sequence", "normalizers": [{"type": "NFC"}]}`, "normalizer"},
		{`"add_prefix_space": false`, `"add_prefix_space": true`, "pre_tokenizer"},
		{`"use_regex": true`, `"use_regex": false`, "pre_tokenizer"},
		{`"post_processor": null`, `"post_processor": {"type": "TemplateProcessing", "single": []}`, "post_processor"},
		{`"decoder": {"type": "ByteLevel"`, `"decoder": {"type": "WordPiece"`, "decoder"},
		{`"type": "BPE"`, `"type": "Unigram"`, `model.type "Unigram"`},
		{`"dropout": null`, `"dropout": 0.1`, "model.dropout"},
		{`"unk_token": null`, `"unk_token": "a"`, "model.unk_token"},
		{`"continuing_subword_prefix": null`, `"continuing_subword_prefix": "##"`, "continuing_subword_prefix"},
		{`"end_of_word_suffix": null`, `"end_of_word_suffix": "</w>"`, "end_of_word_suffix"},
		{`"byte_fallback": false`, `"byte_fallback": true`, "byte_fallback"},
		{`"ignore_merges": false`, `"ignore_merges": true`, "ignore_merges"},
		{`"lstrip": false`, `"lstrip": true`, `"<end>"`},
		{`"normalized": false`, `"normalized": true`, `"<end>"`},
		{`"<call>"`, `"<end>"`, "occurs twice"},
		{`"<call>"`, `""`, "not text"},
		{`"id": 6`, `"id": 4`, `id 4`},
		{`"id": 6`, `"id": -6`, `id -6`},
		{`"id": 6`, `"id": 2000000000`, `id 2000000000`},
		{`"<end>", "single`, `"ab", "single`, `id 5`},
		{`"id": 5, "content": "<end>"`, `"id": 3, "content": "ab"`, "text could form it"},
		{`"b": 1`, `"b": 0`, "id 0"},
		{`"b": 1`, `"b": -1`, "id -1"},
		{`"b": 1`, `"b": 1, "": 7`, "empty"},
		{`"b": 1`, `"b": 1, "你": 7`, `"你"`},
		{`"a b"`, `"a c"`, "merge 0"},
		{`"a b"`, `"b a"`, "merge 0"},
		{`"a b"`, `"ab"`, "[0]"},
		{`"a b"`, `"a b ab"`, "[0]"},
		{`"a b", "Ġ ab"`, `"Ġ ab", "a b"`, "no merge before it"},
		{`"a b", `, `"a b", "a b", `, "another merge"},
		{`["a b", "Ġ ab"]`, `[["a", "b", "c"]]`, "model.merges: byte 1: a list of 3 where 2 belong"},
		{`["a b", "Ġ ab"]`, `{"a": "b"}`, "model.merges"},
		{`"vocab"`, `"vocab`, "invalid character"},
	} {
		model := strings.Replace(tiny, c.old, c.new, 1)
		if model == tiny {
			t.Fatalf("%s is not in the file", c.old)
		}
		_, err := Load([]byte(model), nil)
		if err == nil || !strings.HasPrefix(err.Error(), "tokenizer.json: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.new, err, c.want)
		}
	}
	for _, c := range []struct{ config, want string }{
		{`{"eos_token": "<stop>"}`, "<stop>"},
		{`{"eos_token": 7}`, "eos_token"},
		{`{"add_bos_token": true}`, "add_bos_token"},
		{`[`, "unexpected end"},
	} {
		_, err := Load([]byte(tiny), []byte(c.config))
		if err == nil || !strings.HasPrefix(err.Error(), "tokenizer_config.json: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.config, err, c.want)
		}
	}
}

func TestLoadDir(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadDir(dir); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "tokenizer.json")) {
		t.Errorf("an empty folder: error %v", err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("tokenizer.json", tiny)
	if tok, err := LoadDir(dir); err != nil || tok.EOS() != None {
		t.Errorf("without a configuration: %v", err)
	}
	write("tokenizer_config.json", tinyConfig)
	if tok, err := LoadDir(dir); err != nil || tok.EOS() != 5 {
		t.Errorf("with a configuration: %v", err)
	}
	write("tokenizer.json", "{")
	if _, err := LoadDir(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a broken file: error %v", err)
	}
}

// TestFromVocabQwen builds Qwen2.5 as a GGUF file holds it, pad rows and all.
func TestFromVocabQwen(t *testing.T) {
	p, err := parseModel(must(t, qwenJSON))
	if err != nil {
		t.Fatal(err)
	}
	v := Vocab{Pre: "qwen2", BOS: 151643, EOS: 151645, Pad: 151643, Tokens: make([]string, 151936), Types: make([]int32, 151936)}
	for i := range v.Types {
		v.Types[i] = typeUnused
	}
	for tok, id := range p.vocab {
		v.Tokens[id], v.Types[id] = tok, typeNormal
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
	tok, err := FromVocab(v)
	if err != nil {
		t.Fatal(err)
	}
	want := qwen(t)
	if tok.VocabSize() != want.VocabSize() || tok.EOS() != want.EOS() {
		t.Errorf("size %d, eos %d", tok.VocabSize(), tok.EOS())
	}
	for _, row := range readRows[encodeRow](t, golden.Path(t, "tokenizer", "encode.jsonl.gz"), 1) {
		if !slices.Equal(tok.Encode(row.Text), want.Encode(row.Text)) ||
			!slices.Equal(tok.EncodeSpecial(row.Text), want.EncodeSpecial(row.Text)) {
			t.Errorf("row %d: other ids than from tokenizer.json", row.I)
		}
	}
}

func TestFromVocabRefuses(t *testing.T) {
	for _, c := range []struct {
		change func(*Vocab)
		want   string
	}{
		{func(v *Vocab) { v.Pre = "llama-bpe" }, `"llama-bpe"`},
		{func(v *Vocab) { v.Types = v.Types[1:] }, "3 types for 4 tokens"},
		{func(v *Vocab) { v.Types[1] = 6 }, "token_type[1]"},
		{func(v *Vocab) { v.Tokens[1] = "a" }, "same token"},
		{func(v *Vocab) { v.Tokens[1] = "▁" }, `"▁"`},
		{func(v *Vocab) { v.Tokens[3] = "\xff" }, "not text"},
		{func(v *Vocab) { v.Merges[0] = "ab" }, "merges[0]"},
		{func(v *Vocab) { v.Merges[0] = "a c" }, "merge 0"},
		{func(v *Vocab) { v.EOS = 4 }, "eos"},
		{func(v *Vocab) { v.Pad = -2 }, "pad"},
	} {
		v := Vocab{Pre: "smollm", Tokens: []string{"a", "b", "ab", "<end>"}, Types: []int32{1, 1, 1, 3},
			Merges: []string{"a b"}, BOS: None, EOS: 3, Pad: None}
		if _, err := FromVocab(v); err != nil {
			t.Fatal(err)
		}
		c.change(&v)
		if _, err := FromVocab(v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}
