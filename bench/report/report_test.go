package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"image/png"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"qlora/bench"
	"qlora/bench/compare"
	"qlora/bench/result"
	"qlora/cuda/sizes"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
	"qlora/model/plan"
)

// planner predicts as the program does.
var planner = bench.Planner{Sizes: func(c plan.Card) ops.Sizes { return sizes.Card{Multiprocessors: c.Multiprocessors} }, Host: 32 << 30}

// Look at what the tests make: go test ./bench/report -args -keep /tmp/report
var keepFlag = flag.String("keep", "", "a folder to keep page and pictures in, to look at")

func out(t *testing.T) string {
	if *keepFlag != "" {
		return *keepFlag
	}
	return t.TempDir()
}

func pageOf(t *testing.T, files []*result.File) string {
	t.Helper()
	var b bytes.Buffer
	if err := Page(&b, files, planner, time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPage(t *testing.T) {
	text := pageOf(t, world(t))
	if err := os.WriteFile(filepath.Join(out(t), "report.html"), []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`<section id="step"`, `<section id="roofline"`, `<section id="memory"`, `<section id="history"`, `<section id="cards"`, `<section id="sustained"`, `<section id="kernels"`,
		`<section id="decode"`, `<section id="vram1"`, `<section id="peers"`, `<section id="job"`, `<section id="facts"`, "NVIDIA H200", "a 24 GB card: 23.0", "RTX 4090 (prediction)", "predicted, never run",
		"prefers-color-scheme: dark", "width=device-width", "power cap in 62.0 % of the readings", "cuBLAS 13.1", "5 min 45 s", "unsloth", "id 00c0ffee00c0ffee"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if m := regexp.MustCompile(`(?i)(https?:)?//[a-z]|\bsrc=|@import|url\(|<link`).FindString(text); m != "" {
		t.Errorf("the page asks the network: %q", m)
	}
	charts := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(text, -1)
	if len(charts) != 6 {
		t.Errorf("%d charts, want 6", len(charts))
	}
	for i, c := range charts {
		d := xml.NewDecoder(strings.NewReader(c))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("chart %d: %v", i, err)
			}
			if e, ok := token.(xml.StartElement); ok {
				for _, a := range e.Attr {
					if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
						t.Errorf("chart %d: %s %s=%q", i, e.Name.Local, a.Name.Local, a.Value)
					}
				}
			}
		}
	}
	kernels := strings.Count(text, "data-v=") / 5
	if want := len(Kernels(world(t)[4])); kernels != want {
		t.Errorf("%d kernels in the table, want %d", kernels, want)
	}
}

// TestPageOfLittle: a page of one kind, of history alone, of hostile names.
func TestPageOfLittle(t *testing.T) {
	all := world(t)
	for _, f := range all {
		if text := pageOf(t, []*result.File{f}); strings.Contains(text, "NaN") || strings.Contains(text, "%!") {
			t.Errorf("%s alone: %.200s", f.Path, text)
		}
	}
	hostile := stepFile(`<script>alert("card")</script>`, 1<<30, `"><img src=x>`, 1, 1)
	hostile.Rows[0].Params["model"] = `<b onclick=x>&`
	hostile.Rows[0].Ops[0].Name = `</text><script>`
	if text := pageOf(t, []*result.File{hostile}); strings.Contains(text, "<script>alert") || strings.Contains(text, "<img") || strings.Contains(text, "<b onclick") || strings.Contains(text, "</text><script>") {
		t.Error("names of a result are taken for HTML")
	}
	history, err := result.Walk("../../results")
	if err != nil {
		t.Fatal(err)
	}
	pageOf(t, history)
	if err := Page(io.Discard, nil, nil, time.Now()); err == nil {
		t.Error("a page of nothing")
	}
}

func TestPictures(t *testing.T) {
	dir := out(t)
	names, err := Pictures(dir, world(t), planner)
	if err != nil || strings.Join(names, " ") != "cards.png roofline.png step.png memory.png" {
		t.Fatalf("%q, %v", names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		picture, err := png.Decode(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		colours := map[[3]uint32]int{}
		b := picture.Bounds()
		for y := b.Min.Y; y < b.Max.Y; y += 2 {
			for x := b.Min.X; x < b.Max.X; x += 2 {
				r, g, b, _ := picture.At(x, y).RGBA()
				colours[[3]uint32{r >> 8, g >> 8, b >> 8}]++
			}
		}
		r, g, bl, _ := colour(0).RGBA()
		if n := colours[[3]uint32{r >> 8, g >> 8, bl >> 8}]; n < 20 || b.Dx() < 1000 || b.Dy() < 300 {
			t.Errorf("%s: %v, %d points of the first colour", name, b, n)
		}
	}
	if err := CardsPicture(filepath.Join(dir, "none.png"), Cards{}); err == nil {
		t.Error("a picture of no card")
	}
}

func printed(t *testing.T, f *result.File, markdown bool) string {
	t.Helper()
	var b bytes.Buffer
	if err := Print(&b, f, markdown); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPrint(t *testing.T) {
	wants := map[result.Kind][]string{
		result.Step:    {"NVIDIA H200, driver 580.159, 700 W, sm_80 sm_90a, commit 89abcde, 2026-11-27", "copy", "Qwen2.5 7B", "tokens/s", "MFU", "17,", "0.0366", "20.73 GiB", "between ops", "backward", "A metered step takes", "weights", "sensors: 1560 MHz"},
		result.Kernels: {"Linear/7B T2048", "cold", "95 % interval", "x library", "cuBLAS 13.1, in turns"},
		result.VRAM:    {"The longest row that fits", "23 GiB", "2,560"},
		result.Decode:  {"Generation", "257", "of read"},
		result.Job:     {"the article, RTX 4090D", "276.0 s", "8.08", "all that both have", "345.0 s", "19.00 GiB; the article's 21.74 GB"},
		result.Peers:   {"Not measured", "No module named 'liger_kernel'"},
	}
	for _, f := range world(t)[4:] {
		for _, markdown := range []bool{false, true} {
			got := printed(t, f, markdown)
			for _, want := range wants[f.Kind] {
				if !strings.Contains(got, want) {
					t.Errorf("%s, markdown %v, lacks %q:\n%s", f.Kind, markdown, want, got)
				}
			}
			if strings.Contains(got, "NaN") || strings.Contains(got, "%!") {
				t.Errorf("%s:\n%s", f.Kind, got)
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{seconds(78.66e-6), "78.66 us"}, {seconds(0.11942), "119.4 ms"}, {seconds(2.5), "2.500 s"}, {seconds(700), "11m40s"}, {seconds(0), "-"}, {seconds(math.Inf(1)), "-"}, {seconds(1e-9), "0.001000 us"},
		{rate(689.2e12), "689 T"}, {rate(17.5e9), "17.5 G"}, {rate(3), "3.00"}, {rate(0), "-"}, {count(1234567), "1,234,567"}, {count(12), "12"}, {count(123), "123"}, {count(0), "-"},
		{share(0.1234), "12.3 %"}, {share(0), "-"}, {difference(1.05), "+5.0 %"}, {difference(0), "-"}, {gib(22263187968), "20.73 GiB"}, {gib(1 << 20), "1.00 MiB"}, {gib(0), "-"}, {amount(0.0366), "0.0366"},
		{model("qwen2.5-7b"), "Qwen2.5 7B"}, {model("mini"), "mini"}, {digits(0, 3), "0"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestCompareCards(t *testing.T) {
	c := CompareCards(world(t), planner)
	if len(c.Cards) != len(plan.CardNames()) {
		t.Fatalf("%d cards", len(c.Cards))
	}
	h200, h100 := c.Cards[0], c.Cards[1]
	if h200.Device != "NVIDIA H200" || h200.Step.Row.Params["tokens"] != "2048" || math.Abs(h200.Tokens-2048/(0.1194*0.98)) > 100 || h200.PerWatt < 27 || h200.PerWatt > 28 || h200.Job != 21 || h200.Predicted {
		t.Errorf("%+v", h200)
	}
	if h100.Predicted || h100.Error == 0 || h200.Error == 0 || math.Abs(h100.Error) > 0.3 || math.Abs(h200.Error) > 0.3 {
		t.Errorf("errors of the predictions: %v and %v", h100.Error, h200.Error)
	}
	for i, m := range c.Cards[2:] {
		if !m.Predicted || m.Tokens <= 0 || m.Step != nil || !strings.HasPrefix(m.Remark, "prediction") || i > 0 && m.Tokens > c.Cards[1+i].Tokens {
			t.Errorf("%+v", m)
		}
	}
	if len(c.Kernels) < 20 || c.First != "NVIDIA H200" {
		t.Fatalf("%d kernels against the %s", len(c.Kernels), c.First)
	}
	for _, k := range c.Kernels {
		if !k.Significant || k.Ratio < 0.88 || k.Ratio > 0.94 { // 1/1.1
			t.Errorf("%+v", k)
		}
	}
	var b bytes.Buffer
	for _, g := range c.Grids() {
		if err := g.Text(&b); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"GeForce RTX 4090 ", "~ 3,", "prediction", "measured; the prediction: ", "how many times as fast the NVIDIA H200 is", "yes"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the tables lack %q:\n%s", want, &b)
		}
	}
	// A run that a card has no room for is none of its results.
	step := result.Row{Params: maps.Clone(reference), Tokens: 2048}
	step.Params["model"] = "qwen2.5-32b"
	known, err := plan.CardNamed("rtx4090")
	if err != nil {
		t.Fatal(err)
	}
	var no *plan.NoFit
	if _, _, err := planner.Predict(step, known); !errors.As(err, &no) {
		t.Errorf("32B in 16 bits on 24 GB: %v", err)
	}
	step.Params["method"] = "nf4"
	if seconds, how, err := planner.Predict(step, known); err != nil || seconds <= 0 || how == "" {
		t.Errorf("32B in 4 bits on 24 GB: %v, %q, %v", seconds, how, err)
	}
	if c := CompareCards(nil, planner); len(c.Cards) != 0 || len(c.Grids()) != 1 {
		t.Errorf("of nothing: %+v", c)
	}
}

func TestPrintComparison(t *testing.T) {
	all := world(t)
	r, err := compare.Files(all[1:2], all[5:6], compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := PrintComparison(&b, r, false, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FASTER", "-5.8 %", "4 FASTER", "of 4 rows", "geometric mean -5."} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &b)
		}
	}
}

// TestPagesAreFresh: the tables in README.md, kernels/README.md and results/README.md are those that results/ gives.
func TestPagesAreFresh(t *testing.T) {
	stale, err := FillPages("../..", planner, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(stale) > 0 {
		t.Errorf("%s: stale: run `qlora bench tables`", strings.Join(stale, ", "))
	}
}

func TestFill(t *testing.T) {
	const p = "before\n<!-- bench:sizes -->\nold\n<!-- /bench -->\nbetween\n<!-- bench:runs -->\n<!-- /bench -->\nbehind\n"
	files := world(t)
	once, err := Fill([]byte(p), ".", files, planner)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := Fill(once, ".", files, planner)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("filled again it differs, %v", err)
	}
	got := string(once)
	for _, want := range []string{"before\n<!-- bench:sizes -->\n| Qwen2.5 on one NVIDIA H200", "[2026-11-27](results/nvidia-h200/20261127-89abcde)", "1.5B", "20.73 GiB", "\nbetween\n", "\nbehind\n", "| NVIDIA H100 80GB HBM3 "} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") {
		t.Error("the old table stays")
	}
	for name := range marked {
		for _, some := range [][]*result.File{files, nil} {
			if _, err := Fill([]byte("<!-- bench:"+name+" -->\n<!-- /bench -->\n"), ".", some, planner); err != nil {
				t.Errorf("%s of %d files: %v", name, len(some), err)
			}
		}
	}
	if _, err := Fill([]byte("<!-- bench:other -->\n<!-- /bench -->\n"), ".", files, nil); err == nil || !strings.Contains(err.Error(), "cards, decode, fastest, kernels") {
		t.Errorf("an unknown table: %v", err)
	}
}

// TestFastest: a trainer stands once, with its fastest row.
func TestFastest(t *testing.T) {
	files := world(t)
	for _, f := range files {
		if f.Kind != result.Peers {
			continue
		}
		for _, r := range slices.Clone(f.Rows) {
			if r.Params["trainer"] != "unsloth" {
				continue
			}
			r.Params = maps.Clone(r.Params)
			r.Params["checkpointing"], r.Seconds = "yes", result.Samples{0.3}
			f.Rows = append([]result.Row{r}, f.Rows...)
		}
	}
	table := func(name string) string {
		page, err := Fill([]byte("<!-- bench:"+name+" -->\n<!-- /bench -->\n"), ".", files, planner)
		if err != nil {
			t.Fatal(err)
		}
		return string(page)
	}
	all, fastest := table("peers"), table("fastest")
	if strings.Count(all, "| unsloth ") != 2 || strings.Count(fastest, "| unsloth ") != 1 || strings.Contains(fastest, "300.0 ms") || strings.Count(fastest, "| qlora ") != 1 {
		t.Errorf("%s\n%s", all, fastest)
	}
}

// TestDecodeTable: a row has the time of its own prompt beside that of a token.
func TestDecodeTable(t *testing.T) {
	row := func(name, sequences string, seconds float64, tokens int) result.Row {
		return result.Row{Name: name, Params: map[string]string{"model": "qwen2.5-7b", "method": "nf4", "prompt": "512", "sequences": sequences}, Seconds: result.Samples{seconds}, Tokens: tokens}
	}
	f := result.File{Schema: result.Schema, Kind: result.Decode, Path: "results/card/20260102-abc/decode.json",
		Rows: []result.Row{row("prefill", "1", 0.012, 512), row("decode", "1", 0.005, 1), row("prefill", "4", 0.04, 2048), row("decode", "4", 0.008, 4)}}
	page, err := Fill([]byte("<!-- bench:decode -->\n<!-- /bench -->\n"), ".", []*result.File{&f}, planner)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(string(page)), " ")
	for _, want := range []string{"| Qwen2.5 7B | nf4 | 1 | 512 | 12.00 ms | 5.000 ms | 200 |", "| Qwen2.5 7B | nf4 | 4 | 512 | 40.00 ms | 8.000 ms | 500 |", "](results/card/20260102-abc)"} {
		if !strings.Contains(words, want) {
			t.Errorf("lacks %q:\n%s", want, page)
		}
	}
}

// TestSources: every op of the cases has a row, and every file named is there.
func TestSources(t *testing.T) {
	for _, c := range opstest.Cases() {
		if !slices.ContainsFunc(Sources, func(s Source) bool { return s.Op == c.Op }) {
			t.Errorf("%s has no row", c.Op)
		}
	}
	for _, s := range Sources {
		for file := range strings.FieldsSeq(s.Files) {
			if _, err := os.Stat(filepath.Join("../../kernels", file)); err != nil {
				t.Errorf("%s: %v", s.Op, err)
			}
		}
	}
}
