package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qlora/bench"
	"qlora/bench/measure"
	"qlora/bench/report"
	"qlora/bench/result"
	"qlora/model/ops"
	"qlora/model/plan"
)

// benchCmd is `qlora bench`: what measures, and what reads the results.
type benchCmd struct {
	Quick   quickCmd        `cmd:"" help:"A minute: the card, its roofs, five kernels, one 7B step. No files, no weights."`
	Kernels benchKernelsCmd `cmd:"" help:"Every op of a 7B model's shapes: checked, then timed, cold and hot, beside the roofs and the vendor's libraries."`
	Step    benchStepCmd    `cmd:"" help:"A training step: tokens a second, MFU, joules a token, memory, and where the time goes."`
	VRAM    benchVRAMCmd    `cmd:"" name:"vram" help:"The memory of models, lengths and ranks, and what fits a budget."`
	Decode  benchDecodeCmd  `cmd:"" help:"Generation: prompts, and tokens one by one, for 1 to 8 sequences."`
	Job     benchJobCmd     `cmd:"" help:"A whole fine-tuning, from files to answers, beside the article's."`
	Compare benchCompareCmd `cmd:"" help:"Say what differs between two results, and fail on what got slower."`
	AB      benchABCmd      `cmd:"" name:"ab" help:"Compare two binaries, run in turns on one device."`
	Check   benchCheckCmd   `cmd:"" help:"Measure again what results/ has of this device, and compare."`
	GPUs    benchGPUsCmd    `cmd:"" name:"gpus" help:"Cards side by side, those never run as predictions."`
	Report  benchReportCmd  `cmd:"" help:"A page of results in one HTML file, and pictures."`
	Tables  benchTablesCmd  `cmd:"" help:"Write the tables in README.md, kernels/README.md and results/README.md anew."`
	Add     benchAddCmd     `cmd:"" help:"Take other people's results in, if they are complete."`
	Weights benchWeightsCmd `cmd:"" help:"Write random weights as a Hugging Face folder, for jobs and peers."`
	Peers   benchPeersCmd   `cmd:"" help:"The same step by PEFT, bitsandbytes, Unsloth and Liger, in one run with ours."`
}

func (benchCmd) Help() string {
	return `Results go to results/<device>/<date>-<commit>/ below the working folder, and never over others.

Examples
  qlora bench quick
  qlora bench step --model qwen2.5-7b
  qlora bench kernels --filter '^Linear'
  qlora bench compare results/nvidia-h200/20261127-0123abc new.json --fail_if 'median>3%'
  qlora bench report results -o report.html`
}

// benchDevice says what is measured.
type benchDevice struct {
	Backend string `name:"backend" group:"Device" default:"auto" placeholder:"NAME" help:"auto, cuda or cpu."`
	Variant string `name:"variant" group:"Device" default:"auto" placeholder:"NAME" help:"Kernels of a card: auto, its own where there are any; or sm_80, which every card from Ampere on runs."`
}

// benchRule says when there are enough samples.
type benchRule struct {
	Noise      float64       `name:"noise" group:"Samples" default:"0.005" help:"Sample until the 95 % interval of the median is this narrow, half its width over the median."`
	MinSamples int           `name:"min_samples" group:"Samples" default:"10" help:"But take this many at least."`
	MaxSamples int           `name:"max_samples" group:"Samples" default:"400" help:"And this many at most: a row that ends so is marked."`
	MaxTime    time.Duration `name:"max_time" group:"Samples" placeholder:"TIME" help:"And no longer than this for a row: likewise. By default 4s for a kernel, 20s for a step or a generation."`
}

// rule is that of the flags; most is how long a row may take where they do not say.
func (r benchRule) rule(most time.Duration) (measure.Rule, error) {
	r.MaxTime = cmp.Or(r.MaxTime, most)
	if r.MinSamples < 2 || r.MaxSamples < r.MinSamples || r.MaxTime <= 0 || !(r.Noise > 0) {
		return measure.Rule{}, usageError{errors.New("--min_samples must be at least 2 and at most --max_samples; --noise and --max_time must be positive")}
	}
	return measure.Rule{Least: r.MinSamples, Noise: r.Noise, Most: r.MaxSamples, Time: r.MaxTime}, nil
}

// benchOutput says what becomes of a result.
type benchOutput struct {
	Results string `name:"results" group:"Output" default:"results" placeholder:"DIR" help:"Add the result to the folder of this device, date and commit below DIR. '' for no file."`
	Out     string `name:"out" group:"Output" placeholder:"FILE" help:"Write the result to FILE instead; - for standard output, without tables."`
	Format  string `name:"format" group:"Output" default:"table" placeholder:"NAME" help:"What is printed: table, markdown, json or gobench (for benchstat)."`
}

// openBench opens a device to be measured. close ends it.
func openBench(e *env, d benchDevice, rule measure.Rule) (b *bench.Bench, closeAll func() error, err error) {
	open := func() (ops.Backend, measure.Probe, error) { return openDevice(e, d, true) }
	backend, probe, err := openDevice(e, d, false)
	if err != nil {
		return nil, nil, err
	}
	shown := newProgress(e)
	b = &bench.Bench{Backend: backend, Probe: probe, Rule: rule, Open: open, Suite: suite(e, d, backend), Variant: d.Variant, Room: benchRoom, Env: environment(backend, e.args),
		Say:  func(format string, args ...any) { shown.end(); e.logf(format, args...) },
		Step: shown.part}
	if b.Env.Program.Dirty {
		e.logf("notice: this program was built from files that differ from commit %s: its results are marked", b.Env.Program.Commit)
	}
	return b, func() error { shown.end(); return errors.Join(b.Probe.Close(), b.Backend.Close()) }, nil
}

// benchRoom is the memory there is for the runs of bench.
func benchRoom(b ops.Backend) (bench.Room, error) {
	const all = 1 << 60 // a budget, so that host memory counts on a processor too
	r := bench.Room{Free: all, Card: plan.Processor}
	if known, ok := b.(roomy); ok {
		has, err := known.room(all)
		if err != nil {
			return r, err
		}
		r = bench.Room{Free: has.block, Host: has.host, Card: has.card}
	}
	if _, ok := b.(cardLike); ok {
		r.Context = plan.Context
	}
	return r, nil
}

// openDevice opens a backend and the probe of its device.
func openDevice(e *env, d benchDevice, quiet bool) (ops.Backend, measure.Probe, error) {
	if quiet {
		silent := *e
		silent.err = io.Discard
		e = &silent
	}
	backend, err := openBackend(e, deviceFlags{Backend: d.Backend, variant: d.Variant})
	if err != nil {
		return nil, nil, err
	}
	probe, err := openProbe(backend)
	if err != nil {
		return nil, nil, errors.Join(err, backend.Close())
	}
	return backend, probe, nil
}

// environment is what is known of machine and program; the device adds itself.
func environment(b ops.Backend, args []string) result.Environment {
	v := result.Environment{Backend: b.Name(), Kernels: kernelsOf(b), Program: program(args),
		Host: result.Host{CPU: processorName(), Cores: runtime.NumCPU(), Threads: runtime.GOMAXPROCS(0)}}
	if total, _, err := memory(); err == nil {
		v.Host.Memory = int64(total)
	} else {
		v.Missing = append(v.Missing, "memory of the machine")
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		v.Host.System = strings.Join([]string{unix.ByteSliceToString(name.Sysname[:]), unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:])}, " ")
	}
	return v
}

// program is this binary: what the Makefile linked in, or what go build knows.
func program(args []string) result.Program {
	p := result.Program{Commit: version, Go: runtime.Version(), Args: portable(args)}
	if info, ok := debug.ReadBuildInfo(); ok && p.Commit == "" {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				p.Commit = s.Value[:min(12, len(s.Value))]
			case "vcs.modified":
				p.Dirty = s.Value == "true"
			}
		}
	}
	if clean, ok := strings.CutSuffix(p.Commit, "-dirty"); ok {
		p.Commit, p.Dirty = clean, true
	}
	p.Commit = cmp.Or(p.Commit, "unknown")
	return p
}

// portable are the words of a command line with file names in place of paths, which say nothing elsewhere.
func portable(args []string) []string {
	words := slices.Clone(args)
	for i, w := range words {
		flag, value, ok := strings.Cut(w, "=")
		if ok && filepath.IsAbs(value) {
			words[i] = flag + "=" + filepath.Base(value)
		} else if filepath.IsAbs(w) {
			words[i] = filepath.Base(w)
		}
	}
	return words
}

// keep writes a result where the flags say, and prints it. A run that was cut short is printed and not kept.
func (o benchOutput) keep(e *env, f *result.File, failed error) error {
	if f == nil {
		return failed
	}
	if failed == nil {
		if err := o.write(e, f); err != nil {
			return err
		}
	}
	if o.Out == "-" {
		return failed
	}
	return errors.Join(failed, o.print(e, f))
}

func (o benchOutput) write(e *env, f *result.File) error {
	switch {
	case o.Out == "-":
		return f.Encode(e.out)
	case o.Out != "":
		if _, err := os.Lstat(o.Out); !errors.Is(err, fs.ErrNotExist) {
			return usageError{fmt.Errorf("--out %s is there already: choose another", o.Out)}
		}
		e.logf("result: %s", o.Out)
		return f.WriteFile(o.Out)
	case o.Results != "":
		path, err := f.Add(o.Results)
		if err == nil {
			e.logf("result: %s", path)
		}
		return err
	}
	return nil
}

func (o benchOutput) check() error {
	switch o.Format {
	case "table", "markdown", "json", "gobench":
		return nil
	}
	return usageError{fmt.Errorf("--format %s: choose table, markdown, json or gobench", o.Format)}
}

func (o benchOutput) print(e *env, f *result.File) error {
	switch o.Format {
	case "json":
		return f.Encode(e.out)
	case "gobench":
		return result.WriteGoBench(e.out, []*result.File{f})
	}
	return report.Print(e.out, f, o.Format == "markdown")
}

// part shows how far a row of things is: a line that is written over on a terminal, nothing elsewhere.
func (p *progress) part(done, total int, what string) {
	if !p.terminal {
		return
	}
	if done == total {
		p.end()
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K%d of %d  %.100s", done, total, what)
	p.open = true
}

// pattern compiles a --filter.
func pattern(text string) (*regexp.Regexp, error) {
	if text == "" {
		return nil, nil
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("--filter %s: %w", text, err)}
	}
	return re, nil
}

// readable reads results that a command line names, and marks what is wrong with them as the user's.
func readable(paths []string) ([]*result.File, error) {
	files, err := result.ReadAll(paths)
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &syntax):
		return nil, usageError{err}
	case err != nil:
		return nil, err
	case len(files) == 0:
		return nil, usageError{fmt.Errorf("%s: no results of qlora bench there", strings.Join(paths, " "))}
	}
	return files, nil
}
