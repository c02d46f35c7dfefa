package tokenizer

import (
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qlora/internal/golden"
)

// sampleText is 100 kB or a little more of the golden strings of each category.
func sampleText(t testing.TB, cats ...string) string {
	t.Helper()
	rows := readRows[encodeRow](t, golden.Path(t, "tokenizer", "encode.jsonl.gz"), 1)
	var all strings.Builder
	for _, cat := range cats {
		var b strings.Builder
		for _, row := range rows {
			if row.Cat == cat {
				b.WriteString(row.Text)
				b.WriteByte('\n')
			}
		}
		if b.Len() == 0 {
			t.Fatalf("the golden data has no text of category %q", cat)
		}
		all.WriteString(strings.Repeat(b.String(), 100_000/b.Len()+1))
	}
	return all.String()
}

func BenchmarkEncode(b *testing.B) {
	for _, m := range []struct {
		name string
		tok  *Tokenizer
		cats []string
	}{
		{"qwen2.5", qwen(b), []string{"en", "zh", "code"}},
		{"qwen2.5/en", qwen(b), []string{"en"}},
		{"qwen2.5/zh", qwen(b), []string{"zh"}},
		{"qwen2.5/code", qwen(b), []string{"code"}},
		{"smollm2", smolLM(b), []string{"en", "zh", "code"}},
	} {
		b.Run(m.name, func(b *testing.B) {
			text := sampleText(b, m.cats...)
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
	tok, text := qwen(b), sampleText(b, "en", "zh", "code")
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

// hostile are texts whose pieces are as long as the text, or nearly, or that
// give a careless matcher or normaliser much to do again.
var hostile = map[string]string{
	"one letter":      "a",
	"two letters":     "ab",
	"spaces":          " ",
	"digits":          "7",
	"combining marks": "\u0301",
	"mark classes":    "\u0301\u0323\u0327\u0345",
	"letter and mark": "a\u0301",
	"hangul vowels":   "\u1161",
	"han":             "啊",
	"emoji joined":    "👩\u200d",
	"newlines":        "\n",
	"spaces, newline": "                               \n",
	"punctuation":     "=",
	"apostrophes":     "'",
	"angle brackets":  "<|",
	"special prefix":  "<|im_en",
	"not UTF-8":       "\xe4\xb8",
}

// TestLinear encodes hostile texts of n and 16n bytes, 16n being 4 MB for the
// plainest and 512 kB for the rest: over the four doublings t(2n)/t(n) stays below
// 2.4. Time is that of the processor, the best of a few tries where it matters,
// so that a busy machine does not count.
func TestLinear(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const doublings, limit = 4, 2.4
	for name, unit := range hostile {
		size := 512 << 10
		switch name {
		case "one letter", "spaces", "digits", "combining marks":
			size = 4 << 20
		}
		for model, tok := range map[string]*Tokenizer{"qwen2.5": qwen(t), "smollm2": smolLM(t)} {
			n := size >> doublings / len(unit)
			texts := []string{strings.Repeat(unit, n), strings.Repeat(unit, n<<doublings)}
			dst := make([]int32, 0, len(texts[1]))
			best := [2]time.Duration{1 << 62, 1 << 62}
			ratio := func() float64 {
				return math.Pow(best[1].Seconds()/best[0].Seconds(), 1./doublings)
			}
			for try := 0; try == 0 || try < 8 && ratio() >= limit; try++ {
				for i, text := range texts {
					start := threadTime(t)
					dst = tok.AppendEncode(dst[:0], text)
					best[i] = min(best[i], threadTime(t)-start)
				}
			}
			t.Logf("%s, %s: %.1f MB/s, ratio %.2f", model, name, float64(len(texts[1]))/1e6/best[1].Seconds(), ratio())
			if ratio() >= limit {
				t.Errorf("%s, %s: t(2n)/t(n) = %.2f up to %d bytes, want under %.1f", model, name, ratio(), len(texts[1]), limit)
			}
		}
	}
}

// threadTime returns the processor time that this thread has used.
func threadTime(t *testing.T) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
