package data

import (
	"errors"
	"fmt"
	"slices"
)

// Chat writes conversations as token ids, by a template and a tokenizer, the way ms-swift
// does:
//
//   - The system turn is the row's own, else the template's default, which --system replaces.
//     An empty system, from either, means no system turn.
//   - Turns of the same speaker in a row are joined; a conversation that opens with the
//     assistant gets an empty user's turn before it; user and assistant then alternate.
//   - Each stretch of text between control tokens is tokenised on its own, and so is the
//     assistant's text: no merge reaches from the prompt into a response.
//   - Trained on are the response, the <|im_end|> and the line end after it, of every
//     assistant's turn, and nothing else: never the first token, which opens a turn. With
//     LastRound it is the last turn alone.
//
// Control tokens are placed by id. Content that spells one out stays text.
type Chat struct {
	Template  Template
	LastRound bool // ms-swift's loss_scale last_round
	enc       Encoder
	control   map[string]int32
	stop      []int32
}

// NewChat checks that the tokenizer has the control tokens of the template.
func NewChat(t Template, enc Encoder) (*Chat, error) {
	c := &Chat{Template: t, enc: enc, control: map[string]int32{}}
	for _, token := range []string{imStart, imEnd} {
		id, ok := enc.ID(token)
		if !ok {
			return nil, fmt.Errorf("template %s needs the token %s, which the tokenizer lacks", t.Name, token)
		}
		c.control[token] = id
	}
	for _, token := range t.Stop {
		if id, ok := enc.ID(token); ok {
			c.stop = append(c.stop, id)
		}
	}
	return c, nil
}

// StopIDs returns the tokens that end the assistant's turn.
func (c *Chat) StopIDs() []int32 { return slices.Clone(c.stop) }

// Encode returns a conversation's ids (T) and labels (T). One that ends with the user gets
// the opening of an assistant's turn, and no labels there.
func (c *Chat) Encode(conv Conversation) (ids, labels []int32, err error) {
	messages, err := alternate(conv.Messages)
	if err != nil {
		return nil, nil, err
	}
	last := len(messages) - 1
	for i := range messages {
		if m := &messages[i]; c.LastRound && i < last && m.Role == Assistant && !m.Trained {
			m.Masked = true
		}
	}
	generate := messages[last].Role != Assistant
	spans, err := c.Template.spans(c.system(conv), conv.Tools, messages, generate)
	if err != nil {
		return nil, nil, err
	}
	ends := make([]int, len(spans)) // in ids
	for i, s := range spans {
		if s.control {
			ids = append(ids, c.control[s.text])
		} else {
			ids = c.enc.AppendEncode(ids, s.text)
		}
		ends[i] = len(ids)
	}
	ids = slices.Clone(ids) // without room to grow: a dataset is millions of these
	labels = slices.Clone(ids)
	from := 0
	for i, s := range spans {
		if !s.label {
			for j := from; j < ends[i]; j++ {
				labels[j] = Ignore
			}
		}
		from = ends[i]
	}
	return ids, labels, nil
}

// Prompt returns the ids of a conversation that the assistant is to go on with: it ends with
// the opening of its turn.
func (c *Chat) Prompt(conv Conversation) ([]int32, error) {
	if n := len(conv.Messages); n > 0 && conv.Messages[n-1].Role == Assistant {
		return nil, errors.New("the conversation ends with the assistant's turn: there is nothing to answer")
	}
	ids, _, err := c.Encode(conv)
	return ids, err
}

func (c *Chat) system(conv Conversation) *string {
	system := &c.Template.DefaultSystem
	if conv.System != nil {
		system = conv.System
	}
	if *system == "" {
		return nil
	}
	return system
}

// alternate brings messages into turns of user (or tools) and assistant by turns.
func alternate(messages []Message) ([]Message, error) {
	var turns []Message
	for i, m := range messages {
		var last *Message
		if len(turns) > 0 {
			last = &turns[len(turns)-1]
		}
		switch {
		case m.Role == System:
			return nil, fmt.Errorf("message %d: a system turn that is not the first", i+1)
		case m.Role == Tool && (last == nil || last.Role == User):
			return nil, fmt.Errorf("message %d: a tool's result that follows no turn of the assistant", i+1)
		case m.Role == User && last != nil && last.Role == Tool:
			return nil, fmt.Errorf("message %d: the user speaks where the assistant should answer a tool's result", i+1)
		case last == nil && m.Role == Assistant:
			turns = append(turns, Message{Role: User}, m)
		case last == nil || last.Role != m.Role || m.Role == Tool:
			turns = append(turns, m)
		case m.Role == User:
			last.Content += m.Content
		default:
			if err := joinAssistant(last, m); err != nil {
				return nil, fmt.Errorf("message %d: %w", i+1, err)
			}
		}
	}
	if len(turns) == 0 {
		return nil, errors.New("no turns but the system's")
	}
	return turns, nil
}

// joinAssistant adds an assistant's message to the turn it goes on with.
func joinAssistant(turn *Message, m Message) error {
	switch {
	case turn.Masked != m.Masked:
		return errors.New("two messages of one assistant's turn differ in loss")
	case len(turn.ToolCalls) > 0 && m.Content != "":
		return errors.New("the assistant speaks after a tool call that has no result yet")
	}
	turn.Trained = turn.Trained || m.Trained
	turn.Content += m.Content
	turn.ToolCalls = slices.Concat(turn.ToolCalls, m.ToolCalls)
	return nil
}
