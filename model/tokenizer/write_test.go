package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

// sameTokenizer compares two on texts of many kinds, and what they are besides.
func sameTokenizer(t *testing.T, got, want *Tokenizer) {
	t.Helper()
	for _, text := range []string{"Hello world", "你是谁? 我由 CSDN 开发", "x  \n\n\t 123 4567's I'LL", "<tool_call> <|im_start|>", "\x00\xff é e\u0301 \u00a0\u3000", strings.Repeat("ab ", 50)} {
		if a, b := got.EncodeSpecial(text), want.EncodeSpecial(text); !slices.Equal(a, b) {
			t.Errorf("%q: %v, want %v", text, a, b)
		}
		if a, b := got.Encode(text), want.Encode(text); !slices.Equal(a, b) || got.Decode(b) != want.Decode(b) {
			t.Errorf("%q: %v, want %v", text, a, b)
		}
	}
	if got.BOS() != want.BOS() || got.EOS() != want.EOS() || got.Pad() != want.Pad() || got.VocabSize() != want.VocabSize() {
		t.Errorf("bos %d, eos %d, pad %d, %d tokens; want %d, %d, %d, %d", got.BOS(), got.EOS(), got.Pad(), got.VocabSize(), want.BOS(), want.EOS(), want.Pad(), want.VocabSize())
	}
	for id := range int32(want.VocabSize()) {
		a, _ := got.Token(id)
		b, _ := want.Token(id)
		if a != b || got.IsSpecial(id) != want.IsSpecial(id) {
			t.Fatalf("id %d: %q (special %v), want %q (%v)", id, a, got.IsSpecial(id), b, want.IsSpecial(id))
		}
	}
}

// A tokenizer of a tokenizer.json goes into GGUF metadata, and one of GGUF metadata into a tokenizer.json, unchanged.
func TestTokenizerFormats(t *testing.T) {
	qwen, err := qwenOnce()
	if err != nil {
		t.Fatal(err)
	}
	v, err := smollmVocab()
	if err != nil {
		t.Fatal(err)
	}
	smol, err := FromVocab(v)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]*Tokenizer{"qwen2.5": qwen, "smollm2": smol} {
		t.Run(name, func(t *testing.T) {
			v, err := want.Vocab()
			if err != nil {
				t.Fatal(err)
			}
			got, err := FromVocab(v.PadTo(len(v.Tokens) + 5))
			if err != nil {
				t.Fatal(err)
			}
			sameTokenizer(t, got, want)

			text, err := want.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if got, err = Load(text, nil); err != nil {
				t.Fatal(err)
			}
			got.bos, got.eos, got.pad = want.bos, want.eos, want.pad // of tokenizer_config.json
			sameTokenizer(t, got, want)
		})
	}
}
