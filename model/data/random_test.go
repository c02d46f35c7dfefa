package data

import (
	"slices"
	"strings"
	"testing"
)

func TestParseRandomRows(t *testing.T) {
	for name, want := range map[string]RandomRows{
		"random:2048x12":     {2048, 12, 1},
		"random:1280x3:0.3":  {1280, 3, 0.3},
		"random:2x1:1":       {2, 1, 1},
		"random:64x16:0.001": {64, 16, 0.001},
	} {
		if got, err := ParseRandomRows(name); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	for _, name := range []string{"2048x12", "random:", "random:2048", "random:x", "random:1x1", "random:8x0", "random:-8x-8", "random:8x8:0",
		"random:8x8:1.5", "random:8x8:NaN", "random:8x8:", "random:8x8:0.5:1", "random:65536x65536", "random:8x8#2"} {
		if r, err := ParseRandomRows(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v; want an error that names it", name, r, err)
		}
	}
}

func TestRandomRows(t *testing.T) {
	const vocab = 1000
	rows := RandomRows{Length: 500, Rows: 4, Labels: 0.3}.Samples(vocab, 42)
	if len(rows) != 4 || LabelTokens(rows) != 4*150 {
		t.Fatalf("%d rows with %d label tokens, want 4 with 600", len(rows), LabelTokens(rows))
	}
	seen := map[int32]bool{}
	for _, s := range rows {
		for i, id := range s.IDs {
			if id < 0 || id >= vocab || s.Labels[i] != Ignore && s.Labels[i] != id {
				t.Fatalf("row %d, token %d: id %d, label %d", s.Row, i, id, s.Labels[i])
			}
			seen[id] = true
		}
	}
	if len(seen) < vocab*3/4 { // 2000 draws leave 1/e² of 1000 out
		t.Errorf("only %d of %d ids come up", len(seen), vocab)
	}
	again, other := RandomRows{500, 4, 0.3}.Samples(vocab, 42), RandomRows{500, 4, 0.3}.Samples(vocab, 43)
	if rows.Fingerprint() != again.Fingerprint() || rows.Fingerprint() == other.Fingerprint() {
		t.Error("the tokens do not depend on the seed alone")
	}
	if slices.Equal(rows[0].IDs, rows[1].IDs) {
		t.Error("two rows are the same")
	}
	if all := (RandomRows{500, 1, 1}).Samples(vocab, 1); LabelTokens(all) != 499 {
		t.Errorf("%d label tokens of 500, want 499: nothing predicts the first", LabelTokens(all))
	}
	if one := (RandomRows{500, 1, 1e-6}).Samples(vocab, 1); LabelTokens(one) != 1 {
		t.Errorf("%d label tokens, want at least one", LabelTokens(one))
	}
}
