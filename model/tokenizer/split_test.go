package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dlclark/regexp2"

	"qlora/internal/golden"
)

// The patterns themselves, run by a backtracking engine. Two things differ from
// the engine of the tokenizers library and are written out: \s there is the
// White_Space property, and (?i:s) there matches ſ.
const (
	spaceClass    = `\t\n\v\f\r \x85\xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000`
	gpt2Pattern   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	smollmPattern = `\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N}|$)|\s+(?!\S)|\s+`
)

func oracle(pattern string) *regexp2.Regexp {
	r := strings.NewReplacer(
		`(?i:'s|`, `(?i:'[sſ]|`,
		`[^\s`, `[^`+spaceClass,
		`\s`, `[`+spaceClass+`]`,
		`\S`, `[^`+spaceClass+`]`,
		`$`, `\z`)
	return regexp2.MustCompile(r.Replace(pattern), regexp2.None)
}

func TestSplit(t *testing.T) {
	alphabet := []rune("  \t\r\n\n\v\f\u0085\u00a0\u1680\u2003\u2028\u3000\u180e\u200b\ufeff" +
		"aZéſKßΩ你가ا_" + "017²½٣Ⅷ一" + "''’.,!=-<|>€🙂\u0301\u0345\u200d" + "sStTrReEvVmMlLdD" +
		"\U0001d7d8\U0001d400\U00020000\U0010ffff\x00\x7f")
	for _, m := range []struct {
		name    string
		split   splitter
		pattern string
	}{
		{"qwen2", qwen2, qwen2Pattern},
		{"gpt2", gpt2, gpt2Pattern},
		{"smollm", smollm, smollmPattern},
	} {
		t.Run(m.name, func(t *testing.T) {
			re := oracle(m.pattern)
			rng := rand.New(rand.NewPCG(5, 6))
			for range 15_000 {
				text := make([]rune, 1+rng.IntN(14))
				for i := range text {
					text[i] = alphabet[rng.IntN(len(alphabet))]
					if rng.IntN(20) == 0 {
						text[i] = rng.Int32N(utf8.MaxRune + 1)
					}
				}
				checkSplit(t, m.split, re, strings.ToValidUTF8(string(text), "\ufffd"))
			}
			for _, row := range readRows[encodeRow](t, golden.Path(t, "tokenizer", "encode.jsonl.gz"), 1) {
				checkSplit(t, m.split, re, row.Text)
			}
		})
	}
}

func checkSplit(t *testing.T, split splitter, re *regexp2.Regexp, text string) {
	t.Helper()
	var got, want []string
	for i := 0; i < len(text); {
		j := split(text, i)
		if j <= i || j > len(text) {
			t.Fatalf("%q: piece from %d to %d", text, i, j)
		}
		got = append(got, text[i:j])
		i = j
	}
	m, err := re.FindStringMatch(text)
	for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
		want = append(want, m.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q:\n got %q\nwant %q", text, got, want)
	}
}
