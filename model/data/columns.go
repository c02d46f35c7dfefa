package data

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"qlora/internal/strictjson"
)

// The columns that rows are recognised by, and what ms-swift takes for the same thing.
// A row may bring the first name beside others, which then lose; of the others it may bring
// only one. Upper and lower case are the same.
var (
	messagesColumn = []string{"messages", "conversation", "conversations"}
	systemColumn   = []string{"system", "system_prompt"}
	queryColumn    = []string{"query", "prompt", "input", "instruction", "question", "problem"}
	responseColumn = []string{"response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion", "content"}
)

// mediaColumns hold what a language model cannot read.
var mediaColumns = []string{"images", "image", "videos", "video", "audios", "audio"}

// maxColumns bounds the columns of a row, and the keys of a message.
const maxColumns = 4096

// columns are the values of a row that are not null, by name in lower case.
type columns map[string]json.RawMessage

// ParseColumns reads the new names of columns, as Options takes them: a JSON object such as
// {"a": "query", "b": "response"}.
func ParseColumns(text string) (map[string]string, error) {
	o, err := strictjson.Parse([]byte(text), 1<<20)
	if err != nil {
		return nil, err
	}
	members, err := o.Members(maxColumns)
	if err != nil {
		return nil, err
	}
	rename, taken := map[string]string{}, map[string]string{}
	for _, m := range members {
		var to string
		if err := decode(m.Raw, &to); err != nil || to == "" {
			return nil, fmt.Errorf("%q: no name, %s", m.Key, m.Raw)
		}
		from, name := strings.ToLower(m.Key), strings.ToLower(to)
		if other, twice := taken[name]; twice {
			return nil, fmt.Errorf("%q and %q both become %q", other, m.Key, to)
		}
		if _, twice := rename[from]; twice {
			return nil, fmt.Errorf("%q is renamed twice", m.Key)
		}
		rename[from], taken[name] = name, m.Key
	}
	return rename, nil
}

// newColumns takes a row's columns under their new names.
func newColumns(members []strictjson.Member, rename map[string]string) (columns, error) {
	cols := make(columns, len(members))
	for _, m := range members {
		name := strings.ToLower(m.Key)
		if to, ok := rename[name]; ok {
			name = to
		}
		if _, twice := cols[name]; twice {
			return nil, fmt.Errorf("two columns are named %q", name)
		}
		if string(m.Raw) != "null" {
			cols[name] = m.Raw
		}
	}
	return cols, nil
}

// pick returns the value of the column that goes by one of names, nil if there is none.
func (c columns) pick(names []string) (json.RawMessage, error) {
	if value, ok := c[names[0]]; ok {
		return value, nil
	}
	found := ""
	for _, name := range names[1:] {
		if _, ok := c[name]; !ok {
			continue
		}
		if found != "" {
			return nil, fmt.Errorf("columns %q and %q could both be the %s: rename one to %q", found, name, names[0], names[0])
		}
		found = name
	}
	if found == "" {
		return nil, nil
	}
	return c[found], nil
}

// example reads a row into ex by the columns it has.
func (c columns) example(ex *Example) error {
	for _, name := range mediaColumns {
		if v := string(c[name]); v != "" && v != "[]" && v != `""` {
			return fmt.Errorf("column %q: only text can be trained on", name)
		}
	}
	if _, ok := c["input_ids"]; ok {
		return c.tokens(ex)
	}
	var err error
	if string(c["tag"]) != "" && c["tag"][0] == '"' {
		if ex.Tag, err = c.text([]string{"tag"}); err != nil {
			return err
		}
	}
	if ex.Conversation.System, err = c.text(systemColumn); err != nil {
		return err
	}
	if ex.Conversation.Tools, err = tools(c["tools"]); err != nil {
		return err
	}
	messages, err := c.pick(messagesColumn)
	if err != nil {
		return err
	}
	if messages != nil {
		return readMessages(messages, &ex.Conversation)
	}
	return c.queryResponse(&ex.Conversation)
}

// queryResponse reads a row of one question and answer, perhaps after a history of others.
func (c columns) queryResponse(conv *Conversation) error {
	query, err := c.query()
	if err != nil {
		return err
	}
	response, err := c.response()
	if err != nil {
		return err
	}
	var history [][]*string
	if raw, ok := c["history"]; ok && string(raw) != `""` {
		if err := decode(raw, &history); err != nil {
			return fmt.Errorf("history: %w", err)
		}
	}
	for i, turn := range append(history, []*string{query, response}) {
		if len(turn) != 2 {
			return fmt.Errorf("history: element %d is not a pair of query and response", i+1)
		}
		if turn[0] != nil {
			conv.Messages = append(conv.Messages, Message{Role: User, Content: *turn[0]})
		}
		if turn[1] != nil {
			conv.Messages = append(conv.Messages, Message{Role: Assistant, Content: *turn[1]})
		}
	}
	if len(conv.Messages) == 0 {
		return fmt.Errorf("no known columns%s: a row needs messages, instruction and output, query and response, or input_ids and labels", c.among())
	}
	return nil
}

// among names some of the columns there are.
func (c columns) among() string {
	const most = 5
	names := slices.Sorted(maps.Keys(c))
	if len(names) == 0 {
		return ""
	}
	text := " among "
	for i, name := range names[:min(len(names), most)] {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%.40q", name)
	}
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// query returns the user's text: alpaca's instruction and input are joined by a line end.
func (c columns) query() (*string, error) {
	if !c.alpaca() {
		return c.text(queryColumn)
	}
	instruction, err := c.text([]string{"instruction"})
	if err != nil {
		return nil, err
	}
	input, err := c.text([]string{"input"})
	if err != nil {
		return nil, err
	}
	switch {
	case *instruction == "":
		return input, nil
	case *input == "":
		return instruction, nil
	}
	joined := *instruction + "\n" + *input
	return &joined, nil
}

func (c columns) alpaca() bool { return c["instruction"] != nil && c["input"] != nil }

// response returns the assistant's text: the first of a list.
func (c columns) response() (*string, error) {
	names := responseColumn
	if c.alpaca() && c["output"] != nil {
		names = []string{"output"}
	}
	raw, err := c.pick(names)
	if err != nil || raw == nil {
		return nil, err
	}
	if raw[0] == '[' {
		var list []*string
		if err := decode(raw, &list); err != nil {
			return nil, fmt.Errorf("%s: %w", names[0], err)
		}
		if len(list) == 0 || list[0] == nil {
			return nil, fmt.Errorf("%s: the list is empty", names[0])
		}
		return list[0], nil
	}
	return c.text(names)
}

// text returns the string in the column that goes by one of names, nil if there is none.
func (c columns) text(names []string) (*string, error) {
	raw, err := c.pick(names)
	if err != nil || raw == nil {
		return nil, err
	}
	var s string
	if err := decode(raw, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", names[0], err)
	}
	return &s, nil
}

// tokens reads a pre-tokenised row.
func (c columns) tokens(ex *Example) error {
	var err error
	if ex.IDs, err = ids(c["input_ids"]); err != nil {
		return fmt.Errorf("input_ids: %w", err)
	}
	if c["labels"] == nil {
		return errors.New("input_ids without labels: give -100 where a token is not trained on")
	}
	if ex.Labels, err = ids(c["labels"]); err != nil {
		return fmt.Errorf("labels: %w", err)
	}
	switch {
	case len(ex.IDs) == 0:
		return errors.New("input_ids is empty")
	case len(ex.IDs) != len(ex.Labels):
		return fmt.Errorf("%d input_ids but %d labels", len(ex.IDs), len(ex.Labels))
	}
	for i, id := range ex.IDs {
		if id < 0 {
			return fmt.Errorf("input_ids: %d at position %d is no token", id, i)
		}
		if label := ex.Labels[i]; label < 0 && label != Ignore {
			return fmt.Errorf("labels: %d at position %d is neither a token nor %d", label, i, Ignore)
		}
	}
	return nil
}

func ids(raw json.RawMessage) ([]int32, error) {
	var list idList
	err := decode(raw, &list)
	return list, err
}

// idList is a list of whole numbers. encoding/json would read null as 0.
type idList []int32

func (l *idList) UnmarshalJSON(raw []byte) error {
	inner, ok := bytes.CutPrefix(raw, []byte("["))
	if !ok {
		return fmt.Errorf("%.20s is no list of token ids", raw)
	}
	inner = bytes.TrimSpace(inner[:len(inner)-1])
	if len(inner) == 0 {
		*l = idList{}
		return nil
	}
	*l = make(idList, 0, bytes.Count(inner, []byte(","))+1)
	for text := range bytes.SplitSeq(inner, []byte(",")) {
		text = bytes.TrimSpace(text)
		id, err := strconv.ParseInt(string(text), 10, 32)
		if err != nil {
			return fmt.Errorf("%.20s at position %d is no token", text, len(*l))
		}
		*l = append(*l, int32(id))
	}
	return nil
}

// decode reads a value of a row. Where v is no string a string is read as the JSON, or the
// Python literal, that it holds, as tables of text store lists.
func decode(raw json.RawMessage, v any) error {
	if _, wantText := v.(*string); !wantText && len(raw) > 0 && raw[0] == '"' {
		var inner string
		if err := json.Unmarshal(raw, &inner); err != nil {
			return err
		}
		raw = json.RawMessage(inner)
		if !json.Valid(raw) {
			var err error
			if raw, err = literalJSON(inner); err != nil {
				return fmt.Errorf("the text is neither JSON nor a Python literal: %w", err)
			}
		}
	}
	err := strictjson.Unmarshal(raw, maxRowBytes, v)
	var fault *strictjson.Error
	if errors.As(err, &fault) {
		return errors.New(fault.Msg)
	}
	return err
}
