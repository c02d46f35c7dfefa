package report

import (
	"fmt"

	"qlora/bench"
	"qlora/bench/result"
)

// jobGrid sets a job beside the article's.
func jobGrid(f *result.File) Grid {
	g := Grid{Title: "The job: " + jobTitle(f), Head: []string{"phase", "here", "the article, RTX 4090D", "times as fast"}, Left: 1}
	article, total := map[string]float64{}, 0.0
	for _, p := range bench.Article {
		article[p.Name] = p.Seconds
		total += p.Seconds
	}
	ours := 0.0
	for _, r := range f.Rows {
		if len(r.Seconds) == 0 {
			continue
		}
		here := r.Seconds[0]
		if r.Name == "job" {
			continue
		}
		theirs, known := article[r.Name]
		if known {
			ours += here
		}
		g.add(r.Name, seconds(here), seconds(theirs), times(theirs, here, known))
	}
	g.add("all that both have", seconds(ours), seconds(total), times(total, ours, true))
	for _, r := range f.Rows {
		if _, process := memoryOf(r); r.Name == "job" && process > 0 {
			g.Note = "The process held " + gib(process) + "; the article's 21.74 GB."
		}
	}
	return g
}

func times(theirs, ours float64, known bool) string {
	if !known || ours <= 0 {
		return dash
	}
	return digits(theirs/ours, 3)
}

func jobTitle(f *result.File) string {
	for _, r := range f.Rows {
		return fmt.Sprintf("%s, %s rows, %s epochs", model(r.Params["model"]), r.Params["data"], r.Params["epochs"])
	}
	return ""
}
