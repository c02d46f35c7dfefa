package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/renderer"
	"github.com/olekukonko/tablewriter/tw"

	"qlora/internal/curves"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/plan"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// planCmd is `qlora plan`.
type planCmd struct {
	Model       string   `name:"model" group:"Run" default:"qwen2.5-7b" placeholder:"MODEL" help:"A published shape (qwen2.5-0.5b, 1.5b, 3b, 7b, 14b or 32b), or a model as for qlora sft, of which the shape alone is read."`
	QuantMethod string   `name:"quant_method" group:"Run" placeholder:"NAME" help:"bnb: the linear layers in NF4."`
	QuantBits   int      `name:"quant_bits" group:"Run" help:"4, with --quant_method bnb."`
	DoubleQuant bool     `name:"bnb_4bit_use_double_quant" group:"Run" default:"true" help:"Quantise the scales of NF4 too."`
	LoRARank    int      `name:"lora_rank" group:"Run" default:"8" help:"Rank of the adapter."`
	Targets     []string `name:"target_modules" group:"Run" sep:"none" default:"all-linear" placeholder:"NAME..." help:"Modules to adapt: all-linear, or names such as q_proj v_proj."`
	MaxLength   int      `name:"max_length" group:"Run" default:"2048" help:"Tokens of a sample."`
	BatchSize   int      `name:"per_device_train_batch_size" group:"Run" default:"1" help:"Samples of a packed row."`
	Card        string   `name:"card" group:"Card" default:"rtx4090" placeholder:"NAME" help:"rtx3090, rtx4090, rtx4090d, rtx5090, a100-40g, a100-80g, h100 or h200."`
	VRAMBudget  string   `name:"vram_budget" group:"Card" placeholder:"SIZE" help:"Memory that the process may take: 23GiB, 16GiB. By default what a program can get of the card: 23.0 GiB of 24 GB."`
	HostMemory  string   `name:"host_memory" group:"Card" default:"32GiB" placeholder:"SIZE" help:"Memory of the host that may be pinned, for the embedding table and for activations that wait there; 0: none."`
	JSON        bool     `name:"json" group:"Report" help:"Print one JSON object."`
	Markdown    bool     `name:"markdown" group:"Report" help:"Print the tables in Markdown."`
	Plot        string   `name:"plot" group:"Report" placeholder:"FILE" help:"Draw the memory by category, beside the article's, as stacked bars (.png)."`
}

func (planCmd) Help() string {
	return `Nothing is loaded and no card is needed: the memory is that of the run, to the byte; the time is a prediction. Exit
status 6 where the run does not fit.

Examples
  qlora plan
  qlora plan --model qwen2.5-32b --quant_method bnb --quant_bits 4 --card rtx3090
  qlora plan --model qwen2.5-7b --max_length 65536 --quant_method bnb --quant_bits 4 --card h200 --vram_budget 23GiB --json`
}

// Run plans a run.
func (c *planCmd) Run(e *env) error {
	r, budget, err := c.request()
	if err != nil {
		return usageError{err}
	}
	defer r.Src.Close()
	report, refused := plan.NewReport(r, c.MaxLength, c.BatchSize, budget)
	var no *plan.NoFit
	if refused != nil && !errors.As(refused, &no) {
		return refused
	}
	report.Model, report.Method = c.Model, c.method(r)
	if c.Plot != "" {
		if err := drawPlan(c.Plot, report); err != nil {
			return err
		}
	}
	if c.JSON {
		err = writeJSON(e, report)
	} else {
		err = c.print(e, report, refused)
	}
	if no != nil && err == nil {
		r.Budget = no.Budget
		return &noFitError{no.Need + plan.Context, budget, nearby(r, true)}
	}
	return err
}

func (c *planCmd) method(r plan.Request) string {
	base := "LoRA on bfloat16"
	if r.Options.DType == ops.NF4 || r.Src.Quantized {
		base = "QLoRA on NF4"
	}
	return fmt.Sprintf("%s, rank %d on %s", base, c.LoRARank, strings.Join(c.Targets, " "))
}

// request reads the flags.
func (c *planCmd) request() (r plan.Request, budget int64, err error) {
	switch {
	case c.MaxLength < 1 || c.BatchSize < 1 || c.MaxLength > 1<<22/c.BatchSize:
		return r, 0, fmt.Errorf("--max_length %d x --per_device_train_batch_size %d: must be 1 to %d tokens together", c.MaxLength, c.BatchSize, 1<<22)
	case c.LoRARank < 1 || c.LoRARank > lora.MaxRank:
		return r, 0, fmt.Errorf("--lora_rank %d: must be 1 to %d", c.LoRARank, lora.MaxRank)
	}
	if r.Card, err = plan.CardNamed(c.Card); err != nil {
		return r, 0, fmt.Errorf("--card: %w", err)
	}
	if budget = int64(r.Card.GiB * (1 << 30)); c.VRAMBudget != "" {
		if budget, err = parseSize(c.VRAMBudget); err != nil {
			return r, 0, fmt.Errorf("--vram_budget: %w", err)
		}
	}
	if c.HostMemory != "0" {
		if r.HostBudget, err = parseSize(c.HostMemory); err != nil {
			return r, 0, fmt.Errorf("--host_memory: %w", err)
		}
	}
	four := memoryFlags{QuantMethod: c.QuantMethod, QuantBits: c.QuantBits, QuantType: "nf4"}
	quantises, err := four.quantises()
	if err != nil {
		return r, 0, err
	}
	if r.Src, err = shapeOf(c.Model); err != nil {
		return r, 0, fmt.Errorf("--model %s: %w", c.Model, err)
	}
	set, err := lora.New(r.Src.Config, lora.Config{R: c.LoRARank, Alpha: 32, Targets: c.Targets})
	if err != nil {
		return r, 0, errors.Join(fmt.Errorf("--target_modules %s: %w", strings.Join(c.Targets, " "), err), r.Src.Close())
	}
	r.Sizes, r.Batch = cardSizes(r.Card), plan.Row(c.MaxLength, c.BatchSize, 1)
	T := len(r.Batch.IDs)
	r.Options = qwen2.Options{DType: ops.BF16, Single: !c.DoubleQuant, Training: true, MaxT: T, MaxS: c.BatchSize + 1, MaxN: T, Adapter: set}
	if quantises && !r.Src.Quantized {
		r.Options.DType = ops.NF4
	}
	return r, budget, nil
}

// shapeOf is a published shape, or a model of which only the shape will be read.
func shapeOf(model string) (*weights.Model, error) {
	if _, err := os.Stat(model); err == nil || strings.Contains(model, "/") {
		return weights.Open(model)
	}
	return weights.NewRandom(model, randomSeed)
}

func (c *planCmd) table(e *env, header ...string) *tablewriter.Table {
	if !c.Markdown {
		return newTable(e, header...)
	}
	return tablewriter.NewTable(e.out, tablewriter.WithHeaderAutoFormat(tw.Off), tablewriter.WithHeader(header), tablewriter.WithRowAutoWrap(tw.WrapNone),
		tablewriter.WithRenderer(renderer.NewMarkdown()))
}

func (c *planCmd) print(e *env, r *plan.Report, refused error) error {
	fmt.Fprintf(e.out, "%s, %s: rows of %d x %d tokens on %s within %s\n\n", r.Model, r.Method, r.Samples, r.Length, r.CardTitle, plan.GiB(r.Budget))
	if refused != nil {
		fmt.Fprintf(e.out, "does not fit: %v. With everything kept it takes:\n\n", refused)
	}
	if err := c.printMemory(e, r); err != nil {
		return err
	}
	if err := c.printLayers(e, r); err != nil {
		return err
	}
	for _, f := range r.Fallbacks {
		fmt.Fprintf(e.out, "- %v\n", f)
	}
	if len(r.Fallbacks) == 0 && refused == nil {
		fmt.Fprintf(e.out, "- nothing is made again but norms and activations of SwiGLU\n")
	}
	rows := func(tokens int) string {
		return fmt.Sprintf("%d tokens, %d samples of %d", tokens, tokens/r.Length, r.Length)
	}
	fmt.Fprintf(e.out, "\nlongest row that fits: %s; with no product made again: %s\n", rows(r.LongestFrugal), rows(r.LongestPlain))
	p := r.Prediction
	_, err := fmt.Fprintf(e.out, "step: %.4g s, %.0f tokens/s (%s)\n", p.StepSeconds, p.TokensPerSecond, p.Words())
	return err
}

// printMemory prints the block by category, and the article's table beside it.
func (c *planCmd) printMemory(e *env, r *plan.Report) error {
	t := c.table(e, "at the fullest moment", "GiB", "GB", "article, GB")
	n := 0
	row := func(name string, bytes int64) error {
		article := ""
		if n < len(plan.Article) {
			article = fmt.Sprintf("%.4g", plan.Article[n])
		}
		n++
		return t.Append(name, fmt.Sprintf("%.2f", float64(bytes)/(1<<30)), fmt.Sprintf("%.2f", float64(bytes)/1e9), article)
	}
	for _, line := range r.Rows {
		if err := row(line.Category, line.Bytes); err != nil {
			return err
		}
	}
	if err := row("context, at most", r.Context); err != nil {
		return err
	}
	sum := r.Block + r.Context
	if err := t.Append("process", fmt.Sprintf("%.2f", float64(sum)/(1<<30)), fmt.Sprintf("%.2f", float64(sum)/1e9), fmt.Sprint(plan.ArticleSum)); err != nil {
		return err
	}
	if r.Host > 0 {
		if err := t.Append("host memory, pinned", fmt.Sprintf("%.2f", float64(r.Host)/(1<<30)), fmt.Sprintf("%.2f", float64(r.Host)/1e9), ""); err != nil {
			return err
		}
	}
	if err := t.Render(); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "\nThe article's column is in its own order (Qwen2.5-7B in 16 bits, LoRA of rank 8). Its arithmetic cannot be right:\n")
	for _, fault := range plan.ArticleFaults() {
		fmt.Fprintf(e.out, "- %s\n", fault)
	}
	_, err := fmt.Fprintln(e.out)
	return err
}

func (c *planCmd) printLayers(e *env, r *plan.Report) error {
	t := c.table(e, "layers", "kept for the backward", "in", "made again")
	for _, l := range r.Keeps {
		if err := t.Append(fmt.Sprintf("%d to %d", l.First, l.Last), l.Kept, l.Where, l.Again); err != nil {
			return err
		}
	}
	if err := t.Render(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(e.out)
	return err
}

// drawPlan draws two bars: the plan by category, and the article's numbers.
func drawPlan(path string, r *plan.Report) error {
	const gb = 1e9
	var parts []curves.Part
	add := func(name string, mine, article float64) {
		parts = append(parts, curves.Part{Name: name, Values: []float64{mine, article}})
	}
	for _, line := range r.Rows {
		add(line.Category, float64(line.Bytes)/gb, 0)
	}
	add("context", float64(r.Context)/gb, 0)
	for i, v := range plan.Article {
		add(fmt.Sprintf("article, row %d", i+1), 0, v)
	}
	return curves.DrawBars(path, fmt.Sprintf("%s, %s, %d x %d tokens", r.Model, r.Method, r.Samples, r.Length), "GB", []string{"plan", "article"}, parts, float64(r.Budget)/gb)
}
