package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"qlora/model/data"
	"qlora/model/infer"
)

// chat is a conversation on standard input and output.
type chat struct {
	*env
	engine       *engine
	options      infer.Options
	stops        []string
	stream       bool
	interactive  bool // standard input is a terminal: prompts are shown
	lines        *bufio.Reader
	multiLine    bool
	conversation data.Conversation
	turns        uint32
}

func newChat(e *env, g *engine, o infer.Options, stops []string, stream bool) *chat {
	return &chat{env: e, engine: g, options: o, stops: stops, stream: stream, interactive: isTerminal(e.in), lines: bufio.NewReader(e.in)}
}

const chatHelp = `In a conversation
  /adapter a=0.7 b=0.3   use so much of each adapter, and none of the others (/adapter a is a=1)
  /base                  use the base alone
  /adapters              list the adapters and what is used of them
  /system TEXT           another system prompt, and a new conversation (/system alone shows it)
  /reset, /clear         forget the conversation
  /multi, /single        questions of several lines, which end with #, and back
  /help, /exit
A question that begins with a command gets a space before it. ms-swift's words do the same: clear,
reset-system, multi-line, single-line, exit and quit.
`

// commandWord is a word that is not a question.
var commandWord = regexp.MustCompile(`^/[a-z_-]+$`)

// commandWords are ms-swift's commands.
var commandWords = []string{"exit", "quit", "clear", "multi-line", "single-line", "reset-system"}

var errExit = errors.New("exit")

// run answers until the input or the user ends the conversation.
func (c *chat) run() error {
	c.show("/help lists the commands, /exit ends the conversation\n")
	for {
		text, err := c.read("<<< ")
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch err := c.take(text); {
		case errors.Is(err, errExit):
			return nil
		case err != nil && c.interactive && isA[sayAgain](err):
			c.logf("%v", err)
		case err != nil:
			return err
		}
	}
}

// sayAgain is the error of a line that a person can put better; the conversation goes on. In a pipe it ends the program.
type sayAgain struct{ error }

func (e sayAgain) Unwrap() error { return e.error }

// take does what a line asks for.
func (c *chat) take(text string) error {
	word, rest, _ := strings.Cut(strings.TrimRight(text, " \t\r\n"), " ")
	if rest = strings.TrimSpace(rest); rest == "" {
		switch strings.ToLower(strings.TrimSpace(word)) {
		case "":
			if strings.TrimSpace(text) == "" {
				return nil
			}
		case "exit", "quit":
			return errExit
		case "clear":
			return c.do("/clear", "")
		case "multi-line", "single-line":
			c.multiLine = strings.EqualFold(strings.TrimSpace(word), "multi-line")
			return nil
		case "reset-system":
			return c.resetSystem()
		}
	}
	if commandWord.MatchString(word) && !strings.Contains(rest, "\n") {
		return c.do(word, rest)
	}
	if strings.HasPrefix(text, " /") {
		text = text[1:]
	}
	return c.answer(text)
}

// do runs a command.
func (c *chat) do(word, rest string) error {
	switch word {
	case "/exit", "/quit":
		return errExit
	case "/help":
		fmt.Fprint(c.err, chatHelp)
	case "/reset", "/clear":
		c.conversation.Messages = nil
	case "/multi", "/single":
		c.multiLine = word == "/multi"
	case "/system":
		c.system(rest)
	case "/adapters":
		return c.adapters()
	case "/base", "/adapter":
		return c.adapter(word, strings.FieldsFunc(rest, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }))
	default:
		return sayAgain{usageError{fmt.Errorf("%s is no command: /help lists them; to ask it, put a space before it", word)}}
	}
	return nil
}

func (c *chat) system(text string) {
	if text != "" {
		c.conversation = data.Conversation{System: &text}
		return
	}
	system := c.engine.chat.Template.DefaultSystem
	if c.conversation.System != nil {
		system = *c.conversation.System
	}
	c.logf("system: %s", system)
}

func (c *chat) adapters() error {
	if c.engine.blend == nil {
		return sayAgain{usageError{errors.New("there are no adapters: start with --adapters")}}
	}
	for i, a := range c.engine.blend.Adapters {
		c.logf("%d  %s  weight %g, rank %d, %d modules", i+1, a.Name, c.engine.weights[i], a.Set.Config.R, a.Set.Modules())
	}
	return nil
}

// adapter changes how much of each adapter is in use. The conversation stays: only what comes is answered otherwise.
func (c *chat) adapter(word string, mix []string) error {
	g := c.engine
	switch {
	case g.blend == nil && word == "/base":
		return nil
	case g.blend == nil:
		return c.adapters()
	case word == "/adapter" && len(mix) == 0:
		return c.adapters()
	}
	weights := make([]float64, len(g.weights))
	if word == "/adapter" {
		var err error
		if weights, err = parseMixture(g.blend.Adapters, mix); err != nil {
			return sayAgain{usageError{err}}
		}
	}
	begun := time.Now()
	if err := g.use(weights); err != nil {
		return sayAgain{usageError{err}}
	}
	c.logf("adapters: %s (%d ms)", mixture(g.blend.Adapters, weights), time.Since(begun).Milliseconds())
	return nil
}

// show writes to a person, not to a pipe.
func (c *chat) show(text string) {
	if c.interactive {
		fmt.Fprint(c.err, text)
	}
}

// read returns a question: a line, or in multi-line mode all up to a #, unless the first line is a command. What stands
// before the end of the input counts. io.EOF is the end.
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
		if first, _, _ := strings.Cut(line, " "); text.Len() == 0 && (commandWord.MatchString(first) || slices.Contains(commandWords, strings.ToLower(line))) {
			return line, nil
		}
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
func (c *chat) answer(question string) error {
	before := len(c.conversation.Messages)
	c.conversation.Messages = append(c.conversation.Messages, data.Message{Role: data.User, Content: question})
	prompt, err := c.engine.chat.Prompt(c.conversation)
	if err != nil {
		return err
	}
	var show func(string)
	if c.stream {
		show = func(piece string) { fmt.Fprint(c.out, piece) }
	}
	text := infer.NewText(c.engine.tok.NewStream(true), c.stops, show)
	begun := time.Now()
	c.options.First = c.turns
	answers, err := c.engine.generator.Generate(c.ctx, [][]int32{prompt}, c.options, infer.Hooks{Token: func(_ int, id int32) bool { return text.Push(id) }})
	if isA[*infer.TooLong](err) {
		c.conversation.Messages = c.conversation.Messages[:before]
		return sayAgain{usageError{errors.Unwrap(err)}}
	}
	response := text.End()
	switch {
	case errors.Is(err, context.Canceled) && !c.stream: // what there is of the answer
		return err
	case c.stream:
		fmt.Fprintln(c.out)
	case err == nil:
		fmt.Fprintln(c.out, response)
	}
	if err != nil {
		return err
	}
	c.turns++
	n := len(answers[0].IDs)
	switch answers[0].Reason {
	case infer.Full:
		c.logf("the context of %d tokens is full, so the answer ends here: /reset forgets the conversation, --max_length makes more room", c.engine.generator.Context())
	case infer.Length:
		c.show(fmt.Sprintf("[--max_new_tokens %d reached]\n", n))
	}
	c.show(fmt.Sprintf("[%d tokens, %.1f a second]\n", n, float64(n)/time.Since(begun).Seconds()))
	c.conversation.Messages = append(c.conversation.Messages, data.Message{Role: data.Assistant, Content: response})
	return nil
}
