// Fits writes README's table of what fits in how much memory, from what scripts/gpu-check.sh measured: the newest of each
// run in results/CARD/DATE-COMMIT/fits.
//
// Usage: fits [-o README.md] [-results results]
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The table lies between these lines.
const (
	opening = "<!-- made by `make fits` from results/ -->"
	closing = "<!-- end -->"
)

func main() {
	readme := flag.String("o", "README.md", "file whose table is replaced")
	results := flag.String("results", "results", "folder of results")
	flag.Parse()
	if err := run(*readme, *results); err != nil {
		fmt.Fprintln(os.Stderr, "fits:", err)
		os.Exit(1)
	}
}

func run(readme, results string) error {
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	runs, err := read(results)
	if err != nil {
		return err
	}
	updated, err := replace(string(text), table(runs))
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, []byte(updated), 0o666)
}

// fit is a run that was measured: memory.json of its folder.
type fit struct {
	Card, Name, Commit string `json:"-"`
	budget             int    // MiB

	Model   string `json:"model"`
	Weights string `json:"weights"`
	Row     int    `json:"row_tokens"`
	Block   int64  `json:"block_bytes"`
	Host    int64  `json:"host_bytes"`
	Process int64  `json:"process_measured_bytes"`
	Budget  string `json:"vram_budget"`
	Keeps   struct {
		GateUp  int  `json:"gate_up_again_layers"`
		Whole   int  `json:"whole_again_layers"`
		Tile    int  `json:"feed_forward_tile_tokens"`
		Table   bool `json:"embedding_in_host_memory"`
		Offload int  `json:"offloaded_layers"`
	} `json:"keeps_less"`
	TokensPerSec float64 `json:"tokens_per_second"`
	Predicted    float64 `json:"predicted_tokens_per_second"`
}

// read finds the newest of each run on each card, in the order of the table: by card, model, weights, row and budget.
func read(results string) ([]fit, error) {
	files, err := filepath.Glob(filepath.Join(results, "*", "*", "fits", "*.json"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files) // folders begin with their date: the newest is the last
	newest := map[[2]string]fit{}
	for _, name := range files {
		var f fit
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if f.TokensPerSec == 0 || f.Process == 0 || f.Budget == "" { // it compares, or loads
			continue
		}
		mib, whole := strings.CutSuffix(f.Budget, "MiB")
		if f.budget, err = strconv.Atoi(mib); err != nil || !whole {
			return nil, fmt.Errorf("%s: vram_budget %q is not in MiB, as scripts/gpu-check.sh gives it", name, f.Budget)
		}
		run := filepath.Dir(filepath.Dir(name))
		f.Card, f.Commit, f.Name = filepath.Base(filepath.Dir(run)), filepath.Base(run), strings.TrimSuffix(filepath.Base(name), ".json")
		newest[[2]string{f.Card, f.Name}] = f
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b fit) int {
		return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.size(), b.size()), cmp.Compare(a.Model, b.Model), cmp.Compare(a.Weights, b.Weights),
			cmp.Compare(a.Row, b.Row), cmp.Compare(a.budget, b.budget), cmp.Compare(a.Name, b.Name))
	}), nil
}

// size is the number of parameters in a model's name, in 10^9: 7 of random/qwen2.5-7b; 0 where there is none.
func (f fit) size() float64 {
	_, size, _ := strings.Cut(filepath.Base(f.Model), "-")
	n, _ := strconv.ParseFloat(strings.TrimSuffix(size, "b"), 64)
	return n
}

// table has the runs of each card, and below them where they lie.
func table(runs []fit) string {
	if len(runs) == 0 {
		return "Not measured yet: `scripts/gpu-check.sh memory long` does, and `make fits` writes its table here."
	}
	var t strings.Builder
	gib := func(n int64) string { return fmt.Sprintf("%.2f", float64(n)/(1<<30)) }
	for len(runs) > 0 {
		card := runs[0].Card
		t.WriteString("| model, weights | tokens a row | within, GiB | process | its block | host | kept less of | tokens/s | predicted |\n")
		t.WriteString("|:---|---:|---:|---:|---:|---:|:---|---:|---:|\n")
		var rows, folders []string
		for len(runs) > 0 && runs[0].Card == card {
			f := runs[0]
			rows = append(rows, fmt.Sprintf("| %s, %s | %d | %s | %s | %s | %s | %s | %.0f | %.0f |\n", strings.TrimPrefix(f.Model, "random/"), f.Weights, f.Row,
				strings.TrimSuffix(gib(int64(f.budget)<<20), ".00"), gib(f.Process), gib(f.Block), gib(f.Host), f.keeps(), f.TokensPerSec, f.Predicted))
			folders = append(folders, fmt.Sprintf("[%s](results/%s/%s)", f.Commit, card, f.Commit))
			runs = runs[1:]
		}
		slices.Sort(folders)
		t.WriteString(strings.Join(slices.Compact(rows), ""))
		fmt.Fprintf(&t, "\nOn %s: %s.\n\n", card, strings.Join(slices.Compact(folders), ", "))
	}
	return strings.TrimSuffix(t.String(), "\n\n")
}

// keeps says what a run kept less of.
func (f fit) keeps() string {
	var parts []string
	if f.Keeps.Table {
		parts = append(parts, "embedding in host memory")
	}
	if f.Keeps.GateUp > 0 {
		parts = append(parts, fmt.Sprintf("gate and up of %d layers", f.Keeps.GateUp))
	}
	if f.Keeps.Tile > 0 {
		parts = append(parts, fmt.Sprintf("feed-forward by %d tokens", f.Keeps.Tile))
	}
	if f.Keeps.Whole > 0 {
		parts = append(parts, fmt.Sprintf("%d layers whole", f.Keeps.Whole))
	}
	if f.Keeps.Offload > 0 {
		parts = append(parts, fmt.Sprintf("%d layers in host memory", f.Keeps.Offload))
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

// replace puts a table between the lines that mark its place.
func replace(text, table string) (string, error) {
	before, rest, found := strings.Cut(text, opening+"\n")
	_, after, ended := strings.Cut(rest, closing+"\n")
	if !found || !ended {
		return "", errors.New("no place for the table: " + opening + " and " + closing + " on lines of their own")
	}
	return before + opening + "\n" + table + "\n" + closing + "\n" + after, nil
}
