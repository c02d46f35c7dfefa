package yamlguard

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml/parser"

	"qlora/internal/allocs"
)

// What passes costs the parser in proportion to its length; what is refused is refused at its line.
func TestCheck(t *testing.T) {
	const n = MaxDepth
	for name, text := range map[string]string{
		"brackets":     strings.Repeat("[", n) + strings.Repeat("]", n),
		"many":         "a: [" + strings.Repeat("[[[1]]],", 20_000) + "]",
		"objects":      strings.Repeat("{a: ", n) + "1" + strings.Repeat("}", n),
		"dashes":       strings.Repeat("- ", n) + "1",
		"numbers":      "a: [" + strings.Repeat("1,", 50_000) + "]",
		"keys":         strings.Repeat("a:\n", 20_000),
		"questions":    strings.Repeat("? ", n),
		"comments":     strings.Repeat("#\n", 50_000),
		"documents":    strings.Repeat("---\n", 30_000),
		"lines":        "a:\n" + strings.Repeat("-\n", 50_000),
		"indentation":  indented(400),
		"closed first": strings.Repeat("]", 2*n) + strings.Repeat("[", n),
	} {
		if err := Check([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		allocs.Within(t, 700*len(text)+1<<20, func() { _, _ = parser.ParseBytes([]byte(text), 0) })
	}
	for _, text := range []string{strings.Repeat("[", n+1), "a:\n" + strings.Repeat("{b: [", n), "- 1\n" + strings.Repeat("- ", n+1) + "2", "a: 1\n" + strings.Repeat("?   ", n+1)} {
		want := "line 1: nested deeper than 200"
		if strings.Contains(text, "\n") {
			want = "line 2: nested deeper than 200"
		}
		if err := Check([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
}

func indented(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}
