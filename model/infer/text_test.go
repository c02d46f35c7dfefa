package infer_test

import (
	"strings"
	"testing"

	"qlora/model/infer"
)

// pieces decodes id i to the i-th piece.
type pieces []string

func (p pieces) Push(id int32) string { return p[id] }
func (p pieces) Flush() string        { return "" }

func TestTextStops(t *testing.T) {
	for _, c := range []struct {
		pieces string // separated by |
		stops  string
		want   string
		after  int // pieces until it stopped
	}{
		{"a|b|c", "", "abc", 3},
		{"Hel|lo\n|Human|: hi", "\nHuman:", "Hello", 4},
		{"Hel|lo\n|Hum|an is", "\nHuman:", "Hello\nHuman is", 4},
		{"abc|d", "bc cd", "a", 1},
		{"a|b|c|d", "bcx cd", "ab", 4},
		{"one END two| three", "END", "one ", 1},
		{"xEN|EN|D", "END", "xEN", 3},
		{"ends with EN", "END", "ends with EN", 1},
		{"问|题：|好", "题：", "问", 2},
	} {
		var p pieces = strings.Split(c.pieces, "|")
		var stops []string
		if c.stops != "" {
			stops = strings.Split(c.stops, " ")
		}
		var shown strings.Builder
		text := infer.NewText(p, stops, func(s string) { shown.WriteString(s) })
		n := 0
		for i := range p {
			n++
			if text.Push(int32(i)) {
				break
			}
		}
		if got := text.End(); got != c.want || shown.String() != c.want || n != c.after {
			t.Errorf("%q, stop %q: %q after %d pieces, shown %q; want %q after %d", c.pieces, c.stops, got, n, shown.String(), c.want, c.after)
		}
	}
}
