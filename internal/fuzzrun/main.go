// Command fuzzrun runs every fuzz target of the module, one after the other:
//
//	go run ./internal/fuzzrun                                  a minute each
//	go run ./internal/fuzzrun -execs 100000000 -out results/fuzz
//	go run ./internal/fuzzrun -total results/fuzz              add up the files there are
//
// With -execs it goes round until all targets together have run that often, and with -out it keeps a file of what was
// run, anew after every target, so that a run that is ended leaves what it did. What fails ends it with status 1, and the
// input lies in the package's testdata/fuzz, from where `go test` runs it again.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	seconds := flag.Float64("seconds", 60, "of a target in one round, about")
	execs := flag.Int64("execs", 0, "executions of all targets together to go on to; 0: one round")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "processes that run a target")
	out := flag.String("out", "", "folder to keep a file of what was run in")
	only := flag.String("run", "", "targets to run (regular expression, of folder and name with a space between)")
	total := flag.String("total", "", "folder whose files to add up, by target, in place of running any")
	flag.Parse()
	if *total != "" {
		if err := addUp(os.Stdout, *total); err != nil {
			fmt.Fprintln(os.Stderr, "fuzzrun:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*seconds, *execs, *workers, *out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "fuzzrun:", err)
		os.Exit(1)
	}
}

// Result is the file that is kept.
type Result struct {
	What     string    `json:"what"`
	Commit   string    `json:"commit"`
	Go       string    `json:"go"`
	Platform string    `json:"platform"`
	Workers  int       `json:"workers"`
	Started  string    `json:"started"`
	Ended    string    `json:"ended"`
	Execs    int64     `json:"executions"`
	Failed   int       `json:"failed"`
	Targets  []*Target `json:"targets"`
}

// Target is a fuzz target and what was run of it.
type Target struct {
	Package string  `json:"package"`
	Name    string  `json:"target"`
	Execs   int64   `json:"executions"`
	Seconds float64 `json:"seconds"`
	Corpus  int64   `json:"corpus"` // inputs that are kept because they reach something new, seeds included
	Failed  bool    `json:"failed"`
}

func run(seconds float64, goal int64, workers int, out, only string) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	targets, err := findTargets(".", pattern)
	if err != nil {
		return err
	}
	commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return fmt.Errorf("git describe: %w", err)
	}
	started := time.Now()
	r := &Result{What: "fuzz targets: executions, each of which parses an input and asserts what the target's body says", Commit: strings.TrimSpace(string(commit)),
		Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Workers: workers, Started: started.UTC().Format(time.RFC3339), Targets: targets}
	file := ""
	if out != "" {
		file = filepath.Join(out, started.UTC().Format("20060102")+"-"+r.Commit+".json")
	}
	for r.Failed == 0 {
		for _, t := range targets {
			if err := t.run(seconds, workers); err != nil {
				t.Failed = true
				r.Failed++
				fmt.Println(err)
			}
			if err := r.keep(file); err != nil {
				return err
			}
			fmt.Printf("%-60s %12d executions %8.0f s %6d inputs kept; in all %d\n", t.Package+" "+t.Name, t.Execs, t.Seconds, t.Corpus, r.Execs)
		}
		if r.Execs >= goal {
			break
		}
	}
	if r.Failed > 0 {
		return fmt.Errorf("%d targets failed", r.Failed)
	}
	return nil
}

// keep adds up and writes the file.
func (r *Result) keep(file string) error {
	r.Execs, r.Ended = 0, time.Now().UTC().Format(time.RFC3339)
	for _, t := range r.Targets {
		r.Execs += t.Execs
	}
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o666)
}

// addUp prints the files of a folder as a table of targets.
func addUp(w io.Writer, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		return errors.Join(err, fmt.Errorf("%s holds no file of a run", dir))
	}
	sums, all := map[string]*Target{}, &Target{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var r Result
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, t := range r.Targets {
			name := strings.TrimPrefix(t.Package, "./") + " " + t.Name
			if sums[name] == nil {
				sums[name] = &Target{}
			}
			for _, sum := range []*Target{sums[name], all} {
				sum.Execs += t.Execs
				sum.Seconds += t.Seconds
			}
		}
	}
	fmt.Fprintf(w, "| target | executions | hours |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(w, "| %s | %d | %.1f |\n", name, sums[name].Execs, sums[name].Seconds/3600)
	}
	_, err = fmt.Fprintf(w, "| all, in %d runs | %d | %.1f |\n", len(files), all.Execs, all.Seconds/3600)
	return err
}

var targetPattern = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

// findTargets goes through the test files below a folder.
func findTargets(dir string, only *regexp.Regexp) ([]*Target, error) {
	var all []*Target
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != dir && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata"):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range targetPattern.FindAllSubmatch(text, -1) {
			t := &Target{Package: "./" + filepath.ToSlash(filepath.Dir(path)), Name: string(m[1])}
			if only.MatchString(t.Package + " " + t.Name) {
				all = append(all, t)
			}
		}
		return nil
	})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("no fuzz target below %s", dir)
	}
	return all, err
}

// firstRound is how often a target is run to learn its rate.
const firstRound = 5000

// run runs a target about so long. It asks for a number of executions, as `go test` may call a target that runs out of
// time failed.
func (t *Target) run(seconds float64, workers int) error {
	for left := seconds; left > seconds/10; {
		n := int64(firstRound)
		if t.Seconds > 0 {
			n = max(int64(float64(t.Execs)/t.Seconds*left), 1)
		}
		start := time.Now()
		done, err := t.once(n, workers)
		took := time.Since(start).Seconds()
		t.Execs += done
		t.Seconds += took
		left -= took
		if err != nil {
			return err
		}
	}
	return nil
}

var progressPattern = regexp.MustCompile(`execs: (\d+) .*\(total: (\d+)\)`)

// once runs a target n times, and returns how often it did.
func (t *Target) once(n int64, workers int) (int64, error) {
	cmd := exec.Command("go", "test", "-run", "^$", "-fuzz", "^"+t.Name+"$", "-fuzztime", fmt.Sprintf("%dx", n),
		"-fuzzminimizetime", "100x", "-parallel", strconv.Itoa(workers), "-timeout", "0", t.Package)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // reading the memory allocated stops every other thread: 20 times as fast with none
	text, err := cmd.CombinedOutput()
	var done int64
	if all := progressPattern.FindAllSubmatch(text, -1); len(all) > 0 {
		last := all[len(all)-1]
		done, _ = strconv.ParseInt(string(last[1]), 10, 64) // digits
		t.Corpus, _ = strconv.ParseInt(string(last[2]), 10, 64)
	}
	if err != nil {
		return done, fmt.Errorf("%s %s: %w\n%s", t.Package, t.Name, err, text)
	}
	if done == 0 {
		return 0, fmt.Errorf("%s %s: no executions in\n%s", t.Package, t.Name, text)
	}
	return done, nil
}
