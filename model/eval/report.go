package eval

import (
	"fmt"
	"io"
	"strings"
)

// Measured is one model of a report: a base, or a base with adapters.
type Measured struct {
	Name             string     `json:"name,omitempty"`
	IdentityAccuracy *float64   `json:"identity_accuracy,omitempty"` // nil where nothing was asked
	NLL              float64    `json:"nll,omitempty"`               // nats a label token; 0 where nothing was measured
	Perplexity       float64    `json:"perplexity,omitempty"`
	LabelTokens      int        `json:"label_tokens,omitempty"`
	General          *Fidelity  `json:"general,omitempty"`
	Choices          *Chosen    `json:"choices,omitempty"`
	Answers          []Answered `json:"answers,omitempty"`
}

// Report is several models measured on the same data. All of them answer the same questions, in one order.
type Report struct {
	Model   string     `json:"model"`
	Dataset string     `json:"dataset,omitempty"`
	General string     `json:"general,omitempty"`
	Choices string     `json:"choices,omitempty"`
	Models  []Measured `json:"models"`
}

// Figure is a row of the table of figures.
type Figure struct {
	Name   string
	Values []string // of each model, "" where it has none
}

// Figures is the table of figures: a row a measure, a column a model. Measures that no model has are left out.
func (r *Report) Figures() []Figure {
	var rows []Figure
	row := func(name, format string, value func(m Measured) (float64, bool)) {
		f, any := Figure{Name: name}, false
		for _, m := range r.Models {
			text := ""
			if v, ok := value(m); ok {
				text, any = fmt.Sprintf(format, v), true
			}
			f.Values = append(f.Values, text)
		}
		if any {
			rows = append(rows, f)
		}
	}
	row("exact answers", "%.1f %%", func(m Measured) (float64, bool) {
		if m.IdentityAccuracy == nil {
			return 0, false
		}
		return 100 * *m.IdentityAccuracy, true
	})
	row("nll of the answers", "%.4f", func(m Measured) (float64, bool) { return m.NLL, m.LabelTokens > 0 })
	row("perplexity of the answers", "%.3f", func(m Measured) (float64, bool) { return m.Perplexity, m.LabelTokens > 0 })
	general := func(value func(f *Fidelity) float64) func(m Measured) (float64, bool) {
		return func(m Measured) (float64, bool) {
			if m.General == nil {
				return 0, false
			}
			return value(m.General), true
		}
	}
	row("general set: perplexity", "%.3f", general(func(f *Fidelity) float64 { return f.Perplexity }))
	row("general set: perplexity against the base", "%+.1f %%", general(func(f *Fidelity) float64 { return 100 * f.PerplexityChange }))
	row("general set: KL from the base, nats a token", "%.4f", general(func(f *Fidelity) float64 { return f.KL }))
	chosen := func(value func(c *Chosen) float64) func(m Measured) (float64, bool) {
		return func(m Measured) (float64, bool) {
			if m.Choices == nil {
				return 0, false
			}
			return 100 * value(m.Choices), true
		}
	}
	row("multiple choice", "%.1f %%", chosen(func(c *Chosen) float64 { return c.Accuracy }))
	row("multiple choice, a byte", "%.1f %%", chosen(func(c *Chosen) float64 { return c.AccuracyNorm }))
	return rows
}

// Markdown writes the report as a page of Markdown.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n\n", cell(r.Model), r.about())
	header := []string{""}
	for _, m := range r.Models {
		header = append(header, m.Name)
	}
	line := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(&b, "| %s ", cell(c))
		}
		b.WriteString("|\n")
	}
	rule := strings.Repeat("|---", len(header)) + "|\n"
	line(header)
	b.WriteString(rule)
	for _, f := range r.Figures() {
		line(append([]string{f.Name}, f.Values...))
	}
	if n := r.questions(); n > 0 {
		b.WriteString("\n## Answers\n\n")
		line(append([]string{"question", "wanted"}, header[1:]...))
		b.WriteString("|---" + rule)
		for i := range n {
			first := r.Models[0].Answers[i]
			cells := []string{first.Question, first.Want}
			for _, m := range r.Models {
				mark := ""
				if m.Answers[i].Exact {
					mark = "= "
				}
				cells = append(cells, mark+m.Answers[i].Got)
			}
			line(cells)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// about says what was measured.
func (r *Report) about() string {
	text := ""
	if r.Dataset != "" {
		text = fmt.Sprintf("Measured on %s (%d label tokens, %d questions).", r.Dataset, r.Models[0].LabelTokens, r.questions())
	}
	for _, m := range r.Models {
		if m.General != nil {
			text += fmt.Sprintf(" General set: %s (%d label tokens).", r.General, m.General.LabelTokens)
			break
		}
	}
	if c := r.Models[0].Choices; c != nil {
		text += fmt.Sprintf(" Multiple choice: %s (%d questions, chance %.0f %%).", r.Choices, c.Questions, 100*c.Chance)
	}
	return strings.TrimSpace(text)
}

func (r *Report) questions() int { return len(r.Models[0].Answers) }

// cell writes text on one line of a table of Markdown.
func cell(text string) string {
	return strings.NewReplacer("\n", "<br>", "\r", "", "|", `\|`, "<", "&lt;", ">", "&gt;").Replace(text)
}
