package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"qlora/bench/compare"
	"qlora/bench/report"
	"qlora/bench/result"
)

// comparison are the flags of what compares.
type comparison struct {
	FailIf    []string `name:"fail_if" group:"Gate" sep:"none" placeholder:"RULE..." help:"Exit with status 1 where a row that is SLOWER breaks the rule: 'median>3%'; also mean, min, p10, p90."`
	Margin    float64  `name:"margin" group:"Gate" default:"0.01" help:"A difference that counts for none."`
	AnyDevice bool     `name:"any_device" group:"Gate" help:"Compare results of different devices or settings too, and say what differs."`
	All       bool     `name:"all" group:"Output" help:"List rows that are SAME too."`
	Markdown  bool     `name:"markdown" group:"Output" help:"Print a markdown table."`
}

// gates parses --fail_if.
func (c comparison) gates() ([]compare.Gate, error) {
	var all []compare.Gate
	for _, text := range c.FailIf {
		g, err := compare.ParseGate(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("--fail_if: %w", err)}
		}
		all = append(all, g)
	}
	if !(c.Margin >= 0 && c.Margin < 1) {
		return nil, usageError{fmt.Errorf("--margin %v: must be at least 0 and less than 1", c.Margin)}
	}
	return all, nil
}

// run compares, prints, and closes the gates.
func (c comparison) run(e *env, old, new []*result.File) error {
	gates, err := c.gates()
	if err != nil {
		return err
	}
	r, err := compare.Files(old, new, compare.Options{Margin: c.Margin, AnyDevice: c.AnyDevice})
	var refused *compare.Refused
	if errors.As(err, &refused) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if err := report.PrintComparison(e.out, r, c.All, c.Markdown); err != nil {
		return err
	}
	for _, g := range gates {
		if closed := g.Closed(r); len(closed) > 0 {
			return fmt.Errorf("%s holds for %d rows, the first %s: %w", g, len(closed), closed[0].Key, errCheckFailed)
		}
	}
	return nil
}

// benchCompareCmd is `qlora bench compare`.
type benchCompareCmd struct {
	comparison
	Old string `arg:"" name:"old" help:"A result, or a folder of results."`
	New string `arg:"" name:"new" help:"Another."`
}

func (benchCompareCmd) Help() string {
	return `Rows are matched by name and parameters. Two samples are compared by the Mann-Whitney U test, corrected for
the number of rows by Holm, so that one false SLOWER or FASTER in a whole comparison has a chance below 5 %.
The ratio is Hodges and Lehmann's, its 95 % interval the one the U test does not reject.

  SLOWER, FASTER   significant, and the whole interval beyond --margin
  SAME             the whole interval within --margin
  UNSURE           anything else; where seconds and cycles disagree, the clock has drifted, which is said

Exit status 0: no rule of --fail_if broken; 1: one is; 2: the results cannot be compared (another device, power
limit, clocks, ECC, no row in common).

Examples
  qlora bench compare old.json new.json
  qlora bench compare results/nvidia-h200/20261127-0123abc new.json --fail_if 'median>3%' 'p90>5%'`
}

func (c *benchCompareCmd) Run(e *env) error {
	old, err := readable([]string{c.Old})
	if err != nil {
		return err
	}
	new, err := readable([]string{c.New})
	if err != nil {
		return err
	}
	return c.run(e, old, new)
}

// benchABCmd is `qlora bench ab`.
type benchABCmd struct {
	comparison
	Old    string `arg:"" name:"old" help:"The older binary."`
	New    string `arg:"" name:"new" help:"The newer one."`
	What   string `name:"what" group:"Runs" default:"kernels --roofs false" placeholder:"WORDS" help:"What both run: a verb of bench and its flags, in quotes."`
	Rounds int    `name:"rounds" group:"Runs" default:"6" help:"Times each of them runs; the one that begins changes with each round."`
}

func (benchABCmd) Help() string {
	return `Runs "OLD bench WHAT" and "NEW bench WHAT" in turns, so that heat, clocks and neighbours are the same for
both, and compares as "qlora bench compare" does. What rounds of one binary differ by counts too: a difference
must also hold against it, by Welch's t-test of the rounds' medians.

Examples
  qlora bench ab bin/qlora.main bin/qlora --what "kernels --filter ^Linear/7B --cache hot"
  qlora bench ab bin/qlora.main bin/qlora --what "step --model qwen2.5-1.5b" --fail_if 'median>2%'`
}

func (c *benchABCmd) Run(e *env) error {
	if _, err := c.gates(); err != nil {
		return err
	}
	words := strings.Fields(c.What)
	if c.Rounds < 1 || len(words) == 0 {
		return usageError{errors.New("--rounds must be at least 1, and --what name a verb of bench")}
	}
	dir, err := os.MkdirTemp("", "qlora-ab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binaries := []string{c.Old, c.New}
	files := make([][]*result.File, 2)
	for round := range c.Rounds {
		for turn := range 2 {
			i := (round + turn) % 2
			out := filepath.Join(dir, fmt.Sprintf("%d-%d.json", i, round))
			e.logf("round %d of %d: %s", round+1, c.Rounds, binaries[i])
			if err := runBench(e, binaries[i], words, out); err != nil {
				return err
			}
			f, err := result.Read(out)
			if err != nil {
				return err
			}
			f.Path = binaries[i]
			files[i] = append(files[i], f)
		}
	}
	return c.run(e, files[0], files[1])
}

// runBench runs a binary, which writes its result to out. A check that did not hold there is that of its rows, which are
// compared all the same.
func runBench(e *env, binary string, words []string, out string) error {
	if !strings.ContainsRune(binary, filepath.Separator) {
		binary = "." + string(filepath.Separator) + binary
	}
	cmd := exec.CommandContext(e.ctx, binary, slices.Concat([]string{"bench"}, words, []string{"--out", out})...)
	cmd.Stderr = e.err
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	if e.ctx.Err() != nil {
		return context.Cause(e.ctx)
	}
	if _, missing := os.Stat(out); missing == nil {
		return nil
	}
	if err == nil {
		err = errors.New("it wrote no result")
	}
	return usageError{fmt.Errorf("%s bench %s: %w", binary, strings.Join(words, " "), err)}
}

// benchAddCmd is `qlora bench add`.
type benchAddCmd struct {
	Files   []string `arg:"" name:"file" help:"Results that someone sends."`
	Results string   `name:"results" group:"Output" default:"results" placeholder:"DIR" help:"The collection they go to."`
	DryRun  bool     `name:"dry_run" group:"Output" help:"Only say what they lack."`
}

func (benchAddCmd) Help() string {
	return `A result is taken in if it is complete: the card, its driver, power limit and clocks, a program built from a
commit as it is, at least 10 samples a row, and of each kernel the proof that it is right. It goes to the
folder of its own card, date and commit, and never over another. Exit status 1: something is lacking.

Examples
  qlora bench add from-a-friend.json
  qlora bench add --dry_run *.json`
}

func (c *benchAddCmd) Run(e *env) error {
	files, err := readable(c.Files)
	if err != nil {
		return err
	}
	bad := 0
	for _, f := range files {
		if lacks := f.Incomplete(); len(lacks) > 0 {
			bad++
			fmt.Fprintf(e.out, "%s lacks %s\n", f.Path, strings.Join(lacks, "; "))
			continue
		}
		if c.DryRun {
			fmt.Fprintf(e.out, "%s is complete: %s, %s rows\n", f.Path, f.Environment.Device(), strconv.Itoa(len(f.Rows)))
			continue
		}
		path, err := f.Add(c.Results)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.out, "%s\n", path)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d files are not taken in: %w", bad, len(files), errCheckFailed)
	}
	return nil
}
