package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"qlora/model/data"
	"qlora/model/infer"
)

// answerLine is a line of the results, as ms-swift writes it.
type answerLine struct {
	Response string        `json:"response"`
	Labels   *string       `json:"labels"` // the row's own answer, null where it has none
	LogProbs any           `json:"logprobs"`
	Messages []messageLine `json:"messages"`
}

type messageLine struct {
	Role    data.Role `json:"role"`
	Content string    `json:"content"`
}

// batch answers the rows of --val_dataset.
func (c *inferCmd) batch(e *env, g *engine, o infer.Options) error {
	questions, err := c.questions(e, g)
	if err != nil {
		return err
	}
	file, done, err := c.resultFile(questions)
	if err != nil {
		return err
	}
	defer file.Close()
	e.logf("results: %s", file.Name())
	if done > 0 {
		e.logf("going on behind row %d of %d", done, len(questions))
	}
	out := &results{file: file, from: done, questions: questions[done:], counter: newCounter(e, "rows", int64(done), int64(len(questions)), rows), echo: io.Discard}
	if c.Stream != nil && *c.Stream {
		out.echo = e.out
	}
	o.First = uint32(done)
	var prompts [][]int32
	for _, q := range out.questions {
		prompts = append(prompts, q.prompt)
		out.texts = append(out.texts, infer.NewText(g.tok.NewStream(true), c.StopWords, nil))
	}
	out.answers = make([]*string, len(prompts))
	_, err = g.generator.Generate(e.ctx, prompts, o, infer.Hooks{
		Token: func(i int, id int32) bool { return out.texts[i].Push(id) },
		Done:  func(i int, _ infer.Answer) error { return out.take(i) },
	})
	out.counter.end()
	if errors.Is(err, context.Canceled) {
		e.logf("interrupted: %d of %d rows have their answers; the same command with --resume true --result_path %s goes on", done+out.written, len(questions), file.Name())
	}
	if err == nil {
		e.logf("%d of %d rows", len(questions), len(questions))
	}
	return errors.Join(err, file.Sync(), file.Close())
}

// questions reads the rows to answer. Those that have no room in the context are left out, and said so.
func (c *inferCmd) questions(e *env, g *engine) ([]question, error) {
	opt, err := c.columnFlags.reading()
	if err != nil {
		return nil, err
	}
	all, dropped, err := readQuestions(c.ValDataset, c.ValDatasetSample, opt, g.chat)
	if err != nil {
		for _, fault := range dropped {
			e.logf("dropped: %v", fault)
		}
		return nil, fmt.Errorf("--val_dataset: %w", err)
	}
	if c.ValDatasetSample > 0 {
		e.logf("notice: --val_dataset_sample %d: the first rows are answered, where ms-swift draws them at random", c.ValDatasetSample)
	}
	fits := all[:0]
	marked := 0
	for _, q := range all {
		if err := g.generator.Fits(q.prompt); err != nil {
			dropped = append(dropped, &data.RowError{File: q.file, Row: q.row, Msg: err.Error()})
			continue
		}
		if q.marked {
			marked++
		}
		fits = append(fits, q)
	}
	for _, fault := range dropped {
		e.logf("dropped: %v", fault)
	}
	if len(fits) == 0 {
		return nil, errors.New("--val_dataset: no row has room for an answer: raise --max_length")
	}
	c.notice(e, "val_dataset", marked)
	return fits, nil
}

// results writes answers in the order of their questions, in which they need not come.
type results struct {
	file      *os.File
	from      int // of all rows
	questions []question
	texts     []*infer.Text
	answers   []*string
	written   int
	counter   *counter
	echo      io.Writer
}

// take writes the answers that have come as far as there is no gap before them. A line is one write, so that a run
// which is killed leaves whole lines and at most one part.
func (r *results) take(i int) error {
	text := r.texts[i].End()
	r.answers[i] = &text
	for ; r.written < len(r.answers) && r.answers[r.written] != nil; r.written++ {
		answer := *r.answers[r.written]
		var line bytes.Buffer
		enc := json.NewEncoder(&line)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r.questions[r.written].line(answer)); err != nil {
			return err
		}
		if _, err := r.file.Write(line.Bytes()); err != nil {
			return fmt.Errorf("--result_path: %w", err)
		}
		fmt.Fprintf(r.echo, "%s\n", answer)
		r.counter.at(int64(r.from + r.written + 1))
	}
	return nil
}

// resultFile makes the file of answers, or opens the one to go on with, and returns how many rows have theirs. It never
// replaces one that is there.
func (c *inferCmd) resultFile(questions []question) (file *os.File, done int, err error) {
	path := c.ResultPath
	if path == "" {
		path = filepath.Join(c.adapterDir(), "infer_result", time.Now().Format("20060102-150405")+".jsonl")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, 0, err
	}
	file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	switch {
	case errors.Is(err, os.ErrExist) && c.Resume:
		return resumeResults(path, questions)
	case errors.Is(err, os.ErrExist):
		return nil, 0, usageError{fmt.Errorf("--result_path %s is there already: choose another, or go on with it by --resume true", path)}
	}
	return file, 0, err
}

// resumeResults opens a file of answers behind its last whole line, and cuts off what a write left that was interrupted.
// Every answer in it must be to the question of its row.
func resumeResults(path string, questions []question) (*os.File, int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	done := 0
	for line := range bytes.Lines(text) {
		var is answerLine
		if err := json.Unmarshal(line, &is); err != nil {
			return nil, 0, usageError{fmt.Errorf("--resume true: %s, line %d is no answer: %w", path, done+1, err)}
		}
		if done >= len(questions) {
			return nil, 0, usageError{fmt.Errorf("--resume true: %s has more lines than there are rows to answer (%d): it is of another dataset", path, len(questions))}
		}
		want := questions[done].line(is.Response)
		if !slices.Equal(is.Messages, want.Messages) {
			return nil, 0, usageError{fmt.Errorf("--resume true: %s, line %d answers another question than %s, row %d asks: it is of another dataset or system prompt", path, done+1, questions[done].file, questions[done].row)}
		}
		done++
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, 0, err
	}
	if err := file.Truncate(int64(len(text))); err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	_, err = file.Seek(int64(len(text)), io.SeekStart)
	return file, done, err
}
