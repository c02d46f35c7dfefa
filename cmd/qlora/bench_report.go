package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"qlora/bench"
	"qlora/bench/report"
	"qlora/internal/atomicfile"
)

// predictor is how cards that were never run are predicted.
var predictor report.Predictor = bench.Planner{Sizes: cardSizes, Host: 32 << 30}

// benchGPUsCmd is `qlora bench gpus`.
type benchGPUsCmd struct {
	Paths    []string `arg:"" optional:"" name:"results" help:"Results, or folders of them. By default results/."`
	Picture  string   `name:"picture" group:"Output" placeholder:"FILE" help:"Also draw a PNG of tokens a second by card."`
	Markdown bool     `name:"markdown" group:"Output" help:"Print markdown tables."`
}

func (benchGPUsCmd) Help() string {
	return `Cards side by side by one training step, the newest result of each: tokens a second, and a watt, memory, the
article's job; kernels with the significance of their difference. A card nobody ran appears as a
prediction, and is marked so: what "qlora plan" says. For cards that were measured, the error of such a
prediction stands beside.

Examples
  qlora bench gpus
  qlora bench gpus results/nvidia-h200 from-a-friend.json --picture cards.png`
}

func (c *benchGPUsCmd) Run(e *env) error {
	files, err := readable(orResults(c.Paths))
	if err != nil {
		return err
	}
	cards := report.CompareCards(files, predictor)
	for _, g := range cards.Grids() {
		write := g.Text
		if c.Markdown {
			write = g.Markdown
		}
		if err := write(e.out); err != nil {
			return err
		}
	}
	if c.Picture == "" {
		return nil
	}
	e.logf("picture: %s", c.Picture)
	return report.CardsPicture(c.Picture, cards)
}

func orResults(paths []string) []string {
	if len(paths) == 0 {
		return []string{"results"}
	}
	return paths
}

// benchReportCmd is `qlora bench report`.
type benchReportCmd struct {
	Paths    []string `arg:"" optional:"" name:"results" help:"Results, or folders of them. By default results/."`
	Output   string   `name:"o" group:"Output" default:"report.html" placeholder:"FILE" help:"The page."`
	Pictures string   `name:"pictures" group:"Output" placeholder:"DIR" help:"Also draw PNG pictures into this folder: cards, roofline, step, memory."`
	Print    bool     `name:"print" group:"Output" help:"Print the tables of every result instead, and write no page."`
	Format   string   `name:"format" group:"Output" default:"table" placeholder:"NAME" help:"With --print: table, markdown or gobench (for benchstat)."`
}

func (benchReportCmd) Help() string {
	return `One HTML file that needs nothing else: where a step goes, kernels under the roofs, memory against the budget of
a 24 GB card, kernels to sort, tokens a second over commits, cards compared. It shows the device of the
newest result, a card's before a processor's.

Examples
  qlora bench report -o report.html
  qlora bench report results/nvidia-h200 --o h200.html --pictures pictures
  qlora bench report --print --format markdown step.json`
}

func (c *benchReportCmd) Run(e *env) error {
	files, err := readable(orResults(c.Paths))
	if err != nil {
		return err
	}
	if c.Print {
		for _, f := range files {
			if err := (benchOutput{Format: c.Format}).check(); err != nil {
				return err
			}
			if err := (benchOutput{Format: c.Format}).print(e, f); err != nil {
				return err
			}
		}
		return nil
	}
	err = atomicfile.WriteFile(c.Output, func(w io.Writer) error { return report.Page(w, files, predictor, time.Now()) })
	if err != nil {
		return err
	}
	e.logf("page: %s", c.Output)
	if c.Pictures == "" {
		return nil
	}
	names, err := report.Pictures(c.Pictures, files, predictor)
	if err == nil {
		e.logf("pictures: %s in %s", strings.Join(names, ", "), c.Pictures)
	}
	return err
}

// benchTablesCmd is `qlora bench tables`.
type benchTablesCmd struct {
	Root  string `name:"root" group:"Pages" default:"." placeholder:"DIR" help:"The repository: README.md, kernels/README.md and results/README.md in it."`
	Check bool   `name:"check" group:"Pages" help:"Only say which pages are stale, with exit status 1."`
}

func (benchTablesCmd) Help() string {
	return `Tables between <!-- bench:NAME --> and <!-- /bench --> are made from results/, and never by hand.

Examples
  qlora bench tables
  qlora bench tables --check`
}

func (c *benchTablesCmd) Run(e *env) error {
	stale, err := report.FillPages(c.Root, predictor, c.Check)
	if errors.Is(err, fs.ErrNotExist) {
		return usageError{fmt.Errorf("--root %s is no such repository: %w", c.Root, err)}
	}
	if err != nil {
		return err
	}
	for _, page := range stale {
		fmt.Fprintln(e.out, filepath.Join(c.Root, page))
	}
	if c.Check && len(stale) > 0 {
		return fmt.Errorf("%d pages are stale, `qlora bench tables` writes them anew: %w", len(stale), errCheckFailed)
	}
	return nil
}
