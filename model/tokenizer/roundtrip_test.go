package tokenizer

import (
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"qlora/internal/golden"
)

// checkRoundTrip encodes any bytes with both tokenizers: no special token comes
// of them, the tokens' bytes are those of the normal form, and streaming them
// gives what decoding gives, whole characters only.
func checkRoundTrip(t *testing.T, text string) {
	t.Helper()
	for _, tok := range []*Tokenizer{qwen(t), smolLM(t)} {
		ids := tok.Encode(text)
		var raw strings.Builder
		for _, id := range ids {
			s, ok := tok.Token(id)
			if !ok || tok.IsSpecial(id) {
				t.Fatalf("%q encodes to id %d (%q)", text, id, s)
			}
			raw.WriteString(s)
		}
		got, want := raw.String(), tok.bpe.withoutMissing(tok.normalize(text))
		if _, added := tok.added.find(text, 0); added != nil {
			// The text was normalised between added tokens only.
			got = tok.normalize(got)
		}
		if got != want {
			t.Fatalf("%q encodes to the bytes %q, want %q", text, got, want)
		}
		decoded := tok.Decode(ids)
		if utf8.ValidString(raw.String()) && decoded != raw.String() {
			t.Fatalf("%q decodes to %q", raw.String(), decoded)
		}
		if decoded != tok.DecodeSkipSpecial(ids) {
			t.Fatalf("%q has special tokens", text)
		}
		s := tok.NewStream(false)
		var parts strings.Builder
		for _, id := range ids {
			part := s.Push(id)
			if !utf8.ValidString(part) {
				t.Fatalf("%q streams %q", text, part)
			}
			parts.WriteString(part)
		}
		parts.WriteString(s.Flush())
		if parts.String() != decoded {
			t.Fatalf("%q streams %q, decodes to %q", text, parts.String(), decoded)
		}
	}
	if form := nfc(text); nfc(form) != form {
		t.Fatalf("the normal form of %q, %q, is not normal", text, form)
	}
}

func FuzzRoundTrip(f *testing.F) {
	for _, unit := range hostile {
		f.Add(unit)
		f.Add(strings.Repeat(unit, 40))
		f.Add(strings.Repeat(unit, 3) + "<|im_start|>" + unit + "<tool_call>" + unit)
	}
	f.Add("<tool_call>\u0338 \xff\u0301\xe4\xb8\u0301")
	f.Add("\xe4" + strings.Repeat("\u0301", 50) + "\x04\x06 \U000c0346")
	f.Fuzz(checkRoundTrip)
}

func TestRoundTripGolden(t *testing.T) {
	for _, row := range readRows[encodeRow](t, golden.Path(t, "tokenizer", "encode.jsonl.gz"), 1) {
		checkRoundTrip(t, row.Text)
	}
}

// TestStream gives the bytes of a character one token at a time.
func TestStream(t *testing.T) {
	tok := smolLM(t)
	byteID := func(b byte) int32 {
		id, ok := tok.ID(string([]byte{b}))
		if !ok {
			t.Fatalf("no token for byte %#x", b)
		}
		return id
	}
	for _, c := range []struct {
		bytes string
		want  []string // of each Push, then of Flush
	}{
		{"a🙂", []string{"a", "", "", "", "🙂", ""}},
		{"é", []string{"", "é", ""}},
		{"\xf0\x9f\x99", []string{"", "", "", "\ufffd"}},
		{"\xf0\x9fa", []string{"", "", "\ufffda", ""}},
		{"\xe4\xe4\xb8\xad", []string{"", "\ufffd", "", "中", ""}},
		{"\x99\x99", []string{"\ufffd", "\ufffd", ""}},
		{"\xed\xa0\x80", []string{"", "\ufffd\ufffd", "\ufffd", ""}}, // a surrogate
	} {
		s := tok.NewStream(false)
		for i := range len(c.bytes) {
			if got := s.Push(byteID(c.bytes[i])); got != c.want[i] {
				t.Errorf("%q: after byte %d %q, want %q", c.bytes, i, got, c.want[i])
			}
		}
		if got := s.Flush(); got != c.want[len(c.bytes)] {
			t.Errorf("%q: at the end %q, want %q", c.bytes, got, c.want[len(c.bytes)])
		}
	}
	end, _ := tok.ID("<|im_end|>")
	if got := tok.NewStream(true).Push(end); got != "" {
		t.Errorf("a special token streams %q", got)
	}
	if got := tok.Decode([]int32{-5, end, 1 << 30}); got != "<|im_end|>" {
		t.Errorf("ids without a token decode to %q", got)
	}
}

// TestMissingBytes: SmolLM2 has no tokens for some bytes, which are left out.
func TestMissingBytes(t *testing.T) {
	tok := smolLM(t)
	if got := string(tok.MissingBytes()); !strings.HasPrefix(got, "\x04\x06\x13\x14\x16\x1d\xc0") || len(got) != 21 {
		t.Errorf("missing: %q", got)
	}
	if got := tok.Decode(tok.Encode("he\x04llo\x1d")); got != "hello" {
		t.Errorf("got %q", got)
	}
	if got := qwen(t).MissingBytes(); len(got) != 0 {
		t.Errorf("Qwen2.5 misses %q", got)
	}
}

func TestConcurrent(t *testing.T) {
	tok, text := qwen(t), sampleText(t, "mixed")
	want := tok.Decode(tok.Encode(text))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := tok.Decode(tok.Encode(text)); got != want {
				t.Error("encoding at the same time gives another text")
			}
		})
	}
	wg.Wait()
}
