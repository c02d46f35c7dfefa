package plan

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/montanaflynn/stats"

	"qlora/cuda/sizes"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

var update = flag.Bool("update", false, "make measured.json anew from results/")

const results = "../../results"

// TestMeasured holds measured.json to what results/ says.
func TestMeasured(t *testing.T) {
	m, err := measure()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, '\n')
	if *update {
		if err := os.WriteFile("measured.json", text, 0o666); err != nil {
			t.Fatal(err)
		}
		measuredJSON = text
	}
	if !bytes.Equal(text, measuredJSON) {
		t.Fatal("measured.json is not what results/ gives: run `go test ./model/plan -run TestMeasured -update`")
	}
	if len(m.Runs) < 5 || len(m.Share) < 10 || len(m.Attention) < 3 {
		t.Errorf("%d runs, %d ops, %d lengths of attention", len(m.Runs), len(m.Share), len(m.Attention))
	}
	median, worst := m.Accuracy()
	t.Logf("predictions are off by %.1f %% in the median of %d runs, %.1f %% at most", 100*median, len(m.Runs), 100*worst)
	for _, r := range m.Runs {
		t.Logf("%-60s %8.1f ms, predicted %8.1f (%+.1f %%)", r.File, 1e3*r.Seconds, 1e3*r.Predicted, 100*r.Error())
	}
	if median > 0.10 {
		t.Errorf("predictions are off by %.1f %% in the median", 100*median)
	}
}

// stepFile is what is read of a result of `qlora bench step` (docs/benchmarking.md).
type stepFile struct {
	path        string
	Kind, Time  string
	Environment struct{ Backend string }
	Rows        []stepRow
}

type stepRow struct {
	Params  map[string]string
	Seconds []float64
	Error   string
	Ops     []struct {
		Name           string
		Calls          float64
		Seconds, FLOPs float64
	}
}

func (r stepRow) number(param string) float64 {
	v, _ := strconv.ParseFloat(r.Params[param], 64)
	return v
}

// plain is a row of one sample of 7B in bfloat16, with rank 8 on all linear layers, of so many tokens.
func (r stepRow) plain(tokens int) bool {
	return len(r.Ops) > 0 && r.config() == runConfig{model: "qwen2.5-7b", T: tokens, samples: 1, rank: 8, targets: lora.AllLinear, labels: 1, dtype: ops.BF16} &&
		r.Params["variant"] == "" && r.number("dropout") == 0
}

func (r stepRow) config() runConfig {
	c := runConfig{model: r.Params["model"], samples: int(r.number("samples")), rank: int(r.number("rank")), targets: r.Params["targets"],
		labels: r.number("labels"), dtype: ops.BF16}
	c.T = int(r.number("tokens")) / max(1, c.samples)
	if r.Params["method"] == "nf4" {
		c.dtype = ops.NF4
	}
	return c
}

// op is the seconds of an op, its calls and its work.
func (r stepRow) op(name string) (seconds, calls, flops float64) {
	for _, o := range r.Ops {
		if o.Name == name {
			seconds, calls, flops = seconds+o.Seconds, calls+o.Calls, flops+o.FLOPs
		}
	}
	return
}

// stepFiles are the results of steps on cards, the oldest first.
func stepFiles() ([]stepFile, error) {
	paths, err := filepath.Glob(filepath.Join(results, "*", "*", "step*.json"))
	if err != nil {
		return nil, err
	}
	var all []stepFile
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		f := stepFile{path: path}
		if err := json.Unmarshal(text, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if f.Kind == "step" && f.Environment.Backend == "cuda" {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b stepFile) int {
		return cmp.Or(strings.Compare(a.Time, b.Time), strings.Compare(a.path, b.path))
	})
	return all, nil
}

// attentionLengths are those whose attention is compared with that of 2048 tokens.
var attentionLengths = []int{1024, 2048, 4096, 8192}

// metered is the newest result that has all of those lengths, and its rows of them.
func metered(all []stepFile) (stepFile, map[int]stepRow, error) {
	for _, f := range slices.Backward(all) {
		rows := map[int]stepRow{}
		for _, tokens := range attentionLengths {
			if i := slices.IndexFunc(f.Rows, func(r stepRow) bool { return r.plain(tokens) }); i >= 0 {
				rows[tokens] = f.Rows[i]
			}
		}
		if len(rows) == len(attentionLengths) {
			return f, rows, nil
		}
	}
	return stepFile{}, nil, fmt.Errorf("no step in %s has the lengths %d", results, attentionLengths)
}

func measure() (*Measured, error) {
	all, err := stepFiles()
	if err != nil {
		return nil, err
	}
	from, rows, err := metered(all)
	if err != nil {
		return nil, err
	}
	card := cardOf(from)
	m := &Measured{Card: card.Name, Share: map[string]float64{}}
	m.source(from.path)
	rate := func(tokens int, op string) float64 {
		seconds, _, flops := rows[tokens].op(op)
		return flops / seconds
	}
	for _, T := range attentionLengths {
		m.Attention = append(m.Attention, AttentionRate{T, rounded(rate(T, "Attention") / rate(2048, "Attention")),
			rounded(rate(T, "AttentionBack") / rate(2048, "AttentionBack"))})
	}
	base := rows[2048]
	meter, err := simulate(base.config(), card, m)
	if err != nil {
		return nil, err
	}
	calls := 0.0
	for op, w := range meter.Ops {
		seconds, n, _ := base.op(op)
		calls += n
		if seconds > 0 {
			m.Share[op] = rounded(w.Least / seconds)
		}
	}
	between, _, _ := base.op("between ops")
	m.Launch = rounded(between / calls)
	if err := m.readDequantise(); err != nil {
		return nil, err
	}
	return m, m.readRuns(all, from.Time)
}

func cardOf(f stepFile) Card {
	return CardLike(strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(f.path))), "nvidia-"), 0)
}

func rounded(v float64) float64 {
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	return v
}

func (m *Measured) source(path string) {
	m.Sources = append(m.Sources, strings.TrimPrefix(filepath.ToSlash(path), "../../"))
}

// readDequantise is of the card whose folder it is in, a Hopper one.
func (m *Measured) readDequantise() error {
	all, err := filepath.Glob(filepath.Join(results, "*", "*", "flat.jsonl"))
	if err != nil || len(all) == 0 {
		return fmt.Errorf("no flat.jsonl in %s: %v", results, err)
	}
	path := slices.MaxFunc(all, func(a, b string) int { // the folder's name begins with its date
		return strings.Compare(filepath.Base(filepath.Dir(a)), filepath.Base(filepath.Dir(b)))
	})
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	m.source(path)
	for line := range strings.Lines(string(text)) {
		var row struct {
			Op   string
			GBps float64
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if row.Op == "nf4_dequant" {
			m.Share["Dequantise"] = rounded(row.GBps / cards["h100"].GBps)
		}
	}
	return nil
}

// runConfig is what a measured run depends on.
type runConfig struct {
	model      string
	T, samples int
	rank       int
	targets    string // comma-separated
	labels     float64
	dtype      ops.DType
}

// simulate runs a step on a meter.
func simulate(c runConfig, card Card, m *Measured) (*Meter, error) {
	src, err := weights.NewRandom(c.model, 1)
	if err != nil {
		return nil, err
	}
	set, err := lora.New(src.Config, lora.Config{R: c.rank, Alpha: 32, Targets: strings.Split(c.targets, ",")})
	if err != nil {
		return nil, err
	}
	h := Row(c.T, c.samples, c.labels)
	T := len(h.IDs)
	r := Request{Sizes: sizes.Card{Multiprocessors: card.Multiprocessors}, Card: card, Src: src, Batch: h, Measured: m,
		Options: qwen2.Options{DType: c.dtype, Training: true, MaxT: T, MaxS: c.samples + 1, MaxN: T, Adapter: set}}
	meter, _, err := r.step(qwen2.Saving{})
	return meter, err
}

// readRuns predicts every run from a time on, but those of other cards' kernels.
func (m *Measured) readRuns(all []stepFile, since string) error {
	for _, f := range all {
		if f.Time < since {
			continue
		}
		for _, r := range f.Rows {
			c := r.config()
			if r.Error != "" || len(r.Seconds) == 0 || r.Params["variant"] != "" || !slices.Contains(weights.Presets(), c.model) {
				continue
			}
			meter, err := simulate(c, cardOf(f), m)
			if err != nil {
				return err
			}
			median, _ := stats.Median(r.Seconds) // fails of none
			m.Runs = append(m.Runs, Run{File: strings.TrimPrefix(filepath.ToSlash(f.path), "../../"), Card: cardOf(f).Name, Model: c.model,
				Tokens: c.T * c.samples, Seconds: rounded(median), Predicted: rounded(meter.Seconds)})
		}
	}
	return nil
}
