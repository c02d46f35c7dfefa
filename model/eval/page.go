package eval

import (
	_ "embed"
	"html/template"
	"io"

	"github.com/sergi/go-diff/diffmatchpatch"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"diff": difference}).Parse(pageText))

// HTML writes the report as one page that needs no other file: the figures, and the answers beside each other, each with
// what differs from the answer wanted marked.
func (r *Report) HTML(w io.Writer) error {
	type answer struct {
		Exact bool
		Got   string
	}
	type question struct {
		Number         int
		Question, Want string
		Same           bool // all models say the same
		Answers        []answer
	}
	view := struct {
		*Report
		About     string
		Figures   []Figure
		Questions []question
	}{r, r.about(), r.Figures(), nil}
	for i := range r.questions() {
		first := r.Models[0].Answers[i]
		q := question{Number: i + 1, Question: first.Question, Want: first.Want, Same: true}
		for _, m := range r.Models {
			q.Answers = append(q.Answers, answer{m.Answers[i].Exact, m.Answers[i].Got})
			q.Same = q.Same && m.Answers[i].Got == first.Got
		}
		view.Questions = append(view.Questions, q)
	}
	return page.Execute(w, view)
}

// piece is a stretch of an answer: in both texts, or in the answer alone (More), or in the wanted one alone (Less).
type piece struct {
	Text       string
	More, Less bool
}

// difference splits an answer by what it has of the one wanted. Of one that has hardly anything of it all is marked.
func difference(want, got string) []piece {
	d := diffmatchpatch.New()
	diffs := d.DiffCleanupSemantic(d.DiffMain(want, got, false))
	common := 0
	for _, one := range diffs {
		if one.Type == diffmatchpatch.DiffEqual {
			common += len(one.Text)
		}
	}
	if 5*common < len(want) {
		return []piece{{Text: got, More: true}}
	}
	var pieces []piece
	for _, one := range diffs {
		pieces = append(pieces, piece{one.Text, one.Type == diffmatchpatch.DiffInsert, one.Type == diffmatchpatch.DiffDelete})
	}
	return pieces
}
