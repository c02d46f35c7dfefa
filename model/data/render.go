package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// span is a stretch of a rendered conversation: a control token, or text that is tokenised
// on its own, so that no merge reaches over its ends.
type span struct {
	text    string
	control bool
	label   bool // trained on
}

// Render writes a conversation as the model's own template does, control tokens spelled out,
// followed by the opening of an assistant's turn if generate is set. It is for reading and
// for comparison: ids are made by Chat, which never makes a control token out of text.
func (t Template) Render(conv Conversation, generate bool) (string, error) {
	system := conv.System
	if system == nil && t.DefaultSystem != "" {
		system = &t.DefaultSystem
	}
	spans, err := t.spans(system, conv.Tools, conv.Messages, generate)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, s := range spans {
		text.WriteString(s.text)
	}
	return text.String(), nil
}

// spans writes a conversation. Without tools, a nil system leaves the system turn out.
func (t Template) spans(system *string, tools []json.RawMessage, messages []Message, generate bool) ([]span, error) {
	var spans []span
	turn := func(text string) {
		spans = append(spans, span{text: imStart, control: true}, span{text: text}, span{text: imEnd, control: true}, span{text: "\n"})
	}
	head, err := t.systemText(system, tools)
	if err != nil {
		return nil, err
	}
	if head != nil {
		turn("system\n" + *head)
	}
	for i := 0; i < len(messages); i++ {
		switch m := messages[i]; m.Role {
		case System, User:
			turn(string(m.Role) + "\n" + m.Content)
		case Assistant:
			response, err := t.response(m)
			if err != nil {
				return nil, err
			}
			label := !m.Masked
			spans = append(spans, span{text: imStart, control: true}, span{text: "assistant\n"},
				span{text: response, label: label}, span{text: imEnd, control: true, label: label}, span{text: "\n", label: label})
		case Tool: // results that follow each other share a user's turn
			if !t.Tools {
				return nil, t.noTools()
			}
			text := "user"
			for ; i < len(messages) && messages[i].Role == Tool; i++ {
				text += "\n<tool_response>\n" + messages[i].Content + "\n</tool_response>"
			}
			i--
			turn(text)
		default:
			return nil, fmt.Errorf("unknown role %q", m.Role)
		}
	}
	if generate {
		spans = append(spans, span{text: imStart, control: true}, span{text: "assistant\n"})
	}
	return spans, nil
}

// systemText returns the text of the system turn, nil for none.
func (t Template) systemText(system *string, tools []json.RawMessage) (*string, error) {
	if len(tools) == 0 {
		return system, nil
	}
	if !t.Tools {
		return nil, t.noTools()
	}
	var text []byte
	if system != nil {
		text = append(text, *system...)
	}
	text = append(text, "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>"...)
	for _, tool := range tools {
		var err error
		if text, err = appendPythonJSON(append(text, '\n'), tool); err != nil {
			return nil, fmt.Errorf("tools: %w", err)
		}
	}
	text = append(text, "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>"...)
	s := string(text)
	return &s, nil
}

// response returns an assistant's text and tool calls, a line each.
func (t Template) response(m Message) (string, error) {
	if len(m.ToolCalls) == 0 {
		return m.Content, nil
	}
	if !t.Tools {
		return "", t.noTools()
	}
	var text []byte
	if m.Content != "" {
		text = append(text, m.Content+"\n"...)
	}
	for i, call := range m.ToolCalls {
		if i > 0 {
			text = append(text, '\n')
		}
		text = append(text, "<tool_call>\n{\"name\": \""+call.Name+"\", \"arguments\": "...)
		var err error
		if text, err = appendPythonJSON(text, call.Arguments); err != nil {
			return "", fmt.Errorf("arguments of tool call %s: %w", call.Name, err)
		}
		text = append(text, "}\n</tool_call>"...)
	}
	return string(text), nil
}

func (t Template) noTools() error {
	return errors.New("template " + t.Name + " has no format for tools")
}
