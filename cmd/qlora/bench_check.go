package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qlora/bench"
	"qlora/bench/compare"
	"qlora/bench/result"
	"qlora/model/weights"
)

// benchCheckCmd is `qlora bench check`.
type benchCheckCmd struct {
	comparison
	benchDevice
	benchRule
	Results  string   `name:"results" group:"Baseline" default:"results" placeholder:"DIR" help:"Where the baseline is: the newest result of this device below DIR."`
	Baseline string   `name:"baseline" group:"Baseline" placeholder:"FILE" help:"This result, or folder of them, instead."`
	Kinds    []string `name:"kinds" group:"Baseline" sep:"," default:"kernels,step" help:"What is measured again: kernels, step."`
	Filter   string   `name:"filter" group:"Baseline" placeholder:"REGEXP" help:"Only rows whose name matches."`
	Out      string   `name:"out" group:"Output" placeholder:"DIR" help:"Keep what was measured in this folder."`
}

func (benchCheckCmd) Help() string {
	return `Measures again the rows of the newest complete result of this device, and compares. Rows that got slower
are measured a second time, which then counts. Without --fail_if the rule is 'median>3%'.

Exit status 0: nothing got slower; 1: something did; 2: there is no baseline of this device.

Examples
  qlora bench check
  qlora bench check --kinds kernels --filter '^Attention' --fail_if 'median>2%'`
}

func (c *benchCheckCmd) Run(e *env) error {
	if len(c.FailIf) == 0 {
		c.FailIf = []string{"median>3%"}
	}
	if _, err := c.gates(); err != nil {
		return err
	}
	rule, err := c.rule(kernelTime)
	if err != nil {
		return err
	}
	filter, err := pattern(c.Filter)
	if err != nil {
		return err
	}
	b, done, err := openBench(e, c.benchDevice, rule)
	if err != nil {
		return err
	}
	defer done()
	b.Env.Card, _ = b.Probe.Card()
	old, err := c.baseline(b.Env)
	if err != nil {
		return err
	}
	for _, f := range old {
		if filter != nil {
			f.Rows = slices.DeleteFunc(f.Rows, func(r result.Row) bool { return !filter.MatchString(r.Name) })
		}
		e.logf("baseline: %s, %d rows of %s", f.Path, len(f.Rows), f.Time.Format("2006-01-02"))
	}
	new, err := c.measure(e, b, old)
	if err != nil {
		return err
	}
	if c.Out != "" {
		for _, f := range new {
			if err := os.MkdirAll(c.Out, 0o777); err != nil {
				return err
			}
			if err := f.WriteFile(filepath.Join(c.Out, string(f.Kind)+".json")); err != nil {
				return err
			}
		}
	}
	return c.run(e, old, new)
}

// measure measures the rows of a baseline, and those that got slower a second time, which then counts: what a neighbour or
// the place of memory did once it will hardly do twice.
func (c *benchCheckCmd) measure(e *env, b *bench.Bench, old []*result.File) ([]*result.File, error) {
	gates, err := c.gates()
	if err != nil {
		return nil, err
	}
	var all []*result.File
	for _, f := range old {
		first, err := measureAgain(e, b, f)
		if err != nil {
			return nil, err
		}
		if first == nil {
			continue
		}
		slower, err := c.slower(f, first, gates)
		if err != nil {
			return nil, err
		}
		if len(slower) > 0 {
			e.logf("%d of %d rows are slower: measured once more", len(slower), len(first.Rows))
			again := *f
			again.Rows = slices.DeleteFunc(slices.Clone(f.Rows), func(r result.Row) bool { return !slices.Contains(slower, r.Key()) })
			second, err := measureAgain(e, b, &again)
			if err != nil {
				return nil, err
			}
			second.Rows = slices.DeleteFunc(second.Rows, func(r result.Row) bool { return !slices.Contains(slower, r.Key()) })
			first = result.Join([]*result.File{first, second})[0]
		}
		all = append(all, first)
	}
	return all, nil
}

// slower are the rows by which a gate would close.
func (c *benchCheckCmd) slower(old, new *result.File, gates []compare.Gate) ([]string, error) {
	r, err := compare.Files([]*result.File{old}, []*result.File{new}, compare.Options{Margin: c.Margin, AnyDevice: c.AnyDevice})
	var refused *compare.Refused
	if errors.As(err, &refused) {
		return nil, usageError{err}
	}
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, g := range gates {
		for _, l := range g.Closed(r) {
			keys = append(keys, strings.TrimPrefix(l.Key, string(old.Kind)+" "))
		}
	}
	return keys, nil
}

// baseline is the newest complete result of each kind, of a device like this.
func (c *benchCheckCmd) baseline(env result.Environment) ([]*result.File, error) {
	where := c.Baseline
	if where == "" {
		where = filepath.Join(c.Results, env.Slug())
		if _, err := os.Stat(where); err != nil {
			return nil, usageError{fmt.Errorf("there is no baseline of %s: %s is not there; `qlora bench kernels` and `qlora bench step` make one", env.Device(), where)}
		}
	}
	files, err := readable([]string{where})
	if err != nil {
		return nil, err
	}
	var complete []*result.File
	var lacks []string
	for _, f := range files {
		if !slices.Contains(c.Kinds, string(f.Kind)) {
			continue
		}
		if l := f.Incomplete(); len(l) > 0 {
			lacks = append(lacks, fmt.Sprintf("%s lacks %s", f.Path, l[0]))
			continue
		}
		complete = append(complete, f)
	}
	newest := map[result.Kind]*result.File{}
	for _, f := range result.Join(complete) { // oldest first
		f.Rows = slices.DeleteFunc(f.Rows, func(r result.Row) bool { return cmp.Or(r.Params["variant"], "auto") != c.Variant })
		newest[f.Kind] = f
	}
	var all []*result.File
	for _, kind := range c.Kinds {
		if f := newest[result.Kind(kind)]; f != nil {
			all = append(all, f)
		}
	}
	if len(all) == 0 {
		return nil, usageError{fmt.Errorf("%s holds no complete result of %s: %s", where, strings.Join(c.Kinds, " or "), strings.Join(lacks, "; "))}
	}
	return all, nil
}

// measureAgain measures the rows of a file, nil where none can be.
func measureAgain(e *env, b *bench.Bench, old *result.File) (*result.File, error) {
	if old.Kind == result.Step {
		return stepsAgain(e, b, old)
	}
	var parts []*result.File
	for _, nf4 := range []bool{false, true} {
		f, err := kernelsAgain(e, b, old, nf4)
		if err != nil {
			return nil, err
		}
		if f != nil {
			parts = append(parts, f)
		}
	}
	if len(parts) == 0 {
		return nil, nil
	}
	return result.Join(parts)[0], nil
}

// kernelsAgain measures the kernels of a file, on weights in NF4 or in 16 bits.
func kernelsAgain(e *env, b *bench.Bench, old *result.File, nf4 bool) (*result.File, error) {
	o := bench.KernelOptions{Names: []string{}, NF4: nf4, Variant: b.Variant}
	for _, r := range old.Rows {
		if len(r.Seconds) == 0 || nf4 != (r.Params["method"] == "nf4") {
			continue
		}
		o.Names = append(o.Names, r.Name)
		o.Cold, o.Hot = o.Cold || r.Params["cache"] == "cold", o.Hot || r.Params["cache"] == "hot"
	}
	if o.Small = true; len(b.Cases(o)) == 0 {
		o.Small = false
	}
	if len(b.Cases(o)) == 0 {
		return nil, nil
	}
	return b.Kernels(e.ctx, o)
}

// stepsAgain measures the steps of a file that ran on a shape: a model's files may be elsewhere.
func stepsAgain(e *env, b *bench.Bench, old *result.File) (*result.File, error) {
	o := bench.StepOptions{}
	for _, r := range old.Rows {
		name := r.Params["model"]
		if len(r.Seconds) == 0 || !slices.Contains(weights.Presets(), name) {
			continue
		}
		src, err := weights.NewRandom(name, randomSeed)
		if err != nil {
			return nil, err
		}
		t, err := bench.Training{Name: name, Source: src, Adapter: (&benchModel{}).adapter()}.WithParams(r.Params)
		if err != nil {
			e.logf("notice: %s is left out: %v", r.Key(), err)
			continue
		}
		o.Trainings = append(o.Trainings, t)
	}
	if len(o.Trainings) == 0 {
		return nil, nil
	}
	b.Rule.Time = max(b.Rule.Time, 20*time.Second)
	return b.Steps(e.ctx, o)
}
