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
	lossFlags
	Dataset        []string `name:"dataset" group:"Data" sep:"none" placeholder:"DATA..." help:"Datasets, as described above."`
	DatasetShuffle bool     `name:"dataset_shuffle" group:"Data" default:"true" help:"Rows of a dataset with a count are chosen at random; else the first."`
	DataSeed       uint64   `name:"data_seed" group:"Data" default:"42" help:"Seed of the choice of rows."`
	Row            int      `name:"row" group:"Report" help:"Print the tokens and the mask of this row of the first dataset (line of a .jsonl or .txt file, element of a .json array, record of a table; from 1)."`
	JSON           bool     `name:"json" group:"Report" help:"Print one JSON object."`
}

// rowFlags say how rows become samples, in training as in checking.
type rowFlags struct {
	columnFlags
	MaxLength  int    `name:"max_length" group:"Data" help:"Tokens of a sample at most. By default what the model was made for."`
	Truncation string `name:"truncation_strategy" group:"Data" default:"delete" placeholder:"NAME" help:"What becomes of a longer row: delete, left or right (the end that is cut off)."`
	Strict     bool   `name:"strict" group:"Data" help:"A row that cannot be used ends the run. Otherwise it is left out, and reported by file and row."`
}

// lossFlags say what of a row is trained on.
type lossFlags struct {
	LossScale string `name:"loss_scale" group:"Data" default:"default" placeholder:"NAME" help:"Turns of the assistant that are trained on: default, all of them, or last_round, the last. \"loss\" in a message goes before it."`
}

func (f *lossFlags) apply(b *base) error {
	b.chat.LastRound = f.LossScale == "last_round"
	if !b.chat.LastRound && f.LossScale != "default" {
		return usageError{fmt.Errorf("--loss_scale %s: known but not supported: choose default or last_round; \"loss\": false in a message leaves one out", f.LossScale)}
	}
	return nil
}

// columnFlags say how rows are read.
type columnFlags struct {
	Columns     string   `name:"columns" group:"Data" placeholder:"JSON" help:"New names of columns, as in '{\"a\": \"query\", \"b\": \"response\"}'."`
	ModelName   []string `name:"model_name" group:"Data" sep:"none" placeholder:"NAME..." help:"Put in place of {{NAME}} in queries and responses. Of two values the first is for rows whose column tag is zh (without that column, for rows in Chinese), the second for the others."`
	ModelAuthor []string `name:"model_author" group:"Data" sep:"none" placeholder:"NAME..." help:"Put in place of {{AUTHOR}}, likewise."`
}

// reading returns how rows are read.
func (f *columnFlags) reading() (data.Options, error) {
	names, err := data.NewNames(f.ModelName, f.ModelAuthor)
	if err != nil {
		return data.Options{}, usageError{err}
	}
	columns, err := data.ParseColumns(cmp.Or(f.Columns, "{}"))
	if err != nil {
		return data.Options{}, usageError{fmt.Errorf("--columns: %w", err)}
	}
	return data.Options{Columns: columns, Names: names}, nil
}

// notice says where names were given for nothing, or rows wait for them; marked rows have a place for one.
func (f *columnFlags) notice(e *env, flag string, marked int) {
	named := len(f.ModelName)+len(f.ModelAuthor) > 0
	switch {
	case flag != "val_dataset" && named && marked == 0:
		e.logf("notice: --%s: no row holds {{NAME}} or {{AUTHOR}}, so --model_name and --model_author change nothing", flag)
	case !named && marked > 0:
		e.logf("notice: --%s: %d rows hold {{NAME}} or {{AUTHOR}}, which stay as they are: give --model_name and --model_author", flag, marked)
	}
}

func (dataCmd) Help() string {
	return `A dataset is [hf::|ms::]NAME[:SUBSET/SUBSET][#COUNT]. NAME is a file (.jsonl, .json, .csv, .parquet, .txt),
a folder of them, a hub's org/name that its downloader has put into the local cache, or
builtin:self-cognition. With a count, so many rows that can be used are taken at random; more than
there are repeat them. What ms-swift's rules leave open, which rows those are, differs from it.

Examples
  qlora data --model Qwen/Qwen2.5-0.5B-Instruct --dataset self_cognition.json
  qlora data --model model.gguf --dataset a.jsonl 'b.csv#500' --max_length 2048
  qlora data --model model.gguf --dataset builtin:self-cognition --row 3`
}

// options returns how rows become samples of a model.
func (f *rowFlags) options(b *base) (data.Options, error) {
	if f.MaxLength < 0 {
		return data.Options{}, usageError{fmt.Errorf("--max_length %d: must be positive", f.MaxLength)}
	}
	switch data.Truncation(f.Truncation) {
	case data.Delete, data.Left, data.Right:
	default:
		return data.Options{}, usageError{fmt.Errorf("--truncation_strategy %s: choose delete, left or right", f.Truncation)}
	}
	opt, err := f.columnFlags.reading()
	opt.MaxLength = cmp.Or(f.MaxLength, b.Config.MaxPositionEmbeddings)
	opt.Truncation, opt.Strict, opt.Vocab = data.Truncation(f.Truncation), f.Strict, b.Config.VocabSize
	return opt, err
}

// load reads datasets, the values of a flag, and says what was left out or shortened.
func (f *rowFlags) load(e *env, b *base, flag string, datasets []string) (data.Samples, error) {
	opt, err := f.options(b)
	if err != nil {
		return nil, err
	}
	var end func()
	opt.Progress, end = rowsRead(e)
	samples, report, err := data.Load(datasets, b.chat, opt)
	end()
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	f.logReport(e, flag, report)
	return samples, nil
}

// rowsRead shows how far datasets have been read, one counter after the other; end clears the line of the last.
func rowsRead(e *env) (at func(what string, done, total int), end func()) {
	shown := &counter{}
	at = func(what string, done, total int) {
		if shown.what != what {
			shown.end()
			shown = newCounter(e, what, 0, int64(total), rows)
		}
		shown.at(int64(done))
	}
	return at, func() { shown.end() }
}

// logReport says what became of the rows of a flag's datasets.
func (f *rowFlags) logReport(e *env, flag string, r *data.Report) {
	for _, notice := range r.Notices {
		e.logf("notice: %s", notice)
	}
	f.notice(e, flag, r.Marked)
	logIssues(e, r)
}

func (c *dataCmd) Run(e *env) error {
	if len(c.Dataset) == 0 {
		return usageError{errors.New("--dataset is missing: write `--dataset` and one or more files")}
	}
	if err := c.restore(e); err != nil {
		return err
	}
	b, err := c.open(e)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := c.apply(b); err != nil {
		return err
	}
	opt, err := c.options(b)
	if err != nil {
		return err
	}
	if c.Row != 0 {
		return c.showRow(e, b, opt)
	}
	opt.Shuffle, opt.Seed = c.DatasetShuffle, c.DataSeed
	var end func()
	opt.Progress, end = rowsRead(e)
	samples, report, err := data.Load(c.Dataset, b.chat, opt)
	end()
	if err != nil {
		return fmt.Errorf("--dataset: %w", err)
	}
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
	c.logReport(e, "dataset", report)
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
	for ex, err := range data.Rows(dataset, opt) {
		var fault *data.RowError
		switch isFault := errors.As(err, &fault); {
		case err != nil && !isFault:
			return data.Sample{}, fmt.Errorf("--dataset: %w", err)
		case ex.Row != row:
			continue
		case err != nil:
			return data.Sample{}, err
		}
		return chat.Sample(ex)
	}
	return data.Sample{}, usageError{fmt.Errorf("--row %d: %s has no such row", row, dataset)}
}

// newTable begins a table on standard output.
func newTable(e *env, header ...string) *tablewriter.Table {
	return tablewriter.NewTable(e.out,
		tablewriter.WithHeaderAutoFormat(tw.Off),
		tablewriter.WithHeader(header),
		tablewriter.WithRowAutoWrap(tw.WrapNone))
}

// writeJSON prints one value, indented.
func writeJSON(e *env, v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
