// Package report shows results: tables for a terminal and for markdown, a page for a browser, pictures.
package report

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/renderer"
	"github.com/olekukonko/tablewriter/tw"
)

// Grid is a table.
type Grid struct {
	Title string
	Head  []string
	Rows  [][]string
	Left  int // columns from the left that hold text; the others hold numbers, and go to the right
	Note  string
}

func (g *Grid) add(cells ...string) { g.Rows = append(g.Rows, cells) }

// Text writes the table for a terminal.
func (g Grid) Text(w io.Writer) error { return g.write(w, nil) }

// Markdown writes it for a page.
func (g Grid) Markdown(w io.Writer) error {
	return g.write(w, []tablewriter.Option{tablewriter.WithRenderer(renderer.NewMarkdown())})
}

func (g Grid) write(w io.Writer, options []tablewriter.Option) error {
	align := make([]tw.Align, len(g.Head))
	for i := range align {
		align[i] = tw.AlignRight
		if i < g.Left {
			align[i] = tw.AlignLeft
		}
	}
	if g.Title != "" {
		fmt.Fprintf(w, "%s\n\n", g.Title)
	}
	if len(g.Rows) > 0 {
		t := tablewriter.NewTable(w, append(options, tablewriter.WithHeaderAutoFormat(tw.Off), tablewriter.WithHeader(g.Head), tablewriter.WithAlignment(align),
			tablewriter.WithRowAutoWrap(tw.WrapNone), tablewriter.WithHeaderAutoWrap(tw.WrapNone))...)
		for _, row := range g.Rows {
			if err := t.Append(row); err != nil {
				return err
			}
		}
		if err := t.Render(); err != nil {
			return err
		}
	}
	if g.Note != "" {
		fmt.Fprintf(w, "\n%s\n", g.Note)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// Numbers for people. A dash stands for what is not known.

const dash = "-"

// seconds writes a time with four digits and its unit: "78.7 us", "1.204 s".
func seconds(s float64) string {
	switch {
	case !(s > 0) || math.IsInf(s, 0):
		return dash
	case s < 1e-3:
		return digits(s*1e6, 4) + " us"
	case s < 1:
		return digits(s*1e3, 4) + " ms"
	case s < 600:
		return digits(s, 4) + " s"
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

// digits writes v with n significant digits and no exponent.
func digits(v float64, n int) string {
	if v == 0 {
		return "0"
	}
	decimals := max(n-1-int(math.Floor(math.Log10(math.Abs(v)))), 0)
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

// amount writes a positive number with three digits, or a dash.
func amount(v float64) string {
	if !(v > 0) || math.IsInf(v, 0) {
		return dash
	}
	return digits(v, 3)
}

// rate writes a number a second with a letter for its thousands: "689 T", "17.5 G".
func rate(v float64) string {
	for _, u := range []struct {
		size   float64
		letter string
	}{{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1, ""}} {
		if v >= u.size && !math.IsInf(v, 0) {
			return digits(v/u.size, 3) + u.letter
		}
	}
	return dash
}

// count writes a whole number with commas between its thousands.
func count(v float64) string {
	if !(v > 0) || math.IsInf(v, 0) {
		return dash
	}
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// share writes a part of one as percent.
func share(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) || v == 0 {
		return dash
	}
	return strconv.FormatFloat(100*v, 'f', 1, 64) + " %"
}

// difference writes a ratio as one: "+5.0 %".
func difference(ratio float64) string {
	if math.IsNaN(ratio) || math.IsInf(ratio, 0) || ratio == 0 {
		return dash
	}
	return fmt.Sprintf("%+.1f %%", 100*(ratio-1))
}

// gib writes bytes in GiB, or MiB where they are few.
func gib(bytes int64) string {
	switch {
	case bytes <= 0:
		return dash
	case bytes < 1<<27:
		return digits(float64(bytes)/(1<<20), 3) + " MiB"
	}
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', 2, 64) + " GiB"
}

// model writes the name of a shape as its makers do: qwen2.5-7b becomes Qwen2.5 7B.
func model(name string) string {
	if size, ok := strings.CutPrefix(name, "qwen2.5-"); ok {
		return "Qwen2.5 " + strings.ToUpper(size)
	}
	return name
}

// sortedKeys are the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
