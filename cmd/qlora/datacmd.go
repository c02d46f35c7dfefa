package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"

	"qlora/model/data"
)

// dataCmd is `qlora data`.
type dataCmd struct {
	modelFlags
	rowFlags
	Dataset []string `name:"dataset" group:"Data" sep:"none" placeholder:"FILE..." help:"Files of type .json or .jsonl, or builtin:self-cognition."`
	Row     int      `name:"row" group:"Report" help:"Print the tokens and the mask of this row of the first dataset (line of a .jsonl file, element of a .json array; from 1)."`
	JSON    bool     `name:"json" group:"Report" help:"Print one JSON object."`
}

// rowFlags say how rows become samples, in training as in checking.
type rowFlags struct {
	MaxLength   int      `name:"max_length" group:"Data" help:"Tokens of a sample at most. By default what the model was made for."`
	Truncation  string   `name:"truncation_strategy" group:"Data" default:"delete" placeholder:"NAME" help:"What becomes of a longer row: delete, left or right (the end that is cut off)."`
	Strict      bool     `name:"strict" group:"Data" help:"A row that cannot be used ends the run. Otherwise it is left out, and reported by file and row."`
	ModelName   []string `name:"model_name" group:"Data" sep:"none" placeholder:"NAME..." help:"Put in place of {{NAME}} in queries and responses. A second value is for rows without Chinese."`
	ModelAuthor []string `name:"model_author" group:"Data" sep:"none" placeholder:"NAME..." help:"Put in place of {{AUTHOR}}, likewise."`
}

func (dataCmd) Help() string {
	return `Examples
  qlora data --model Qwen/Qwen2.5-0.5B-Instruct --dataset self_cognition.json
  qlora data --model model.gguf --dataset a.jsonl b.jsonl --max_length 2048
  qlora data --model model.gguf --dataset builtin:self-cognition --row 3`
}

// options returns how rows become samples of a model, and the names that edit them.
func (f *rowFlags) options(b *base) (data.Options, *identity, error) {
	if f.MaxLength < 0 {
		return data.Options{}, nil, usageError{fmt.Errorf("--max_length %d: must be positive", f.MaxLength)}
	}
	switch data.Truncation(f.Truncation) {
	case data.Delete, data.Left, data.Right:
	default:
		return data.Options{}, nil, usageError{fmt.Errorf("--truncation_strategy %s: choose delete, left or right", f.Truncation)}
	}
	names, err := newIdentity(f.ModelName, f.ModelAuthor)
	if err != nil {
		return data.Options{}, nil, usageError{err}
	}
	return data.Options{
		MaxLength:  cmp.Or(f.MaxLength, b.Config.MaxPositionEmbeddings),
		Truncation: data.Truncation(f.Truncation),
		Strict:     f.Strict,
		Vocab:      b.Config.VocabSize,
		Edit:       names.edit(),
	}, names, nil
}

// load reads datasets, the values of a flag, and says what was left out or shortened.
func (f *rowFlags) load(e *env, b *base, flag string, datasets []string) ([]data.Sample, error) {
	opt, names, err := f.options(b)
	if err != nil {
		return nil, err
	}
	samples, report, err := data.Load(datasets, b.chat, opt)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	if flag == "dataset" {
		names.notice(e)
	}
	logIssues(e, report)
	return samples, nil
}

func (c *dataCmd) Run(e *env) error {
	if len(c.Dataset) == 0 {
		return usageError{errors.New("--dataset is missing: write `--dataset` and one or more files")}
	}
	if err := c.restore(e); err != nil {
		return err
	}
	b, err := c.open()
	if err != nil {
		return err
	}
	defer b.Close()
	opt, names, err := c.options(b)
	if err != nil {
		return err
	}
	if c.Row != 0 {
		return c.showRow(e, b, opt)
	}
	samples, report, err := data.Load(c.Dataset, b.chat, opt)
	if err != nil {
		return fmt.Errorf("--dataset: %w", err)
	}
	names.notice(e)
	lengths, err := data.Lengths(samples)
	if err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(e, struct {
			Template string           `json:"template"`
			System   string           `json:"system"`
			Report   *data.Report     `json:"report"`
			Lengths  data.LengthStats `json:"lengths"`
		}{b.chat.Template.Name, b.chat.Template.DefaultSystem, report, lengths})
	}
	fmt.Fprintf(e.out, "template %s, system %q, at most %d tokens\n", b.chat.Template.Name, b.chat.Template.DefaultSystem, opt.MaxLength)
	if err := reportTable(e, report, lengths); err != nil {
		return err
	}
	logIssues(e, report)
	return nil
}

// reportTable prints what became of the rows, and how long they are.
func reportTable(e *env, r *data.Report, l data.LengthStats) error {
	rows := newTable(e, "rows", "kept", "not usable", "too long", "no label", "shortened")
	if err := rows.Append(r.Rows, r.Kept, r.Invalid.Count, r.TooLong.Count, r.NoLabel.Count, r.Truncated.Count); err != nil {
		return err
	}
	if err := rows.Render(); err != nil {
		return err
	}
	lengths := newTable(e, "tokens", "trained on", "shortest", "median", "90 %", "99 %", "longest", "mean")
	if err := lengths.Append(l.Tokens, l.LabelTokens, l.Min, decimal(l.Median), l.P90, l.P99, l.Max, decimal(l.Mean)); err != nil {
		return err
	}
	return lengths.Render()
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

// logIssues names the rows that were dropped or shortened.
func logIssues(e *env, r *data.Report) {
	for _, t := range []struct {
		what string
		data.Tally
	}{{"dropped", r.Invalid}, {"dropped", r.TooLong}, {"dropped", r.NoLabel}, {"shortened", r.Truncated}} {
		for _, issue := range t.First {
			e.logf("%s: %s", t.what, issue)
		}
		if more := t.Count - len(t.First); more > 0 {
			e.logf("%s: %d more", t.what, more)
		}
	}
}

// showRow prints the tokens of one row, and which of them are trained on.
func (c *dataCmd) showRow(e *env, b *base, opt data.Options) error {
	s, err := findRow(c.Dataset[0], c.Row, b.chat, opt)
	if err != nil {
		return err
	}
	tokens := data.Tokens(s, b.tok.Token)
	if c.JSON {
		return writeJSON(e, struct {
			File   string       `json:"file"`
			Row    int          `json:"row"`
			Tokens []data.Token `json:"tokens"`
		}{s.File, s.Row, tokens})
	}
	t := newTable(e, "position", "id", "text", "trained on")
	for _, tok := range tokens {
		mark := ""
		if tok.Label {
			mark = "x"
		}
		if err := t.Append(tok.Pos, tok.ID, `"`+visible.Replace(tok.Text)+`"`, mark); err != nil {
			return err
		}
	}
	if err := t.Render(); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s, row %d: %d tokens, %d trained on\n", s.File, s.Row, len(tokens), data.LabelTokens([]data.Sample{s}))
	if opt.MaxLength > 0 && len(tokens) > opt.MaxLength {
		e.logf("notice: longer than --max_length %d: --truncation_strategy %s applies in training", opt.MaxLength, c.Truncation)
	}
	return nil
}

// visible spells out the characters that would break a table.
var visible = strings.NewReplacer("\n", `\n`, "\r", `\r`, "\t", `\t`)

// findRow encodes one row of a dataset, whole.
func findRow(dataset string, row int, chat *data.Chat, opt data.Options) (data.Sample, error) {
	for ex, err := range data.Rows(dataset) {
		var fault *data.RowError
		switch isFault := errors.As(err, &fault); {
		case err != nil && !isFault:
			return data.Sample{}, fmt.Errorf("--dataset: %w", err)
		case ex.Row != row:
			continue
		case err != nil:
			return data.Sample{}, err
		case ex.IDs != nil:
			return data.Sample{IDs: ex.IDs, Labels: ex.Labels, File: ex.File, Row: ex.Row}, nil
		}
		if opt.Edit != nil {
			opt.Edit(&ex.Conversation)
		}
		ids, labels, err := chat.Encode(ex.Conversation)
		if err != nil {
			return data.Sample{}, fmt.Errorf("%s, row %d: %w", dataset, row, err)
		}
		return data.Sample{IDs: ids, Labels: labels, File: ex.File, Row: ex.Row}, nil
	}
	return data.Sample{}, usageError{fmt.Errorf("--row %d: %s has no such row", row, dataset)}
}

// newTable begins a table on standard output.
func newTable(e *env, header ...string) *tablewriter.Table {
	return tablewriter.NewTable(e.out,
		tablewriter.WithHeader(header),
		tablewriter.WithHeaderAutoFormat(tw.Off),
		tablewriter.WithRowAutoWrap(tw.WrapNone))
}

// writeJSON prints one value, indented.
func writeJSON(e *env, v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
