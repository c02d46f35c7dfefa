package data

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// A row written as JSON reads as the example it was.
func TestExampleJSON(t *testing.T) {
	n := 0
	for _, text := range []string{
		`{"query":"a \u2028\"<b>","response":"c","history":[["x","y"]],"system":""}`,
		`{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a","loss":false},{"role":"user","content":""},{"role":"assistant","content":"b"}]}`,
		`{"tools":[{"type":"function","function":{"name":"f"}}],"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"b":1,"a":[1.50]}}}]},{"role":"tool","content":"r"},{"role":"assistant","content":"z"}]}`,
		`{"input_ids":[1,2,3],"labels":[-100,2,3]}`, `{"text":"only"}`,
	} {
		for ex, err := range Rows(write(t, "a.jsonl", text), Options{}) {
			if err != nil {
				t.Fatal(err)
			}
			row, err := ex.JSON()
			if err != nil {
				t.Fatal(err)
			}
			for again, err := range Rows(write(t, "a.jsonl", string(row)), Options{}) {
				if diff := cmp.Diff(ex, again, cmpopts.IgnoreFields(Example{}, "File")); diff != "" || err != nil {
					t.Errorf("%s, written as %s: %v\n%s", text, row, err, diff)
				}
				n++
			}
		}
	}
	if n != 5 {
		t.Errorf("%d rows read again", n)
	}
}

// What is streamed as set aside is what is loaded for validation.
func TestSetAside(t *testing.T) {
	opt := Options{SplitRatio: 0.2, Shuffle: true, Seed: 7}
	text := `{"query":3}` + "\n" // no row
	for i := range 60 {
		text += fmt.Sprintf(`{"query":"q%d","response":"r"}`, i) + "\n"
	}
	datasets := []string{write(t, "a.jsonl", text) + "#40", SelfCognition}
	c := chat(t, template(t, "qwen2_5"))
	_, validation, _, err := LoadSplit(datasets, c, opt)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for ex, err := range SetAside(datasets, opt) {
		if isRowError(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Sample(ex)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(validation) && (s.Row != validation[i].Row || s.File != validation[i].File) {
			t.Errorf("row %d of %s is set aside, and row %d of %s loaded", s.Row, s.File, validation[i].Row, validation[i].File)
		}
		i++
	}
	if i != len(validation) || i < 8 {
		t.Errorf("%d rows are set aside, %d loaded", i, len(validation))
	}
}
