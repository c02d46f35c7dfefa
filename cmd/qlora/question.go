package main

import (
	"errors"
	"fmt"
	"strings"

	"qlora/model/data"
)

// question is a row of a dataset as a prompt, with the answer the row brings.
type question struct {
	file         string
	row          int
	conversation data.Conversation // up to the question
	prompt       []int32
	want         *string // nil: the row ends with the question
	marked       bool    // the row had a place for a name
}

// readQuestions reads the rows of datasets as questions: at most limit of them, 0 for all. Rows that
// cannot be asked are left out, and returned as errors that name them.
func readQuestions(datasets []string, limit int, opt data.Options, chat *data.Chat) (all []question, dropped []error, err error) {
	for ex, err := range data.Chosen(datasets, opt) {
		if limit > 0 && len(all) == limit {
			break
		}
		var fault *data.RowError
		if err != nil && !errors.As(err, &fault) {
			return nil, dropped, err
		}
		if err == nil && ex.IDs != nil {
			err = &data.RowError{File: ex.File, Row: ex.Row, Msg: "token ids are no question"}
		}
		q := question{file: ex.File, row: ex.Row, conversation: ex.Conversation, marked: ex.Marked}
		if err == nil {
			if prompt, answer, ok := q.conversation.SplitLast(); ok {
				q.conversation, q.want = prompt, &answer
			}
			if q.prompt, err = chat.Prompt(q.conversation); err != nil {
				err = &data.RowError{File: ex.File, Row: ex.Row, Msg: err.Error()}
			}
		}
		if err != nil {
			dropped = append(dropped, err)
			continue
		}
		all = append(all, q)
	}
	if len(all) == 0 {
		return nil, dropped, fmt.Errorf("no row of %s can be asked", strings.Join(datasets, ", "))
	}
	return all, dropped, nil
}

// text is the question as a person reads it: the last turn of the user.
func (q *question) text() string {
	messages := q.conversation.Messages
	return messages[len(messages)-1].Content
}

// line is the question with a response.
func (q *question) line(response string) answerLine {
	line := answerLine{Response: response, Labels: q.want}
	if s := q.conversation.System; s != nil {
		line.Messages = append(line.Messages, messageLine{data.System, *s})
	}
	for _, m := range q.conversation.Messages {
		line.Messages = append(line.Messages, messageLine{m.Role, m.Content})
	}
	line.Messages = append(line.Messages, messageLine{data.Assistant, response})
	return line
}
