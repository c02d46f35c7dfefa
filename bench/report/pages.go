package report

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"qlora/bench/result"
)

// Tables in markdown pages stand between a line <!-- bench:NAME --> and a line <!-- /bench -->, and are made from results/.

var markers = regexp.MustCompile(`(?ms)^<!-- bench:(\w+) -->\n.*?^<!-- /bench -->$`)

// MarkedPages are the pages of this repository that hold such tables.
var MarkedPages = []string{"README.md", "kernels/README.md", "results/README.md"}

// Fill writes the tables of a page anew, and returns it. folder is the page's own, from the root, for its links.
func Fill(page []byte, folder string, files []*result.File, p Predictor) ([]byte, error) {
	var failed error
	files = result.Join(files)
	filled := markers.ReplaceAllFunc(page, func(block []byte) []byte {
		name := string(markers.FindSubmatch(block)[1])
		make, ok := marked[name]
		if !ok {
			failed = fmt.Errorf("there is no table %q: choose %s", name, strings.Join(sortedKeys(marked), ", "))
			return block
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "<!-- bench:%s -->\n", name)
		if err := make(&b, folder, files, p); err != nil {
			failed = err
		}
		return append(append(bytes.TrimRight(b.Bytes(), "\n"), '\n'), "<!-- /bench -->"...)
	})
	return filled, failed
}

// FillPages writes the tables of the repository at root anew. It returns the pages that were stale, and with dry leaves
// them as they are.
func FillPages(root string, p Predictor, dry bool) (stale []string, err error) {
	files, err := result.Walk(filepath.Join(root, "results"))
	if err != nil {
		return nil, err
	}
	for _, f := range files { // links are from the root
		if f.Path, err = filepath.Rel(root, f.Path); err != nil {
			return nil, err
		}
	}
	for _, name := range MarkedPages {
		path := filepath.Join(root, name)
		page, err := os.ReadFile(path)
		if err != nil {
			return stale, err
		}
		if !markers.Match(page) {
			return stale, fmt.Errorf("%s has no line <!-- bench:NAME -->, and so no table", name)
		}
		filled, err := Fill(page, filepath.Dir(name), files, p)
		if err != nil {
			return stale, fmt.Errorf("%s: %w", name, err)
		}
		if bytes.Equal(page, filled) {
			continue
		}
		stale = append(stale, name)
		if !dry {
			if err := os.WriteFile(path, filled, 0o666); err != nil {
				return stale, err
			}
		}
	}
	return stale, nil
}

// marked are the tables by name.
var marked = map[string]func(b *bytes.Buffer, folder string, files []*result.File, p Predictor) error{
	"sizes":   sizesTable,
	"kernels": kernelsTable,
	"runs":    runsTable,
	"steps":   stepsTable,
	"cards":   cardsTable,
	"peers":   peersTable,
	"fastest": fastestTable,
	"decode":  decodeTable,
}

// link is a markdown link from folder to the folder of a file.
func link(folder string, f *result.File) string {
	dir := filepath.Dir(f.Path)
	for filepath.Base(filepath.Dir(dir)) != "results" && filepath.Dir(filepath.Dir(dir)) != "results" && filepath.Dir(dir) != "." {
		dir = filepath.Dir(dir) // a folder below the run's
	}
	rel, err := filepath.Rel(folder, dir)
	if err != nil {
		rel = dir
	}
	return "[" + f.Time.Format("2006-01-02") + "](" + filepath.ToSlash(rel) + ")"
}

// sizesTable is the speed and memory of each size of Qwen2.5, where one card has the most of them.
func sizesTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	sizes := []string{"0.5b", "1.5b", "3b", "7b", "14b", "32b"}
	type entry struct {
		Step
		file *result.File
	}
	best := map[string]map[string]entry{} // by device and size
	for _, f := range files {
		for _, s := range Steps(f) {
			size := strings.TrimPrefix(s.Model, "qwen2.5-")
			device := f.Environment.Device()
			r := reference
			wanted := func(name string) bool { return s.Row.Params[name] == r[name] }
			plain := s.Row.Params["run"] == size || s.Row.Params["trainer"] == "" && wanted("rank") && wanted("dropout") && wanted("labels") && wanted("samples") && wanted("rows") && wanted("targets") && wanted("method") && wanted("variant") && wanted("budget")
			if !slices.Contains(sizes, size) || !plain || s.Row.Tokens != 2048 {
				continue
			}
			if best[device] == nil {
				best[device] = map[string]entry{}
			}
			best[device][size] = entry{s, f}
		}
	}
	device := ""
	newest := func(d string) time.Time {
		var last time.Time
		for _, e := range best[d] {
			if e.file.Time.After(last) {
				last = e.file.Time
			}
		}
		return last
	}
	for _, d := range sortedKeys(best) {
		if device == "" || len(best[d]) > len(best[device]) || len(best[d]) == len(best[device]) && newest(d).After(newest(device)) {
			device = d
		}
	}
	if device == "" {
		_, err := fmt.Fprintln(b, "Nothing was measured yet.")
		return err
	}
	g := Grid{Head: []string{"Qwen2.5 on one " + device}, Left: 1}
	rows := [][]string{{"tokens/s"}, {"a step of 2048 tokens"}, {"memory planned"}}
	var links []string
	for _, size := range sizes {
		e, ok := best[device][size]
		if !ok {
			continue
		}
		g.Head = append(g.Head, strings.ToUpper(size))
		for i, cell := range []string{count(e.Tokens), seconds(e.Median), gib(e.Arena)} {
			rows[i] = append(rows[i], cell)
		}
		if l := link(folder, e.file); !slices.Contains(links, l) {
			links = append(links, l)
		}
	}
	g.Note = "Measured " + strings.Join(links, ", ") + "."
	for _, r := range rows {
		g.add(r...)
	}
	return g.Markdown(b)
}

// kernelsTable is a row an op: where it is, and how near its roof it comes, on the card with the newest kernels, a run of
// a few aside.
func kernelsTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	var newest *result.File
	for _, f := range files {
		if f.Kind == result.Kernels && f.Schema == result.Schema && f.Environment.Backend == "cuda" && supersedes(f, newest) {
			newest = f
		}
	}
	of := map[string][]Kernel{}
	if newest != nil {
		for _, k := range Kernels(newest) {
			if k.Variant != "auto" || k.Row.Params["method"] != "" {
				continue
			}
			of[k.Op] = append(of[k.Op], k)
		}
	}
	g := Grid{Head: []string{"op", "files", "variants", "bound", "of roof, cold", "x library, hot"}, Left: 4}
	for _, s := range Sources {
		roof, ratio := dash, dash
		var cold, hot []float64
		for _, k := range of[s.Op] {
			if k.Cache == "cold" && k.Roof > 0 {
				cold = append(cold, k.Roof)
			}
			if k.Cache == "hot" && k.Ratio > 0 {
				hot = append(hot, k.Ratio)
			}
		}
		if len(cold) > 0 {
			roof = share(slices.Min(cold)) + spread(slices.Max(cold) != slices.Min(cold), share(slices.Max(cold)))
		}
		if len(hot) > 0 {
			ratio = digits(slices.Min(hot), 3) + spread(slices.Max(hot) != slices.Min(hot), digits(slices.Max(hot), 3))
		}
		g.add(s.Op, s.Files, s.Variants, s.Bound, roof, ratio)
	}
	if newest == nil {
		g.Note = "Not yet measured by `qlora bench kernels`; times of the kernels' own programs are in results/."
	} else {
		g.Note = "On " + newest.Environment.Device() + ", " + link(folder, newest) + "."
	}
	return g.Markdown(b)
}

func spread(more bool, to string) string {
	if !more {
		return ""
	}
	return " to " + to
}

// runsTable lists what lies in results/.
func runsTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	g := Grid{Head: []string{"device", "run", "commit", "what", "rows"}, Left: 4}
	type run struct {
		first *result.File
		kinds map[string]int
		rows  int
	}
	runs := map[string]*run{}
	var order []string
	for _, f := range files {
		l := link(folder, f)
		key := f.Environment.Device() + l
		if runs[key] == nil {
			runs[key] = &run{first: f, kinds: map[string]int{}}
			order = append(order, key)
		}
		kind := string(f.Kind)
		if f.Schema < result.Schema {
			kind += " (schema 1)"
		}
		runs[key].kinds[kind]++
		runs[key].rows += len(f.Rows)
	}
	slices.SortStableFunc(order, func(x, y string) int {
		a, b := runs[x].first, runs[y].first
		return cmp.Or(cmp.Compare(a.Environment.Device(), b.Environment.Device()), b.Time.Compare(a.Time))
	})
	for _, key := range order {
		r := runs[key]
		g.add(r.first.Environment.Device(), link(folder, r.first), r.first.Environment.Program.Commit, strings.Join(sortedKeys(r.kinds), ", "), fmt.Sprint(r.rows))
	}
	return g.Markdown(b)
}

// stepsTable is every step, the newest of each shape on each device.
func stepsTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	g := Grid{Head: []string{"device", "model", "method", "tokens a step", "median", "tokens/s", "MFU", "J/token", "arena", "process", "run"}, Left: 4}
	type entry struct {
		s Step
		f *result.File
	}
	newest := map[string]entry{}
	for _, f := range files {
		for _, s := range Steps(f) {
			if s.Row.Params["trainer"] == "" && s.Tokens > 0 { // logs of runs that tell no tokens have no speed
				newest[f.Environment.Device()+"|"+s.Model+"|"+stepKey(s.Row)] = entry{s, f}
			}
		}
	}
	for _, key := range sortedKeys(newest) {
		s, f := newest[key].s, newest[key].f
		g.add(f.Environment.Device(), model(s.Model), method(s.Row), shapeText(s.Row), seconds(s.Median), count(s.Tokens), share(s.MFU), amount(s.Joules), gib(s.Arena), gib(s.Process), link(folder, f))
	}
	return g.Markdown(b)
}

func cardsTable(b *bytes.Buffer, _ string, files []*result.File, p Predictor) error {
	for _, g := range CompareCards(files, p).Grids() {
		if err := g.Markdown(b); err != nil {
			return err
		}
	}
	return nil
}

// newestOfKind is the last file of a kind, nil where there is none.
func newestOfKind(files []*result.File, kind result.Kind) *result.File {
	for _, f := range slices.Backward(files) {
		if f.Kind == kind {
			return f
		}
	}
	return nil
}

func notMeasured(b *bytes.Buffer, kind result.Kind) error {
	_, err := fmt.Fprintf(b, "Not yet measured by `qlora bench %s`.\n", kind)
	return err
}

// peersTable is the newest run with peers.
func peersTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	return writePeers(b, folder, files, func(g Grid) Grid { return g })
}

// fastestTable is the fastest row of each trainer in it.
func fastestTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	return writePeers(b, folder, files, func(g Grid) Grid { // the fastest first
		seen := map[string]bool{}
		g.Rows = slices.DeleteFunc(g.Rows, func(row []string) bool {
			was := seen[row[0]]
			seen[row[0]] = true
			return was
		})
		return g
	})
}

func writePeers(b *bytes.Buffer, folder string, files []*result.File, choose func(Grid) Grid) error {
	f := newestOfKind(files, result.Peers)
	if f == nil {
		return notMeasured(b, result.Peers)
	}
	g := choose(PeersGrid(f))
	g.Title, g.Note = "", "On "+f.Environment.Device()+", "+link(folder, f)+"."
	return g.Markdown(b)
}

// decodeTable is the newest run of answering: a prompt, and then token by token.
func decodeTable(b *bytes.Buffer, folder string, files []*result.File, _ Predictor) error {
	f := newestOfKind(files, result.Decode)
	if f == nil {
		return notMeasured(b, result.Decode)
	}
	prefill := map[string]float64{} // seconds by everything that a row says but its name
	for _, r := range f.Rows {
		if r.Name == "prefill" && len(r.Seconds) > 0 {
			prefill[strings.TrimPrefix(r.Key(), r.Name)] = r.Summary().Median
		}
	}
	g := Grid{Head: []string{"answers by", "weights, adapter", "sequences", "prompt", "its time", "a token", "tokens/s"}, Left: 2}
	for _, r := range f.Rows {
		if r.Name == "decode" && len(r.Seconds) > 0 {
			s := r.Summary()
			g.add(model(r.Params["model"]), method(r), r.Params["sequences"], r.Params["prompt"], seconds(prefill[strings.TrimPrefix(r.Key(), r.Name)]), seconds(s.Median), count(float64(r.Tokens)/s.Median))
		}
	}
	g.Note = "On " + f.Environment.Device() + ", " + link(folder, f) + "."
	return g.Markdown(b)
}

// Source is where an op of the seam is made on a card.
type Source struct {
	Op       string
	Files    string
	Variants string
	Bound    string
}

// Sources are the ops of opstest's cases, in the order of a step.
var Sources = []Source{
	{"Embed", "embed.cu", "one", "memory"},
	{"RMSNorm", "rmsnorm.cu lora.cuh", "one", "memory"},
	{"Linear", "linear.cu linear_sm80.cuh linear_sm90.cuh matvec.cu matvec_nf4.cu", "sm_80, sm_90a; matrix-vector for few tokens", "compute"},
	{"Attention", "attention.cu attention_fwd_sm80.cuh attention_fwd_sm90.cuh", "sm_80, sm_90a", "compute"},
	{"SwiGLU", "swiglu.cu lora.cuh", "one", "memory"},
	{"HeadLoss", "head_loss.cu head_product.cuh head_sm90.cuh", "sm_80, sm_90a", "compute"},
	{"HeadLoss eval", "head_loss.cu head_product.cuh head_sm90.cuh", "sm_80, sm_90a", "compute"},
	{"LinearBack", "linear.cu linear_sm80.cuh linear_sm90.cuh", "sm_80, sm_90a", "compute"},
	{"RMSNormBack", "rmsnorm_bwd.cu lora.cuh", "one", "memory"},
	{"SwiGLUBack", "swiglu_bwd.cu", "one", "memory"},
	{"AttentionBack", "attention.cu attention_bwd_sm80.cuh attention_bwd_sm90.cuh", "sm_80, sm_90a", "compute"},
	{"LoRAGrad", "lora_grad.cu", "one", "memory"},
	{"GradNorm", "adamw.cu", "one", "memory"},
	{"AdamW", "adamw.cu", "one", "memory"},
	{"Logits", "head_loss.cu head_product.cuh", "one", "compute"},
	{"KL", "head_loss.cu head_product.cuh", "one", "compute"},
	{"DecodeAttention", "decode.cu", "one", "memory"},
	{"Sample", "sample.cu", "one", "memory"},
	{"QuantNF4", "nf4.cu", "one", "memory"},
}
