package plan

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

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

// profiled is the newest folder of results with the profile of a 7B step.
func profiled() (dir string, err error) {
	all, err := filepath.Glob(filepath.Join(results, "*", "*", "step", "7b-profile.log"))
	if err != nil || len(all) == 0 {
		return "", fmt.Errorf("no profile in %s: %v", results, err)
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(date(a), date(b)) })
	return filepath.Dir(filepath.Dir(all[len(all)-1])), nil
}

// date is the part of a path of results that begins with one.
func date(path string) string {
	return strings.Split(strings.TrimPrefix(filepath.ToSlash(path), results+"/"), "/")[1]
}

func measure() (*Measured, error) {
	dir, err := profiled()
	if err != nil {
		return nil, err
	}
	card := CardLike(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "nvidia-"), 0)
	m := &Measured{Card: card.Name, Share: map[string]float64{}}
	log := filepath.Join(dir, "step", "7b-profile.log")
	seconds, launch, err := readProfile(log)
	if err != nil {
		return nil, err
	}
	m.source(log)
	if err := m.readAttention(); err != nil {
		return nil, err
	}
	meter, err := simulate(runConfig{model: "qwen2.5-7b", T: 2048, samples: 1, rank: 8, labels: 1}, card, m)
	if err != nil {
		return nil, err
	}
	for op, w := range meter.Ops {
		if seconds[op] > 0 {
			m.Share[op] = rounded(w.Least / seconds[op])
		}
	}
	m.Launch = rounded(launch)
	if err := m.readDequantise(); err != nil {
		return nil, err
	}
	return m, m.readRuns(date(dir))
}

func rounded(v float64) float64 {
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	return v
}

func (m *Measured) source(path string) {
	m.Sources = append(m.Sources, strings.TrimPrefix(filepath.ToSlash(path), "../../"))
}

// readProfile reads the table of a profile: seconds a step of each op, and those between two ops.
func readProfile(path string) (seconds map[string]float64, launch float64, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	seconds, calls := map[string]float64{}, 0.0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "│")
		if len(cells) < 8 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		ms, err := strconv.ParseFloat(cells[4], 64)
		if err != nil {
			continue // the head
		}
		if strings.HasPrefix(cells[1], "between") {
			launch = ms / 1e3
			continue
		}
		n, err := strconv.ParseFloat(cells[3], 64)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %q", path, line)
		}
		seconds[cells[1]] += ms / 1e3
		calls += n
	}
	if len(seconds) == 0 || calls == 0 {
		return nil, 0, fmt.Errorf("%s holds no profile", path)
	}
	return seconds, launch / calls, nil
}

// eachLine decodes the lines of the newest file of a name.
func eachLine[T any](m *Measured, pattern string, do func(T)) error {
	all, err := filepath.Glob(filepath.Join(results, "*", "*", pattern))
	if err != nil || len(all) == 0 {
		return fmt.Errorf("no %s in %s: %v", pattern, results, err)
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(date(a), date(b)) })
	path := all[len(all)-1]
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	m.source(path)
	for line := range strings.Lines(string(text)) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		do(v)
	}
	return nil
}

func (m *Measured) readAttention() error {
	type row struct {
		Name, Kernel string
		T            int
		Alone        float64 `json:"alone_tflops"`
	}
	rates := map[int]*AttentionRate{}
	err := eachLine(m, "attention.jsonl", func(r row) {
		if r.Name != "one segment" || r.Alone == 0 {
			return
		}
		if rates[r.T] == nil {
			rates[r.T] = &AttentionRate{T: r.T}
		}
		switch r.Kernel {
		case "fwd":
			rates[r.T].Forward = r.Alone
		case "back":
			rates[r.T].Back = r.Alone
		}
	})
	if err != nil {
		return err
	}
	base := rates[2048]
	if base == nil {
		return fmt.Errorf("attention.jsonl has no length of 2048")
	}
	unit := *base
	for _, r := range rates {
		if r.Forward > 0 && r.Back > 0 {
			m.Attention = append(m.Attention, AttentionRate{r.T, rounded(r.Forward / unit.Forward), rounded(r.Back / unit.Back)})
		}
	}
	slices.SortFunc(m.Attention, func(a, b AttentionRate) int { return a.T - b.T })
	return nil
}

func (m *Measured) readDequantise() error {
	type row struct {
		Op   string
		GBps float64
	}
	return eachLine(m, "flat.jsonl", func(r row) {
		if r.Op == "nf4_dequant" { // of the card whose folder it is, a Hopper one
			m.Share["Dequantise"] = rounded(r.GBps / cards["h100"].GBps)
		}
	})
}

// runConfig is a measured run, by the name of its files (README.md of their folder).
type runConfig struct {
	model      string
	T, samples int
	rank       int
	targets    []string
	labels     float64
	dtype      ops.DType
	saving     qwen2.Saving
}

func configOf(name string) (c runConfig, ok bool) {
	parts := strings.Split(name, "-")
	c = runConfig{model: "qwen2.5-" + parts[0], T: 2048, samples: 1, rank: 8, labels: 1, dtype: ops.BF16}
	if !slices.Contains(weights.Presets(), c.model) {
		return c, false
	}
	for _, p := range parts[1:] {
		n, err := strconv.Atoi(strings.TrimLeft(p, "Tr"))
		switch {
		case p == "qv":
			c.targets = []string{"q_proj", "v_proj"}
		case p == "16x64":
			c.T, c.samples = 64, 16
		case p == "30":
			c.labels = 0.3
		case p == "drop":
		case strings.HasPrefix(p, "T") && err == nil:
			c.T = n
		case strings.HasPrefix(p, "r") && err == nil:
			c.rank = n
		default:
			return c, false // a profile, or a run that is described elsewhere
		}
	}
	return c, true
}

// simulate runs a step on a meter.
func simulate(c runConfig, card Card, m *Measured) (*Meter, error) {
	src, err := weights.NewRandom(c.model, 1)
	if err != nil {
		return nil, err
	}
	if c.targets == nil {
		c.targets = []string{lora.AllLinear}
	}
	set, err := lora.New(src.Config, lora.Config{R: c.rank, Alpha: 32, Targets: c.targets})
	if err != nil {
		return nil, err
	}
	h := Row(c.T, c.samples, c.labels)
	T := len(h.IDs)
	r := Request{Sizes: sizes.Card{Multiprocessors: card.Multiprocessors}, Card: card, Src: src, Batch: h, Measured: m,
		Options: qwen2.Options{DType: max(c.dtype, ops.BF16), Training: true, MaxT: T, MaxS: c.samples + 1, MaxN: T, Adapter: set}}
	meter, _, err := r.step(c.saving)
	return meter, err
}

// readRuns predicts every run of the folder of the profile and of newer ones.
func (m *Measured) readRuns(since string) error {
	all, err := filepath.Glob(filepath.Join(results, "*", "*", "step", "*.jsonl"))
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, path := range all {
		c, ok := configOf(strings.TrimSuffix(filepath.Base(path), ".jsonl"))
		if !ok || date(path) < since {
			continue
		}
		seconds, err := stepSeconds(path)
		if err != nil {
			return err
		}
		card := CardLike(strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(path)))), "nvidia-"), 0)
		meter, err := simulate(c, card, m)
		if err != nil {
			return err
		}
		m.Runs = append(m.Runs, Run{File: strings.TrimPrefix(filepath.ToSlash(path), "../../"), Card: card.Name, Model: c.model,
			Tokens: c.T * c.samples, Seconds: rounded(seconds), Predicted: rounded(meter.Seconds)})
	}
	return nil
}

// stepSeconds is the median step of a run, which the last line of its log says.
func stepSeconds(path string) (float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var last struct {
		Seconds float64 `json:"train_step_seconds"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || !(last.Seconds > 0) || math.IsInf(last.Seconds, 0) {
		return 0, fmt.Errorf("%s: no train_step_seconds: %v", path, err)
	}
	return last.Seconds, nil
}
