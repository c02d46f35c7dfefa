// Command sidebyside prints the answers of two `qlora eval --json --answers` reports beside each other, before
// and after training, and below them a third one: other questions, asked after training.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"

	"qlora/model/eval"
)

// report is the part of an evaluation that is shown.
type report struct {
	Accuracy float64         `json:"identity_accuracy"`
	NLL      float64         `json:"nll"`
	Answers  []eval.Answered `json:"answers"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sidebyside:", err)
		os.Exit(2)
	}
}

func run(paths []string) error {
	if len(paths) != 2 && len(paths) != 3 {
		return fmt.Errorf("usage: sidebyside BEFORE.json AFTER.json [PARAPHRASED.json]")
	}
	reports := make([]report, len(paths))
	for i, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &reports[i]); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	before, after := reports[0], reports[1]
	if len(before.Answers) != len(after.Answers) {
		return fmt.Errorf("%s has %d answers, %s has %d", paths[0], len(before.Answers), paths[1], len(after.Answers))
	}
	var rows [][]string
	for i, b := range before.Answers {
		rows = append(rows, []string{b.Question, b.Got, after.Answers[i].Got, mark(after.Answers[i])})
	}
	if err := table([]string{"question", "before", "after", "exact"}, rows); err != nil {
		return err
	}
	fmt.Printf("exact answers: %d of %d before, %d of %d after; nll %.3f before, %.4f after\n",
		exact(before), len(before.Answers), exact(after), len(after.Answers), before.NLL, after.NLL)
	if len(reports) == 2 {
		return nil
	}
	rows = nil
	for _, a := range reports[2].Answers {
		rows = append(rows, []string{a.Question, a.Got, mark(a)})
	}
	fmt.Println("\nthe same questions in other words, never seen in training:")
	if err := table([]string{"question", "after", "exact"}, rows); err != nil {
		return err
	}
	fmt.Printf("exact answers: %d of %d\n", exact(reports[2]), len(reports[2].Answers))
	return nil
}

func mark(a eval.Answered) string {
	if a.Exact {
		return "yes"
	}
	return "no"
}

func exact(r report) int {
	n := 0
	for _, a := range r.Answers {
		if a.Exact {
			n++
		}
	}
	return n
}

func table(header []string, rows [][]string) error {
	t := tablewriter.NewTable(os.Stdout,
		tablewriter.WithHeaderAutoFormat(tw.Off),
		tablewriter.WithRowAutoWrap(tw.WrapBreak),
		tablewriter.WithMaxWidth(140))
	t.Header(header)
	if err := t.Bulk(rows); err != nil {
		return err
	}
	return t.Render()
}
