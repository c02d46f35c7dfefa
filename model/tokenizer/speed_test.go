package tokenizer

import (
	"path/filepath"
	"strings"
	"testing"
)

// mixedText is English, Chinese and code from the golden strings, a third each
// by bytes.
func mixedText(t testing.TB) string {
	t.Helper()
	byCat := map[string]*strings.Builder{"en": {}, "zh": {}, "code": {}}
	for _, row := range readRows[encodeRow](t, filepath.Join(goldenDir(), "encode.jsonl.gz"), 1) {
		if b := byCat[row.Cat]; b != nil {
			b.WriteString(row.Text)
			b.WriteByte('\n')
		}
	}
	const each = 100_000
	var all strings.Builder
	for _, cat := range []string{"en", "zh", "code"} {
		text := byCat[cat].String()
		if text == "" {
			t.Fatalf("the golden data has no text of category %q", cat)
		}
		all.WriteString(strings.Repeat(text, each/len(text)+1))
	}
	return all.String()
}

func BenchmarkEncode(b *testing.B) {
	for _, m := range []struct {
		name string
		tok  *Tokenizer
	}{{"qwen2.5", qwen(b)}, {"smollm2", smolLM(b)}} {
		b.Run(m.name, func(b *testing.B) {
			text := mixedText(b)
			var ids []int32
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				ids = m.tok.AppendEncode(ids[:0], text)
			}
			b.ReportMetric(float64(len(text))/float64(len(ids)), "bytes/token")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	tok, text := qwen(b), mixedText(b)
	ids := tok.Encode(text)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Decode(ids)
	}
}

func BenchmarkLoad(b *testing.B) {
	model := must(b, qwenJSON)
	b.SetBytes(int64(len(model)))
	for b.Loop() {
		if _, err := Load(model, nil); err != nil {
			b.Fatal(err)
		}
	}
}
