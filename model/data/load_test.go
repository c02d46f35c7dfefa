package data

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSelfCognition(t *testing.T) {
	samples, report, err := Load([]string{SelfCognition}, chat(t, template(t, "qwen2_5")), Options{MaxLength: 2048})
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 8 || report.Rows != 8 || report.Kept != 8 || report.Dropped() != 0 {
		t.Fatalf("%d samples, report %+v", len(samples), report)
	}
	s := samples[2]
	if s.File != SelfCognition || s.Row != 3 {
		t.Errorf("%s, row %d", s.File, s.Row)
	}
	var trained []int32
	for _, label := range s.Labels {
		if label != Ignore {
			trained = append(trained, label)
		}
	}
	const want = "我不能主动联网,只能基于已有知识和用户输入回答问题。<|im_end|>\n"
	if got := qwen(t).Decode(trained); got != want {
		t.Errorf("trained on %q, want %q", got, want)
	}
}

// pretokenised rows make lengths easy to choose.
const mixed = `{"input_ids":[1,2,3],"labels":[1,2,3]}
{"input_ids":[1,2,3,4,5,6],"labels":[-100,-100,3,-100,5,-100]}

{"input_ids":[1,2],"labels":[-100,-100]}
{"query":3}
{"input_ids":[9,8],"labels":[9,99]}
`

func TestLoadReports(t *testing.T) {
	path := write(t, "mixed.jsonl", mixed)
	c := chat(t, template(t, "qwen2_5"))
	for _, tc := range []struct {
		opt     Options
		samples Samples
		report  Report
	}{
		{Options{}, Samples{
			{[]int32{1, 2, 3}, []int32{-100, 2, 3}, path, 1},
			{[]int32{1, 2, 3, 4, 5, 6}, []int32{-100, -100, 3, -100, 5, -100}, path, 2},
			{[]int32{9, 8}, []int32{-100, 99}, path, 6},
		}, Report{Rows: 5, Kept: 3,
			Invalid: Tally{1, []Issue{{path, 5, "query: a JSON number where a string belongs"}}},
			NoLabel: Tally{1, []Issue{{path, 4, "no token to train on"}}}}},
		{Options{MaxLength: 3, Vocab: 99}, Samples{
			{[]int32{1, 2, 3}, []int32{-100, 2, 3}, path, 1},
		}, Report{Rows: 5, Kept: 1,
			Invalid: Tally{2, []Issue{{path, 5, "query: a JSON number where a string belongs"}, {path, 6, "the token at position 1 is not below the vocabulary's 99"}}},
			TooLong: Tally{1, []Issue{{path, 2, "6 tokens, the limit is 3"}}},
			NoLabel: Tally{1, []Issue{{path, 4, "no token to train on"}}}}},
		{Options{MaxLength: 3, Truncation: Right, Vocab: 100, ReportMax: 1}, Samples{
			{[]int32{1, 2, 3}, []int32{-100, 2, 3}, path, 1},
			{[]int32{1, 2, 3}, []int32{-100, -100, 3}, path, 2},
			{[]int32{9, 8}, []int32{-100, 99}, path, 6},
		}, Report{Rows: 5, Kept: 3,
			Invalid:   Tally{1, []Issue{{path, 5, "query: a JSON number where a string belongs"}}},
			Truncated: Tally{1, []Issue{{path, 2, "6 tokens cut to 3"}}},
			NoLabel:   Tally{1, []Issue{{path, 4, "no token to train on"}}}}},
		{Options{MaxLength: 2, Truncation: Left, ReportMax: 1}, Samples{
			{[]int32{2, 3}, []int32{-100, 3}, path, 1},
			{[]int32{9, 8}, []int32{-100, 99}, path, 6},
		}, Report{Rows: 5, Kept: 2,
			Invalid:   Tally{1, []Issue{{path, 5, "query: a JSON number where a string belongs"}}},
			Truncated: Tally{1, []Issue{{path, 1, "3 tokens cut to 2"}}},
			NoLabel:   Tally{2, []Issue{{path, 2, "no token to train on in the 2 of 6 tokens that fit"}}}}},
	} {
		samples, report, err := Load([]string{path}, c, tc.opt)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.samples, samples); diff != "" {
			t.Errorf("%+v:\n%s", tc.opt, diff)
		}
		report.max = 0
		if diff := cmp.Diff(&tc.report, report, cmp.AllowUnexported(Report{})); diff != "" {
			t.Errorf("%+v:\n%s", tc.opt, diff)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	c := chat(t, template(t, "qwen2_5"))
	dir := t.TempDir()
	t.Setenv("HF_HUB_CACHE", dir)
	t.Setenv("MODELSCOPE_CACHE", dir)
	for want, try := range map[string]struct {
		dataset string
		opt     Options
	}{
		"row 5: query: a JSON":            {write(t, "a.jsonl", mixed), Options{Strict: true}},
		"unknown truncation strategy":     {SelfCognition, Options{Truncation: "middle"}},
		"there is only builtin:self-cogn": {"builtin:other", Options{}},
		"no such file: give a file":       {filepath.Join(dir, "none.csv"), Options{}},
		`type ".xml" are not supported`:   {write(t, "a.xml", "query,response\n"), Options{}},
		`type "" are not supported`:       {write(t, "a", "{}"), Options{}},
		"holds no file of type":           {dir, Options{}},
		"a.json: the file is empty":       {write(t, "a.json", ""), Options{}},
		"2 rows, 0 are not usable, 1 too long, 1 without anything to train on; the first: ": {
			write(t, "b.jsonl", `{"input_ids":[1,2,3],"labels":[1,2,3]}`+"\n"+`{"input_ids":[1],"labels":[1]}`), Options{MaxLength: 2}},
		"8 rows, 0 are not usable, 8 too long": {SelfCognition, Options{MaxLength: 10}},
	} {
		samples, _, err := Load([]string{try.dataset}, c, try.opt)
		if err == nil || !strings.Contains(err.Error(), want) || samples != nil {
			t.Errorf("%s: error %v, want one with %q", try.dataset, err, want)
		}
	}
	_, _, err := Load([]string{filepath.Join(dir, "none.json")}, c, Options{})
	var fault *FileError
	if !errors.As(err, &fault) || !strings.Contains(err.Error(), "none.json") {
		t.Error(err)
	}
}

// Datasets follow each other, and a fault in the second names it.
func TestLoadSeveral(t *testing.T) {
	c := chat(t, template(t, "qwen2_5"))
	bad := write(t, "bad.jsonl", `{"query":"q","response":"r"}`+"\n{")
	if _, _, err := Load([]string{SelfCognition, bad}, c, Options{}); err == nil || !strings.HasPrefix(err.Error(), bad+", row 2: ") {
		t.Error(err)
	}
	samples, _, err := Load([]string{SelfCognition, SelfCognition}, c, Options{})
	if err != nil || len(samples) != 16 || !slices.Equal(samples[8].IDs, samples[0].IDs) {
		t.Error(len(samples), err)
	}
	if Fingerprint(samples) == Fingerprint(samples[:8]) || Fingerprint(samples[:8]) != Fingerprint(samples[8:]) {
		t.Error("the fingerprint does not follow the samples")
	}
	was := Fingerprint(samples)
	samples[15].Labels[5] = 1
	if Fingerprint(samples) == was {
		t.Error("the fingerprint does not see a label")
	}
}

// A JSON array and JSON lines of the same rows give the same samples.
func TestArrayEqualsLines(t *testing.T) {
	text, err := os.ReadFile("self_cognition.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []json.RawMessage
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	lines := write(t, "lines.json", "\ufeff"+strings.ReplaceAll(string(bytes.Join(toBytes(rows), []byte("\n"))), "\n", "\r\n"))
	c := chat(t, template(t, "qwen2_5"))
	a, _, err := Load([]string{SelfCognition}, c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := Load([]string{lines}, c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if Fingerprint(a) != Fingerprint(b) {
		t.Error("the samples differ")
	}
}

func toBytes(rows []json.RawMessage) [][]byte {
	out := make([][]byte, len(rows))
	for i, row := range rows {
		out[i] = row
	}
	return out
}

func TestLengths(t *testing.T) {
	var samples Samples
	for n := range 100 { // lengths 1 to 100, the last token of each longer than 1 a label
		s := Sample{IDs: make([]int32, n+1), Labels: slices.Repeat([]int32{Ignore}, n+1)}
		if n > 0 {
			s.Labels[n] = 5
		}
		samples = append(samples, s)
	}
	got, err := Lengths(samples)
	want := LengthStats{Samples: 100, Min: 1, Median: 50.5, P90: 90, P99: 99, Max: 100, Mean: 50.5, Tokens: 5050, LabelTokens: 99}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Lengths(nil); err == nil {
		t.Error("no samples were described")
	}
}

func TestTokens(t *testing.T) {
	c := chat(t, template(t, "chatml"))
	ids, labels, err := c.Encode(Conversation{Messages: []Message{{Role: User, Content: "𒀀"}, {Role: Assistant, Content: "你"}}})
	if err != nil {
		t.Fatal(err)
	}
	ids, labels = append(ids, 1<<20), append(labels, Ignore)
	tokens := Tokens(Sample{IDs: ids, Labels: labels}, qwen(t).Token)
	var text, trained string
	for i, token := range tokens {
		if token.Pos != i || token.ID != ids[i] {
			t.Errorf("token %d: %+v", i, token)
		}
		text += token.Text
		if token.Label {
			trained += token.Text
		}
	}
	if want := `<|im_start|>user` + "\n" + `\xf0\x92\x80\x80<|im_end|>` + "\n<|im_start|>assistant\n你<|im_end|>\n(no token)"; text != want {
		t.Errorf("%q\nwant %q", text, want)
	}
	if trained != "你<|im_end|>\n" {
		t.Errorf("trained on %q", trained)
	}
}

func BenchmarkLoad(b *testing.B) {
	row := `{"instruction":"Give three tips for staying healthy.","input":"","output":"` + strings.Repeat("Eat a balanced diet and make sure to include plenty of fruits. ", 10) + `"}` + "\n"
	path := write(b, "rows.jsonl", strings.Repeat(row, 1000))
	c := chat(b, template(b, "qwen2_5"))
	b.SetBytes(int64(1000 * len(row)))
	for b.Loop() {
		if _, _, err := Load([]string{path}, c, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// Progress is told of every row, and ends where all are read.
func TestProgress(t *testing.T) {
	file := write(t, "a.jsonl", strings.Repeat(`{"query":"q","response":"r"}`+"\n", 100)+"{}\n")
	told := map[string]int{}
	opt := Options{Shuffle: true, Progress: func(what string, done, total int) {
		if told[what]++; done < 1 || done > total {
			t.Errorf("%s: %d of %d", what, done, total)
		}
	}}
	if _, _, err := Load([]string{file + "#40", file}, chat(t, template(t, "qwen2_5")), opt); err != nil {
		t.Fatal(err)
	}
	if n := told["finding rows of "+file+"#40"]; n < 40 || n > 41 {
		t.Errorf("told of %d rows that were tried", n)
	}
	if told["reading "+file+"#40"] != 40 || told["reading "+file] != 101 {
		t.Errorf("%v", told)
	}
}
