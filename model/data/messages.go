package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"qlora/internal/strictjson"
)

// roles are the names of the roles, ms-swift's synonyms included; "-" counts as "_".
var roles = map[string]Role{
	"system": System,
	"user":   User, "human": User,
	"assistant": Assistant, "gpt": Assistant, "bot": Assistant,
	"tool": Tool, "tool_response": Tool, "function_response": Tool, "observation": Tool, "observations": Tool,
}

// callRoles are the roles of a message that is one tool call.
var callRoles = map[string]bool{"tool_call": true, "function_call": true}

// readMessages reads a list of messages into conv, whose first one wins over the system of
// the row's own column.
func readMessages(raw json.RawMessage, conv *Conversation) error {
	var list []json.RawMessage
	if err := decode(raw, &list); err != nil {
		return fmt.Errorf("messages: %w", err)
	}
	if len(list) == 0 {
		return errors.New("messages is empty")
	}
	for i, raw := range list {
		members, err := object(raw)
		if err != nil {
			return fmt.Errorf("message %d is not an object", i+1)
		}
		turns, err := readMessage(members)
		if err != nil {
			return fmt.Errorf("message %d: %w", i+1, err)
		}
		conv.Messages = append(conv.Messages, turns...)
	}
	if first := conv.Messages[0]; first.Role == System {
		conv.System = &first.Content
		conv.Messages = conv.Messages[1:]
	}
	return nil
}

// object returns the members of what must be one.
func object(raw []byte) ([]strictjson.Member, error) {
	o, err := strictjson.Parse(raw, maxRowBytes)
	if err != nil {
		return nil, err
	}
	return o.Members(maxColumns)
}

// readMessage reads {role, content}, or ShareGPT's pair {human, assistant}.
func readMessage(members []strictjson.Member) ([]Message, error) {
	m, err := newColumns(members, nil)
	if err != nil {
		return nil, err
	}
	role, err := m.text([]string{"role", "from"})
	if err != nil {
		return nil, err
	}
	if role == nil {
		return readPair(m)
	}
	msg := Message{Role: roles[strings.ReplaceAll(*role, "-", "_")]}
	content, err := m.pick([]string{"content", "value"})
	if err != nil {
		return nil, err
	}
	if callRoles[strings.ReplaceAll(*role, "-", "_")] {
		msg.Role = Assistant
		call, err := toolCall(content)
		if err != nil {
			return nil, err
		}
		msg.ToolCalls = []ToolCall{call}
	} else if msg.Role == "" {
		return nil, fmt.Errorf("unknown role %q: use system, user, assistant or tool", *role)
	} else {
		if msg.ToolCalls, err = toolCalls(m["tool_calls"]); err != nil {
			return nil, err
		}
		if msg.Content, err = contentText(content, msg.Role); err != nil && (content != nil || msg.ToolCalls == nil) {
			return nil, err
		}
	}
	if msg.ToolCalls != nil && msg.Role != Assistant {
		return nil, fmt.Errorf("tool_calls in a turn of the %s", msg.Role)
	}
	if err := msg.readLoss(m); err != nil {
		return nil, err
	}
	return []Message{msg}, nil
}

// readLoss says whether the turn is trained on: not where either of its keys says so, as in ms-swift.
func (m *Message) readLoss(keys columns) error {
	loss, scale := true, 1.0
	for _, key := range []struct {
		name string
		into any
	}{{"loss", &loss}, {"loss_scale", &scale}} {
		raw, ok := keys[key.name]
		if !ok {
			continue
		}
		if err := decode(raw, key.into); err != nil {
			return fmt.Errorf("%s: %w", key.name, err)
		}
		if scale != 0 && scale != 1 {
			return fmt.Errorf("loss_scale %v is not supported: a turn is trained on, 1, or not, 0", scale)
		}
		if m.Role != Assistant && loss && scale == 1 {
			return fmt.Errorf("%s in a turn of the %s: only the assistant's turns can be trained on", key.name, m.Role)
		}
	}
	m.Masked = m.Role == Assistant && (!loss || scale == 0)
	m.Trained = m.Role == Assistant && !m.Masked && keys["loss"] != nil
	return nil
}

func readPair(m columns) ([]Message, error) {
	user, err := m.text([]string{"user", "human"})
	if err != nil {
		return nil, err
	}
	assistant, err := m.text([]string{"assistant", "gpt", "bot"})
	if err != nil {
		return nil, err
	}
	if user == nil || assistant == nil {
		return nil, errors.New("no role: a message is {role, content} or {human, assistant}")
	}
	return []Message{{Role: User, Content: *user}, {Role: Assistant, Content: *assistant}}, nil
}

// contentText reads the content of a message: a string, or a list of parts of type text.
// A tool's result may be any JSON.
func contentText(raw json.RawMessage, role Role) (string, error) {
	switch {
	case raw == nil:
		return "", errors.New("no content")
	case raw[0] == '"':
		var s string
		err := decode(raw, &s)
		return s, err
	case role == Tool:
		text, err := appendPythonJSON(nil, raw)
		return string(text), err
	case raw[0] != '[':
		return "", fmt.Errorf("content: %.20s where text belongs", raw)
	}
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if err := decode(raw, &parts); err != nil {
		return "", fmt.Errorf("content: %w", err)
	}
	var text strings.Builder
	for _, part := range parts {
		if part.Type != "text" || part.Text == nil {
			return "", fmt.Errorf("content: a part of type %q: only text can be trained on", part.Type)
		}
		text.WriteString(*part.Text)
	}
	return text.String(), nil
}

// tools reads the descriptions of tools: a list of objects or of JSON in strings. A bare
// function is wrapped as ms-swift does it.
func tools(raw json.RawMessage) ([]json.RawMessage, error) {
	if raw == nil || string(raw) == `""` {
		return nil, nil
	}
	var list []json.RawMessage
	if err := decode(raw, &list); err != nil {
		return nil, fmt.Errorf("tools: %w", err)
	}
	for i := range list {
		if err := decode(list[i], &list[i]); err != nil {
			return nil, fmt.Errorf("tools: element %d: %w", i+1, err)
		}
		members, err := object(list[i])
		if err != nil {
			return nil, fmt.Errorf("tools: element %d is not an object", i+1)
		}
		bare := true
		for _, m := range members {
			bare = bare && m.Key != "type" && m.Key != "function"
		}
		if bare {
			list[i] = fmt.Appendf(nil, `{"type": "function", "function": %s}`, list[i])
		}
	}
	return list, nil
}

// toolCalls reads the tool_calls of an assistant's message, in OpenAI's form.
func toolCalls(raw json.RawMessage) ([]ToolCall, error) {
	if raw == nil {
		return nil, nil
	}
	var list []json.RawMessage
	if err := decode(raw, &list); err != nil {
		return nil, fmt.Errorf("tool_calls: %w", err)
	}
	var calls []ToolCall
	for i, raw := range list {
		call, err := toolCall(raw)
		if err != nil {
			return nil, fmt.Errorf("tool_calls: element %d: %w", i+1, err)
		}
		calls = append(calls, call)
	}
	return calls, nil
}

// toolCall reads {name, arguments}, perhaps inside {function: ...}.
func toolCall(raw json.RawMessage) (ToolCall, error) {
	var call struct {
		Function   json.RawMessage `json:"function"`
		Name       *string         `json:"name"`
		Arguments  json.RawMessage `json:"arguments"`
		Parameters json.RawMessage `json:"parameters"`
	}
	if raw == nil {
		return ToolCall{}, errors.New("a tool call without content")
	}
	if err := decode(raw, &call); err != nil {
		return ToolCall{}, err
	}
	if call.Function != nil {
		return toolCall(call.Function)
	}
	if call.Arguments == nil {
		call.Arguments = call.Parameters
	}
	if call.Name == nil || call.Arguments == nil {
		return ToolCall{}, errors.New("a tool call needs a name and arguments")
	}
	if call.Arguments[0] == '"' { // OpenAI's form: JSON in a string, or else a plain string
		var inner string
		if json.Unmarshal(call.Arguments, &inner) == nil && json.Valid([]byte(inner)) {
			call.Arguments = json.RawMessage(inner)
		}
	}
	return ToolCall{*call.Name, call.Arguments}, nil
}
