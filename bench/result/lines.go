package result

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"qlora/internal/strictjson"
)

// Schema 1: what programs wrote before the harness, a JSON object a line. The kernels' own programs (kernels/test) wrote
// a time a line, in microseconds, some twice: interleaved with others, and alone. A training run wrote a line a step.
// What they lack, samples and environment, stays empty, so that these rows make tables and history, and no comparison.

// lines migrates a file of schema 1. Card, date and commit are those of its folder.
func lines(path string, text []byte) (*File, error) {
	f := &File{Schema: 1, Kind: Kernels}
	f.placed(path)
	var steps []stepLine
	for n, line := range bytes.Split(text, []byte("\n")) {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		fail := func(err error) (*File, error) { return nil, fmt.Errorf("line %d: %w", n+1, err) }
		var s stepLine
		if err := strictjson.Unmarshal(line, limit, &s); err != nil {
			return fail(err)
		}
		if s.Step > 0 {
			steps = append(steps, s)
			continue
		}
		rows, err := kernelRows(line)
		if isOther(err) && len(steps) > 0 {
			continue // the last line of a training run, which sums it up
		}
		if err != nil {
			return fail(err)
		}
		f.Rows = append(f.Rows, rows...)
	}
	if len(steps) > 0 {
		f.Kind = Step
		f.Rows = append(f.Rows, stepRow(path, steps))
	}
	f.distinct()
	return f, f.check()
}

var runFolder = regexp.MustCompile(`^(\d{8})-(.+)$`)

// placed takes card, date and commit from the folder: results/<card>/<date>-<commit>/...
func (f *File) placed(path string) {
	parts := strings.Split(filepath.ToSlash(path), "/")
	for i := 1; i < len(parts)-1; i++ {
		m := runFolder.FindStringSubmatch(parts[i])
		if m == nil {
			continue
		}
		f.Time, _ = time.Parse("20060102", m[1])
		f.Environment.Program.Commit = m[2]
		f.Environment.Backend = "cuda"
		f.Environment.Card = &Card{Name: cardNamed(parts[i-1])}
		f.Environment.Missing = []string{"everything but card, date and commit: schema 1"}
		return
	}
}

// cardNamed undoes slug for the cards of NVIDIA: "NVIDIA H100 80GB HBM3".
func cardNamed(folder string) string {
	words := strings.Split(strings.ToUpper(folder), "-")
	for i, w := range words {
		switch w {
		case "GEFORCE":
			words[i] = "GeForce"
		case "TI", "SUPER":
			words[i] = w[:1] + strings.ToLower(w[1:])
		}
	}
	return strings.Join(words, " ")
}

// distinct drops rows of a key that occurred: a program that ran twice into one file.
func (f *File) distinct() {
	seen := map[string]bool{}
	f.Rows = slices.DeleteFunc(f.Rows, func(r Row) bool {
		was := seen[r.Key()]
		seen[r.Key()] = true
		return was
	})
}

// kernelRows are the times of a line of a kernel's program.
func kernelRows(line []byte) ([]Row, error) {
	object, err := strictjson.Parse(line, limit)
	if err != nil {
		return nil, err
	}
	number, params := map[string]float64{}, map[string]string{}
	err = object.Each(func(key []byte, v strictjson.Value) error {
		var text string
		var n float64
		if json.Unmarshal(v.Raw, &text) == nil {
			params[string(key)] = text
		} else if json.Unmarshal(v.Raw, &n) == nil {
			number[string(key)] = n
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	op := params["op"]
	if op == "" || number["us"] <= 0 {
		return nil, ErrOther
	}
	delete(params, "op")
	for name, v := range number {
		switch name {
		case "us", "tflops", "gbps", "ratio", "alone_us", "alone_tflops", "alone_ratio", "mhz", "watts":
		default:
			params[name] = strconv.FormatFloat(v, 'g', -1, 64)
		}
	}
	one := func(state string, us float64) Row {
		r := Row{Name: op, Params: map[string]string{"state": state}, Seconds: Samples{us * 1e-6},
			FLOPs: number["tflops"] * 1e6 * number["us"], Bytes: number["gbps"] * 1e3 * number["us"]}
		for name, v := range params {
			if v != "" {
				r.Params[name] = v
			}
		}
		return r
	}
	rows := []Row{one("interleaved", number["us"])}
	if number["alone_us"] > 0 {
		alone := one("alone", number["alone_us"])
		if mhz := number["mhz"]; mhz > 0 {
			alone.MHz = Samples{mhz}
		}
		rows = append(rows, alone)
	}
	return rows, nil
}

// stepLine is what matters here of a training run's line.
type stepLine struct {
	Step        int     `json:"step"`
	StepSeconds float64 `json:"step_seconds"`
	Memory      float64 `json:"memory(GiB)"`
}

// modelRun is the name of a run on random weights: 7b, 7b-drop.
var modelRun = regexp.MustCompile(`^([\d.]+b)(-|$)`)

// warmup is how many steps of a run do not count.
const warmup = 3

// stepRow is a run: its steps after the warm-up, and what its log beside says of it.
func stepRow(path string, steps []stepLine) Row {
	name := strings.TrimSuffix(filepath.Base(path), ".jsonl")
	r := Row{Name: "step", Params: map[string]string{"run": name}}
	if m := modelRun.FindStringSubmatch(name); m != nil {
		r.Params["model"] = "qwen2.5-" + m[1]
	}
	for _, s := range steps[min(warmup, len(steps)-1):] {
		if s.StepSeconds > 0 {
			r.Seconds = append(r.Seconds, s.StepSeconds)
		}
	}
	if len(r.Seconds) == 0 {
		r.Error = "the run did not time its steps"
	}
	if m := slices.MaxFunc(steps, func(a, b stepLine) int { return cmp.Compare(a.Memory, b.Memory) }).Memory; m > 0 {
		r.Memory = []Memory{{Category: MemoryArena, Planned: int64(m * (1 << 30))}}
	}
	log, err := os.ReadFile(strings.TrimSuffix(path, ".jsonl") + ".log")
	if err != nil {
		return r
	}
	if m := regexp.MustCompile(`(\d+) steps, last loss [^,]+, (\d+) tokens \((\d+) trained on\)`).FindSubmatch(log); m != nil {
		var n [3]int
		for i := range n {
			n[i], _ = strconv.Atoi(string(m[i+1])) // digits
		}
		if n[0] > 0 {
			r.Tokens, r.Labels = n[1]/n[0], n[2]/n[0]
		}
	}
	return r
}

// isOther says whether an error means that a file is none of ours.
func isOther(err error) bool { return errors.Is(err, ErrOther) }
