package tokenizer

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"qlora/internal/allocs"
)

// allocFactor is what a tokenizer allocates for each byte of its file at most, garbage counted: a token of three letters
// and its merge, 20 bytes, are an entry of a map, a string, a leaf of the trie, two halves of a rule and a slot of a
// table, and those of them that grow are copied.
const allocFactor = 26

// The densest tokenizer stays within the bound, and ids without tokens take nothing.
func TestAllocationBound(t *testing.T) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	var vocab, merges []string
	token := func(text string) { vocab = append(vocab, fmt.Sprintf("%q:%d", text, len(vocab))) }
	for _, a := range letters {
		token(string(a))
	}
	for _, a := range letters {
		for _, b := range letters {
			token(string(a) + string(b))
			merges = append(merges, fmt.Sprintf(`"%c %c"`, a, b))
		}
	}
	for i := range 150_000 {
		a, b := letters[i/62/62%62:][:1]+letters[i/62%62:][:1], letters[i%62:][:1]
		token(a + b)
		merges = append(merges, fmt.Sprintf(`"%s %s"`, a, b))
	}
	full := strings.NewReplacer(`{"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4}`, "{"+strings.Join(vocab, ",")+"}",
		`["a b", "Ġ ab"]`, "["+strings.Join(merges, ",")+"]", `"id": 5`, `"id": 154000`, `"id": 6`, `"id": 154001`).Replace(tiny)
	for name, c := range map[string]struct{ text, err string }{
		"full":         {full, ""},
		"a high id":    {strings.Replace(tiny, `"Ġab": 4`, `"Ġab": 4000000`, 1), `token "Ġab" has id 4000000 of 7 tokens`},
		"a high added": {strings.Replace(tiny, `"id": 6`, `"id": 4000000`, 1), `added token "<call>" has id 4000000 of 7 tokens`},
		"added tokens": {strings.Replace(tiny, `"added_tokens": [`, `"added_tokens": [`+strings.Repeat("{},", 300_000), 1), "300002 of them"},
		"no merges":    {strings.Replace(tiny, `["a b"`, "["+strings.Repeat(`"",`, 300_000)+`"a b"`, 1), `[0]: "" is not a pair`},
		"empty pairs":  {strings.Replace(tiny, `["a b", "Ġ ab"]`, "["+strings.Repeat(`[],`, 300_000)+`[]]`, 1), "a list of 0 where 2 belong"},
	} {
		text := []byte(c.text)
		allocs.Within(t, allocFactor*len(text)+1<<20, func() {
			if _, err := Load(text, nil); fmt.Sprint(err) != "<nil>" && (c.err == "" || !strings.Contains(err.Error(), c.err)) || err == nil && c.err != "" {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// FuzzLoad reads any tokenizer.json and tokenizer_config.json: an error with words, or a tokenizer whose ids are within
// its vocabulary and which gives back the text of tokens it has.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(tiny), []byte(tinyConfig))
	f.Add([]byte(strings.Replace(tiny, `["a b", "Ġ ab"]`, `[["a", "b"], ["Ġ", "ab"]]`, 1)), []byte("{}"))
	f.Add([]byte(strings.Replace(tiny, `"special": false`, `"special": true`, 1)), []byte(`{"eos_token": {"content": "<end>"}}`))
	f.Add([]byte(strings.NewReplacer(`"Ġ ab"`, `"ab Ġ"`, `{"type": "NFC"}`, "null", `"merges": [`, `"merges": ["b a", `).Replace(tiny)), []byte(nil))
	f.Fuzz(func(t *testing.T, model, config []byte) {
		var tok *Tokenizer
		var err error
		allocs.Within(t, allocFactor*(len(model)+len(config))+1<<20, func() { tok, err = Load(model, config) })
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Fatal("an error without words")
			}
			return
		}
		for _, id := range []int32{tok.BOS(), tok.EOS(), tok.Pad()} {
			if id != None && (id < 0 || int(id) >= tok.VocabSize()) {
				t.Fatalf("id %d of %d", id, tok.VocabSize())
			}
		}
		for _, id := range tok.Encode("ab <end> \xffz" + string(config)) {
			if _, ok := tok.Token(id); !ok || tok.IsSpecial(id) {
				t.Fatalf("text encodes to id %d", id)
			}
		}
		for _, id := range tok.EncodeSpecial("ab<end><call>" + string(config)) {
			if _, ok := tok.Token(id); !ok {
				t.Fatalf("text encodes to id %d, which is no token", id)
			}
		}
		ids := tok.Encode("a b")
		if text := tok.Decode(ids); !utf8.ValidString(text) {
			t.Fatalf("%v decodes to %q", ids, text)
		}
	})
}
