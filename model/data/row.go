package data

import "encoding/json"

// turnJSON is a turn as a row has it.
type turnJSON struct {
	Role      Role       `json:"role"`
	Content   string     `json:"content"`
	Loss      *bool      `json:"loss,omitempty"`
	ToolCalls []callJSON `json:"tool_calls,omitempty"`
}

type callJSON struct {
	Type     string       `json:"type"`
	Function functionJSON `json:"function"`
}

type functionJSON struct {
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
}

// JSON writes the example as a row of messages, or of token ids, that reads as the same example.
func (ex Example) JSON() ([]byte, error) {
	if ex.IDs != nil {
		return json.Marshal(map[string][]int32{"input_ids": ex.IDs, "labels": ex.Labels})
	}
	row := struct {
		System   *string           `json:"system,omitempty"`
		Tools    []json.RawMessage `json:"tools,omitempty"`
		Messages []turnJSON        `json:"messages"`
	}{ex.Conversation.System, ex.Conversation.Tools, nil}
	for _, m := range ex.Conversation.Messages {
		turn := turnJSON{Role: m.Role, Content: m.Content}
		if m.Masked || m.Trained {
			turn.Loss = &m.Trained
		}
		for _, call := range m.ToolCalls {
			turn.ToolCalls = append(turn.ToolCalls, callJSON{"function", functionJSON(call)})
		}
		row.Messages = append(row.Messages, turn)
	}
	return json.Marshal(row)
}
