package tokenizer

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzLoad reads any tokenizer.json and tokenizer_config.json: an error with words, or a tokenizer whose ids are within
// its vocabulary and which gives back the text of tokens it has.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(tiny), []byte(tinyConfig))
	f.Add([]byte(strings.Replace(tiny, `["a b", "Ġ ab"]`, `[["a", "b"], ["Ġ", "ab"]]`, 1)), []byte("{}"))
	f.Add([]byte(strings.Replace(tiny, `"special": false`, `"special": true`, 1)), []byte(`{"eos_token": {"content": "<end>"}}`))
	f.Add([]byte(strings.NewReplacer(`"Ġ ab"`, `"ab Ġ"`, `{"type": "NFC"}`, "null", `"merges": [`, `"merges": ["b a", `).Replace(tiny)), []byte(nil))
	f.Fuzz(func(t *testing.T, model, config []byte) {
		tok, err := Load(model, config)
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
