package data

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func turns(texts ...string) []Message {
	var out []Message
	for i, text := range texts {
		out = append(out, Message{Role: []Role{User, Assistant}[i%2], Content: text})
	}
	return out
}

// What make.py's rows do not show: names, synonyms and the wrappings of text tables.
func TestColumns(t *testing.T) {
	call := []ToolCall{{"f", []byte(`{"b": 1, "a": 2}`)}}
	for row, want := range map[string]Conversation{
		`{"Question":"q","ANSWER":"r","id":7}`:                               {Messages: turns("q", "r")},
		`{"query":"q","prompt":"not this","response":"r","text":"nor this"}`: {Messages: turns("q", "r")},
		`{"query":"q","response":null,"answer":"r","system":null}`:           {Messages: turns("q", "r")},
		`{"instruction":"i","input":"","output":"o","text":"all of it"}`:     {Messages: turns("i", "o")},
		`{"instruction":"i","input":null,"output":"o"}`:                      {Messages: turns("i", "o")},
		`{"query":"q"}`: {Messages: turns("q")},
		`{"query":"q","response":"r","history":"[[\"a\",\"b\"]]","images":[]}`:                             {Messages: turns("a", "b", "q", "r")},
		`{"messages":"[{\"role\":\"user\",\"content\":\"q\"}]"}`:                                           {Messages: turns("q")},
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}`: {Messages: turns("ab")},
		`{"messages":[{"role":"system","content":"s"},{"role":"human","content":"q"}],"system":"x"}`:       {System: ptr("s"), Messages: turns("q")},
		`{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":"{\"b\": 1, \"a\": 2}"}}]},{"role":"tool","content":{"x":[1]}}]}`: {
			Messages: []Message{{Role: User, Content: "q"}, {Role: Assistant, ToolCalls: call}, {Role: Tool, Content: `{"x": [1]}`}}},
		`{"messages":[{"role":"user","content":"q"},{"role":"function-call","content":"{\"name\":\"f\",\"arguments\":{\"b\": 1, \"a\": 2}}"},{"role":"observation","content":"r"}],"tools":["{\"name\":\"f\"}",{"type":"function","function":{}}]}`: {
			Tools:    []json.RawMessage{json.RawMessage(`{"type": "function", "function": {"name":"f"}}`), json.RawMessage(`{"type":"function","function":{}}`)},
			Messages: []Message{{Role: User, Content: "q"}, {Role: Assistant, ToolCalls: call}, {Role: Tool, Content: "r"}}},
	} {
		ex, err := parse(t, row)
		if err != nil {
			t.Errorf("%s: %v", row, err)
			continue
		}
		if diff := cmp.Diff(want, ex.Conversation); diff != "" {
			t.Errorf("%s:\n%s", row, diff)
		}
	}
}

func TestPreTokenised(t *testing.T) {
	ex, err := parse(t, `{"input_ids":[5,6,7],"labels":[-100,6,-100]}`)
	if err != nil {
		t.Fatal(err)
	}
	want := Example{File: ex.File, Row: 1, IDs: []int32{5, 6, 7}, Labels: []int32{-100, 6, -100}}
	if diff := cmp.Diff(want, ex); diff != "" {
		t.Error(diff)
	}
}

func TestLossOfATurn(t *testing.T) {
	if ex, err := parse(t, `{"messages":[{"role":"assistant","content":"a","loss":true},{"role":"user","content":"q"}]}`); err != nil || !ex.Conversation.Messages[0].Trained {
		t.Errorf("%+v, %v", ex, err)
	}
	for keys, masked := range map[string]bool{
		``: false, `,"loss":true`: false, `,"loss":null`: false, `,"loss":false`: true, `,"loss_scale":1.0`: false, `,"loss_scale":0`: true,
		`,"loss":false,"loss_scale":1`: true, `,"loss":true,"loss_scale":0.0`: true,
	} {
		ex, err := parse(t, `{"messages":[{"role":"user","content":"q","loss":false},{"role":"assistant","content":"a"`+keys+`}]}`)
		if err != nil || ex.Conversation.Messages[0].Masked || ex.Conversation.Messages[1].Masked != masked {
			t.Errorf("%s: %+v, %v", keys, ex.Conversation.Messages, err)
		}
	}
}

func TestRowErrors(t *testing.T) {
	for row, want := range map[string]string{
		`{}`:                       "no known columns",
		`{"data":[{"query":"q"}]}`: `no known columns among "data": `,
		`{"e":1,"b":1,"c":1,"d":1,"a":1,"f":1,"g":null}`:                           `among "a", "b", "c", "d", "e" and 1 more`,
		`{"Query":"a","query":"b"}`:                                                `two columns are named "query"`,
		`{"answer":"a","output":"b"}`:                                              `columns "answer" and "output" could both be the response: rename one to "response"`,
		`{"question":"a","problem":"b"}`:                                           "could both be the query",
		`{"query":3,"response":"r"}`:                                               "query: a JSON number where a string belongs",
		`{"query":"q","response":{}}`:                                              "response: a JSON object where a string belongs",
		`{"query":"q","response":[]}`:                                              "response: the list is empty",
		`{"query":"q","response":[null]}`:                                          "response: the list is empty",
		`{"query":"q","history":[["a"]]}`:                                          "history: element 1 is not a pair",
		`{"query":"q","history":"[['a']]"}`:                                        "history: ",
		`{"query":"q","images":["x.png"]}`:                                         `column "images": only text`,
		`{"query":"q","system":1}`:                                                 "system: a JSON number where a string belongs",
		`{"messages":[]}`:                                                          "messages is empty",
		`{"messages":{}}`:                                                          "messages: a JSON object",
		`{"messages":["x"]}`:                                                       "message 1 is not an object",
		`{"messages":[{}]}`:                                                        "message 1: no role",
		`{"messages":[{"role":"narrator"}]}`:                                       `message 1: unknown role "narrator"`,
		`{"messages":[{"role":"user"}]}`:                                           "message 1: no content",
		`{"messages":[{"role":"user","content":null}]}`:                            "message 1: no content",
		`{"messages":[{"role":"user","content":5}]}`:                               "message 1: content: 5 where text belongs",
		`{"messages":[{"role":"user","content":[{"type":"image"}]}]}`:              `a part of type "image"`,
		`{"messages":[{"role":"user","content":"x","loss":true}]}`:                 "message 1: loss in a turn of the user",
		`{"messages":[{"role":"user","content":"x","loss_scale":1}]}`:              "message 1: loss_scale in a turn of the user",
		`{"messages":[{"role":"assistant","content":"x","loss":1}]}`:               "message 1: loss: ",
		`{"messages":[{"role":"assistant","content":"x","loss_scale":2}]}`:         "message 1: loss_scale 2 is not supported",
		`{"messages":[{"role":"user","content":"x","tool_calls":[{"name":"f"}]}]}`: "needs a name and arguments",
		`{"messages":[{"role":"user","content":"x","tool_calls":[{"name":"f","arguments":{}}]}]}`: "tool_calls in a turn of the user",
		`{"messages":[{"role":"tool_call","content":"f()"}]}`:                                     "message 1: ",
		`{"messages":[{"human":"q"}]}`:                                                            "message 1: no role",
		`{"tools":3,"query":"q"}`:                                                                 "tools: ",
		`{"tools":["x"],"query":"q"}`:                                                             "tools: element 1",
		`{"input_ids":[1]}`:                                                                       "input_ids without labels",
		`{"input_ids":[],"labels":[]}`:                                                            "input_ids is empty",
		`{"input_ids":[1,2],"labels":[1]}`:                                                        "2 input_ids but 1 labels",
		`{"input_ids":[1,null],"labels":[1,2]}`:                                                   "input_ids: null at position 1",
		`{"input_ids":[-1],"labels":[1]}`:                                                         "input_ids: -1 at position 0 is no token",
		`{"input_ids":[1],"labels":[-1]}`:                                                         "labels: -1 at position 0 is neither",
		`{"input_ids":[1.5],"labels":[1]}`:                                                        "input_ids: 1.5 at position 0 is no token",
		`{"input_ids":[4294967296],"labels":[1]}`:                                                 "input_ids: 4294967296 at position 0 is no token",
		`{"input_ids":[[1]],"labels":[[1]]}`:                                                      "input_ids: [1] at position 0 is no token",
	} {
		_, err := parse(t, row)
		var fault *RowError
		if !errors.As(err, &fault) || fault.Row != 1 || !strings.Contains(err.Error(), "row.jsonl, row 1: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", row, err, want)
		}
	}
}
