// Command testreport runs `go test -json` with its arguments and prints what a person wants to know: a line a package, the
// whole output of what failed, every skipped test with its reason, what tests say they left for a card, and a closing count.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
	r := report{out: os.Stdout, output: map[string][]string{}}
	if err := r.read(out); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
	err = cmd.Wait()
	r.close()
	var exit *exec.ExitError
	if errors.As(err, &exit) || r.failed > 0 {
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
}

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// leftFor marks a line in which a test says what it did not run, and where that runs.
const leftFor = "left for a card"

type report struct {
	out                     io.Writer
	output                  map[string][]string // of each test, and of each package under its own name
	notes                   []string
	passed, failed, skipped int
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(r.out, lines.Text()) // a build's own words
			continue
		}
		r.event(e)
	}
	return lines.Err()
}

func (r *report) event(e event) {
	name := e.Package
	if e.Test != "" {
		name += "." + e.Test
	}
	switch e.Action {
	case "output", "build-output":
		r.output[name] = append(r.output[name], e.Output)
		if strings.Contains(e.Output, leftFor) {
			r.notes = append(r.notes, name+": "+strings.TrimSpace(e.Output))
		}
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	if e.Test == "" {
		r.finishPackage(e)
	} else {
		r.finishTest(e, name)
	}
	delete(r.output, name)
}

func (r *report) finishTest(e event, name string) {
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		fmt.Fprintf(r.out, "FAIL %s\n%s", name, strings.Join(r.output[name], ""))
	case "skip":
		r.skipped++
		r.notes = append(r.notes, "skipped "+name+": "+reason(r.output[name]))
	}
}

func (r *report) finishPackage(e event) {
	switch {
	case e.Action == "fail":
		fmt.Fprintf(r.out, "FAIL %s %.1fs\n%s", e.Package, e.Elapsed, strings.Join(r.output[e.Package], ""))
		r.failed = max(r.failed, 1)
	case e.Action == "pass":
		fmt.Fprintf(r.out, "ok   %s %.1fs\n", e.Package, e.Elapsed)
	}
}

// reason is what a skipped test said.
func reason(output []string) string {
	for _, line := range output {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			return line
		}
	}
	return "no reason given"
}

func (r *report) close() {
	for _, n := range r.notes {
		fmt.Fprintln(r.out, n)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}
