package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"qlora/model/data"
	"qlora/model/infer"
)

// chat is a conversation on standard input and output.
type chat struct {
	*env
	engine       *engine
	options      infer.Options
	stream       bool
	interactive  bool // standard input is a terminal: prompts are shown
	lines        *bufio.Reader
	multiLine    bool
	conversation data.Conversation
}

func newChat(e *env, g *engine, o infer.Options, stream bool) *chat {
	return &chat{env: e, engine: g, options: o, stream: stream, interactive: isTerminal(e.in), lines: bufio.NewReader(e.in)}
}

const chatHelp = "exit or quit ends the conversation; clear forgets it; reset-system sets a new system prompt; multi-line takes questions that end with #"

// run answers until the input or the user ends the conversation.
func (c *chat) run() error {
	c.show(chatHelp + "\n")
	for {
		text, err := c.read("<<< ")
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch word := strings.ToLower(strings.TrimSpace(text)); word {
		case "exit", "quit":
			return nil
		case "":
		case "clear":
			c.conversation.Messages = nil
		case "multi-line", "single-line":
			c.multiLine = word == "multi-line"
		case "reset-system":
			if err := c.resetSystem(); err != nil {
				return err
			}
		default:
			if err := c.answer(text); err != nil {
				return err
			}
		}
	}
}

// show writes to a person, not to a pipe.
func (c *chat) show(text string) {
	if c.interactive {
		fmt.Fprint(c.err, text)
	}
}

// read returns a question: a line, or in multi-line mode all up to a #. What stands before the end
// of the input counts. io.EOF is the end.
func (c *chat) read(prompt string) (string, error) {
	c.show(prompt)
	var text strings.Builder
	for {
		line, err := c.readLine()
		if err != nil && (!errors.Is(err, io.EOF) || text.Len()+len(line) == 0) {
			return "", err
		}
		ends := !c.multiLine || errors.Is(err, io.EOF)
		line = strings.TrimRight(line, "\r\n")
		if c.multiLine {
			if before, ok := strings.CutSuffix(strings.TrimRight(line, " "), "#"); ok {
				line, ends = before, true
			}
		}
		text.WriteString(line)
		if ends {
			return strings.TrimRight(text.String(), "\n"), nil
		}
		text.WriteByte('\n')
	}
}

// readLine reads a line, or ends when the process is told to.
func (c *chat) readLine() (string, error) {
	type result struct {
		line string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, err := c.lines.ReadString('\n')
		done <- result{line, err}
	}()
	select {
	case r := <-done:
		return r.line, r.err
	case <-c.ctx.Done():
		c.show("\n")
		return "", io.EOF
	}
}

func (c *chat) resetSystem() error {
	system, err := c.read("<<<[system] ")
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c.conversation = data.Conversation{System: &system}
	return nil
}

// answer puts a question and writes the answer. A question that cannot be put is forgotten; the
// conversation goes on.
func (c *chat) answer(text string) error {
	before := len(c.conversation.Messages)
	c.conversation.Messages = append(c.conversation.Messages, data.Message{Role: data.User, Content: text})
	prompt, err := c.engine.chat.Prompt(c.conversation)
	if err != nil {
		return err
	}
	stream := c.engine.tok.NewStream(true)
	var emit func(int, int32)
	if c.stream {
		emit = func(_ int, id int32) { fmt.Fprint(c.out, stream.Push(id)) }
	}
	answers, err := c.engine.generator.Generate(c.ctx, [][]int32{prompt}, c.options, emit)
	switch {
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(c.out, stream.Flush())
		return err
	case err != nil && c.interactive && answers == nil: // the prompt does not fit
		c.logf("qlora: %v", err)
		c.conversation.Messages = c.conversation.Messages[:before]
		return nil
	case err != nil:
		return err
	}
	response := c.engine.tok.DecodeSkipSpecial(answers[0].IDs)
	if c.stream {
		fmt.Fprintln(c.out, stream.Flush())
	} else {
		fmt.Fprintln(c.out, response)
	}
	c.conversation.Messages = append(c.conversation.Messages, data.Message{Role: data.Assistant, Content: response})
	return nil
}
