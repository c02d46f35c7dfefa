package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/montanaflynn/stats"

	"qlora/internal/atomicfile"
	layout "qlora/model/memory"
	"qlora/model/ops"
	"qlora/model/plan"
	"qlora/model/qwen2"
	"qlora/model/train"
	"qlora/model/weights"
)

// memoryFlags say how much memory a run may take, and what is stored in 4 bits.
type memoryFlags struct {
	VRAMBudget  string `name:"vram_budget" group:"Memory" placeholder:"SIZE" help:"Memory that the process may take of the card: 23GiB, 24GB, 8192MiB. By default what is free there. To stay within it the run keeps less and computes again, in the way that costs the least time, which changes no result; what does not fit in any way is refused before anything is loaded. On the processor: memory for the run."`
	QuantMethod string `name:"quant_method" group:"Memory" placeholder:"NAME" help:"bnb: the linear layers of the base in bitsandbytes' NF4, quantised while they are loaded (QLoRA)."`
	QuantBits   int    `name:"quant_bits" group:"Memory" help:"4, with --quant_method bnb."`
	QuantType   string `name:"bnb_4bit_quant_type" group:"Memory" default:"nf4" placeholder:"NAME" help:"nf4."`
	DoubleQuant bool   `name:"bnb_4bit_use_double_quant" group:"Memory" default:"true" help:"Quantise the scales of NF4 too: 0.37 bits a weight less."`
	CheckMemory bool   `name:"check_memory" group:"Memory" help:"Fill the memory with a pattern, and say at the end how far each category was written; exit status 1 where that is not what was planned. Rows must be as long as planned, as of --dataset random:2048x12, and buffers share no places: it takes more memory."`

	chosen  *plan.Choice
	of      memoryRun
	speeds  []float64 // tokens/s of the steps
	started float64   // seconds from the program's start to the end of the first step
}

// memoryRun is what a memory report is of.
type memoryRun struct {
	Model     string `json:"model"`
	Weights   string `json:"weights"`
	RowTokens int    `json:"row_tokens"`
}

// programBegun is when this program started, to within what Go takes before main.
var programBegun = time.Now()

// watch adds to a run's hooks what the report says of speed.
func (f *memoryFlags) watch(h *train.Hooks) {
	step := h.Step
	h.Step = func(p train.Progress) {
		if f.speeds = append(f.speeds, p.TokensPerSec); len(f.speeds) == 1 {
			f.started = time.Since(programBegun).Seconds()
		}
		step(p)
	}
}

// restore takes quantisation from the args.json of an adapter where the flags leave it out: it was trained on such a base.
func (f *memoryFlags) restore(e *env, m *modelFlags) error {
	dir := m.adapterDir()
	if dir == "" || m.ignoreArgs || f.QuantMethod != "" || f.QuantBits != 0 {
		return nil
	}
	saved, err := readArgs(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if saved.QuantBits == 0 {
		return nil
	}
	f.QuantMethod, f.QuantBits = saved.QuantMethod, saved.QuantBits
	if saved.DoubleQuant != nil {
		f.DoubleQuant = *saved.DoubleQuant
	}
	e.logf("quantisation: %s in %d bits, as %s says", f.QuantMethod, f.QuantBits, filepath.Join(dir, train.ArgsName))
	return nil
}

// quantises says whether the linear layers are to be NF4.
func (f *memoryFlags) quantises() (bool, error) {
	method := strings.ToLower(f.QuantMethod)
	if slices.Contains(disabled, method) {
		method = ""
	}
	switch {
	case method == "" && f.QuantBits == 0:
		return false, nil
	case method != "" && method != "bnb":
		return false, fmt.Errorf("--quant_method %s: known but not supported: choose bnb, with --quant_bits 4", f.QuantMethod)
	case f.QuantBits == 0:
		return false, errors.New("--quant_method bnb needs --quant_bits 4")
	case f.QuantBits != 4:
		return false, fmt.Errorf("--quant_bits %d: known but not supported: choose 4", f.QuantBits)
	case f.QuantType != "nf4":
		return false, fmt.Errorf("--bnb_4bit_quant_type %s: known but not supported: choose nf4", f.QuantType)
	}
	return true, nil
}

// units are those of a size, in bytes.
var units = map[string]float64{"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30,
	"kb": 1e3, "mb": 1e6, "gb": 1e9}

// parseSize reads 23GiB, 24GB, 8192MiB, 24G (GiB) or a number of bytes.
func parseSize(text string) (int64, error) {
	number := strings.TrimRight(strings.ToLower(strings.TrimSpace(text)), "abcdefghijklmnopqrstuvwxyz ")
	unit, known := units[strings.TrimSpace(strings.ToLower(strings.TrimSpace(text))[len(number):])]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || !(n > 0) || n*unit >= 1<<60 {
		return 0, fmt.Errorf("%q is not a size: write it as 23GiB, 24GB or 8192MiB", text)
	}
	return int64(n * unit), nil
}

// room is the memory there is for a run.
type room struct {
	block int64 // for its one block
	host  int64 // of the host's memory, pinned; 0: none
	card  plan.Card
}

// cardLike is a backend whose speed a plan predicts.
type cardLike interface {
	MemInfo() (free, total int64, err error)
}

// roomy is a backend that knows its room. budget is what the process may take, 0 for all there is.
type roomy interface {
	room(budget int64) (room, error)
}

// fit chooses what a run keeps less of to stay within its budget, and says so. The run's rows hold o.MaxT tokens at most.
func (f *memoryFlags) fit(e *env, b ops.Backend, src *weights.Model, o *qwen2.Options) error {
	budget := int64(0)
	if f.VRAMBudget != "" {
		var err error
		if budget, err = parseSize(f.VRAMBudget); err != nil {
			return usageError{fmt.Errorf("--vram_budget: %w", err)}
		}
	}
	o.Watch = f.CheckMemory
	f.of = memoryRun{cmp.Or(src.HubID, filepath.Base(src.Dir)), storage(src, o.DType), o.MaxT}
	known, ok := b.(roomy)
	if !ok {
		return nil
	}
	has, err := known.room(budget)
	if err != nil {
		return err
	}
	r := plan.Request{Sizes: b, Card: has.card, Src: src, Options: *o, Batch: plan.Row(o.MaxT, 1, 1), Budget: max(has.block, 1), HostBudget: has.host}
	r.Options.MaxN = max(r.Options.MaxN, 1)
	f.chosen, err = plan.Choose(r)
	var no *plan.NoFit
	if errors.As(err, &no) {
		return &noFitError{no.Need, no.Budget, nearby(r, f.VRAMBudget != "")}
	}
	if err != nil {
		return err
	}
	o.Saving = f.chosen.Saving
	for _, fallback := range f.chosen.Fallbacks {
		e.logf("memory: %v", fallback)
	}
	return nil
}

// nearby are configurations near a request that fit.
func nearby(r plan.Request, given bool) []string {
	var fits []string
	longest := func(r plan.Request) int {
		if !r.Options.Training {
			return contextThatFits(r)
		}
		_, n, err := plan.Longest(r, func(T int) ops.HostBatch { return plan.Row(T, 1, 1) })
		if err != nil || n < ops.GradBlock || n >= r.Options.MaxT {
			return 0
		}
		return n
	}
	what := "rows"
	if !r.Options.Training {
		what = "prompt and answer together"
	}
	if n := longest(r); n > 0 {
		fits = append(fits, fmt.Sprintf("%s of at most %d tokens (--max_length %d)", what, n, n))
	}
	if r.Options.DType == ops.BF16 && !r.Src.Quantized {
		four := r
		four.Options.DType = ops.NF4
		if _, err := plan.Choose(four); err == nil {
			fits = append(fits, "the base in 4 bits (--quant_method bnb --quant_bits 4)")
		} else if n := longest(four); n > 0 {
			fits = append(fits, fmt.Sprintf("the base in 4 bits and %s of at most %d tokens (--quant_method bnb --quant_bits 4 --max_length %d)", what, n, n))
		}
	}
	if given {
		more := r
		more.Budget = 0
		if c, err := plan.Choose(more); err == nil { // with everything kept: no less is known to be enough
			fits = append(fits, fmt.Sprintf("%s for the run's block with nothing made again (a larger --vram_budget)", plan.GiB(c.Plan.Bytes)))
		}
	}
	return fits
}

// contextThatFits is the half, quarter, ... of an inference's tokens that fits, 0: none.
func contextThatFits(r plan.Request) int {
	for n := r.Options.Context / 2; n >= ops.GradBlock; n /= 2 {
		r.Options.Context = n
		if _, err := plan.Choose(r); err == nil {
			return n
		}
	}
	return 0
}

// planned says what the memory of a built model is made of.
func (f *memoryFlags) planned(e *env, m *qwen2.Model) {
	var parts []string
	bytes := m.Plan.Fullest()
	for _, c := range layout.Categories() {
		if bytes[c] > 0 {
			parts = append(parts, fmt.Sprintf("%v %.2f", c, float64(bytes[c])/(1<<30)))
		}
	}
	text := ""
	if m.Plan.HostBytes > 0 {
		text = fmt.Sprintf("; in host memory %.2f", float64(m.Plan.HostBytes)/(1<<30))
	}
	e.logf("memory at the fullest moment, GiB: %s%s", strings.Join(parts, ", "), text)
}

// memoryReport is memory.json of a run: what was planned and what it took.
type memoryReport struct {
	memoryRun
	Block      int64            `json:"block_bytes"`
	Host       int64            `json:"host_bytes"`
	Categories map[string]int64 `json:"fullest_moment_bytes"`
	Saving     qwen2.Saving     `json:"keeps_less"`
	Fallbacks  []plan.Fallback  `json:"fallbacks,omitempty"`
	Budget     string           `json:"vram_budget,omitempty"`

	// Context is what the process takes of the card beside its block: as bounded in the plan, and as it was; 0 where the
	// driver does not tell, or there is no card.
	ContextPlanned  int64 `json:"context_planned_bytes,omitempty"`
	ContextMeasured int64 `json:"context_measured_bytes,omitempty"`
	ProcessMeasured int64 `json:"process_measured_bytes,omitempty"`

	LoadGBps     float64 `json:"load_gb_per_second,omitempty"`
	FirstStep    float64 `json:"first_step_seconds,omitempty"` // from the program's start to the first step's end
	TokensPerSec float64 `json:"tokens_per_second,omitempty"`  // the median of the steps but the first
	Predicted    float64 `json:"predicted_tokens_per_second,omitempty"`

	Written map[string]writtenBytes `json:"written,omitempty"` // with --check_memory, by category
}

type writtenBytes struct {
	Planned int64 `json:"planned_bytes"`
	Written int64 `json:"written_bytes"`
}

// finish says what the run took beside what was planned, and writes memory.json into dir ("": nowhere). What is not as
// planned is errCheckFailed.
func (f *memoryFlags) finish(e *env, b ops.Backend, m *qwen2.Model, dir string) error {
	r := memoryReport{memoryRun: f.of, FirstStep: f.started, Block: m.Plan.Bytes, Host: m.Plan.HostBytes, Categories: map[string]int64{}, Budget: f.VRAMBudget}
	for c, bytes := range m.Plan.Fullest() {
		if bytes > 0 {
			r.Categories[layout.Category(c).String()] = bytes
		}
	}
	if f.chosen != nil {
		r.Saving, r.Fallbacks = f.chosen.Saving, f.chosen.Fallbacks
		if _, card := b.(cardLike); card && f.chosen.Meter.Seconds > 0 {
			r.Predicted = float64(f.of.RowTokens) / f.chosen.Meter.Seconds
		}
	}
	if len(f.speeds) > 1 {
		r.TokensPerSec, _ = stats.Median(f.speeds[1:])
	}
	failed := measureProcess(e, b, &r)
	if f.CheckMemory {
		bad, err := f.checkWritten(e, m, &r)
		if err != nil {
			return err
		}
		failed = failed || bad
	}
	if dir != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := atomicfile.WriteBytes(filepath.Join(dir, "memory.json"), append(text, '\n')); err != nil {
			return err
		}
	}
	if failed {
		return errCheckFailed
	}
	return nil
}

// checkWritten holds each category's high-water mark to the plan.
func (f *memoryFlags) checkWritten(e *env, m *qwen2.Model, r *memoryReport) (bad bool, err error) {
	marks, err := m.HighWater()
	if err != nil {
		return false, err
	}
	onCard := m.Plan.Buffers[0].Category == layout.Weights && marks[0].Written > 0 // the processor's weights lie elsewhere
	r.Written = map[string]writtenBytes{}
	for _, c := range layout.Categories() {
		planned, written := qwen2.Peaks(marks, c)
		if planned == 0 || c == layout.Weights && !onCard {
			continue
		}
		r.Written[c.String()] = writtenBytes{planned, written}
		verdict := "as planned"
		switch {
		case planned == written:
		case (c == layout.IO || c == layout.Workspace) && written < planned:
			// What a batch holds of labels and segments depends on the data, and so does how far scratch memory is used.
			verdict = "within what was planned"
		default:
			verdict, bad = "not as planned", true
		}
		e.logf("memory: %v: %d bytes planned, %d written: %s", c, planned, written, verdict)
	}
	if !bad {
		return false, nil
	}
	for _, mark := range marks {
		if mark.Written != mark.Bytes && (mark.Category != layout.Weights || onCard) {
			e.logf("memory: %v: %s: %d of %d bytes written", mark.Category, mark.Name, mark.Written, mark.Bytes)
		}
	}
	return true, nil
}
