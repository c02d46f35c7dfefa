package data

import (
	"encoding/json"
	"fmt"
)

// Role says who speaks in a turn.
type Role string

const (
	System    Role = "system"
	User      Role = "user"
	Assistant Role = "assistant"
	Tool      Role = "tool" // the result of a tool call
)

// Message is one turn of a conversation.
type Message struct {
	Role      Role
	Content   string
	ToolCalls []ToolCall // of the assistant, after its content
	Masked    bool       // an assistant's turn that is not trained on ("loss": false)
	Trained   bool       // one that is, also where Chat.LastRound would leave it out ("loss": true)
}

// ToolCall is an assistant's request to run a tool.
type ToolCall struct {
	Name      string
	Arguments json.RawMessage
}

// Conversation is a row that holds text.
type Conversation struct {
	System   *string           // nil: the template's default; "": no system turn
	Tools    []json.RawMessage // descriptions of the tools on offer, keys in the order of the file
	Messages []Message
}

// SplitLast returns the conversation up to the assistant's last turn, and that turn's text:
// a prompt and its reference answer. ok is false where the conversation does not end so.
func (c Conversation) SplitLast() (prompt Conversation, answer string, ok bool) {
	last := len(c.Messages) - 1
	if last < 0 || c.Messages[last].Role != Assistant {
		return c, "", false
	}
	prompt = c
	prompt.Messages = c.Messages[:last:last]
	return prompt, c.Messages[last].Content, true
}

// Example is one row of a dataset: a conversation, or token ids where the row brings its own.
type Example struct {
	File         string
	Row          int
	Conversation Conversation
	Tag          *string // column tag, the language in ms-swift's self-cognition dataset; nil: none
	Marked       bool    // it had a place for a name
	IDs, Labels  []int32 // of a pre-tokenised row, else nil
}

// A RowError is a fault of one row that leaves the rows around it usable.
type RowError struct {
	File string
	Row  int
	Msg  string
}

func (e *RowError) Error() string { return fmt.Sprintf("%s, row %d: %s", e.File, e.Row, e.Msg) }
