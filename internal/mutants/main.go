// Command mutants proves that the conformance tests of a backend can fail. It turns the first `+=` of a
// function into `-=` (where there is none, another operator on floating-point numbers, or a constant
// it passes on, into its opposite), runs the tests over the changed source (go build's -overlay: no file is touched), and
// demands that they fail. It goes through every function that computes a gradient and through the
// functions of the package those call:
//
//	go run ./internal/mutants
//
// prints a row a mutant and ends with exit status 1 where one survives, or where the tests fail
// without a mutation.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	dir := flag.String("dir", "model/cpu", "folder of the package to change")
	roots := flag.String("roots", `Back$|^LoRAGrad$|^HeadLoss$|^GradNorm$|^AdamW$`, "functions that must not survive a change (regular expression)")
	tests := flag.String("run", "TestGradients|TestReference|TestInvariants|TestConformance", "tests that must fail (regular expression)")
	flag.Parse()
	if err := run(*dir, *roots, *tests); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(dir, roots, tests string) error {
	pattern, err := regexp.Compile(roots)
	if err != nil {
		return err
	}
	found, bare, err := findSites(dir, pattern)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("no function of %s matches %q with an operator to turn", dir, roots)
	}
	scratch, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	h := harness{dir: dir, tests: tests, scratch: scratch}
	if v := h.try(nil); v.outcome != survived {
		return fmt.Errorf("the tests fail without a mutation:\n%s", v.detail)
	}
	const row = "%-20s  %-14s  %-8s  %-15s  %7s  %-36s  %s\n"
	fmt.Printf(row, "place", "function", "turned", "result", "seconds", "test that saw it", "computes")
	alive := 0
	for i := range found {
		start := time.Now()
		v := h.try(&found[i])
		s := &found[i]
		switch v.outcome {
		case survived:
			alive++
		case unbuilt:
			return fmt.Errorf("%s:%d with %s turned to %s does not build:\n%s", s.file, s.line, s.from, s.to, v.detail)
		}
		fmt.Printf(row, fmt.Sprintf("%s:%d", filepath.Base(s.file), s.line), s.function, s.from+" to "+s.to, v.outcome,
			fmt.Sprintf("%.1f", time.Since(start).Seconds()), v.detail, strings.Join(s.roots, " "))
	}
	fmt.Printf("%d mutants, %d survived\n", len(found), alive)
	switch {
	case len(bare) > 0:
		return fmt.Errorf("nothing to turn in %s or what they call", strings.Join(bare, ", "))
	case alive > 0:
		return fmt.Errorf("%d mutants survived: the tests do not see what they change", alive)
	}
	return nil
}

// harness builds and runs the tests over one changed file at a time.
type harness struct{ dir, tests, scratch string }

type outcome string

const (
	survived outcome = "SURVIVED"
	caught   outcome = "caught"
	crashed  outcome = "caught (crash)"
	tooLong  outcome = "caught (no end)"
	unbuilt  outcome = "does not build"
)

type verdict struct {
	outcome outcome
	detail  string // the first test to fail
}

// limit is how long the tests of a mutant may take: a loop may have lost its end.
const limit = 3 * time.Minute

func (h *harness) try(s *site) verdict {
	binary := filepath.Join(h.scratch, "tests")
	build := []string{"test", "-c", "-o", binary}
	if s != nil {
		overlay, err := h.overlay(s)
		if err != nil {
			return verdict{unbuilt, err.Error()}
		}
		build = append(build, "-overlay", overlay)
	}
	if out, err := exec.Command("go", append(build, "./"+filepath.ToSlash(h.dir))...).CombinedOutput(); err != nil {
		return verdict{unbuilt, string(out)}
	}
	test := exec.Command(binary, "-test.short", "-test.failfast", "-test.run", h.tests, "-test.timeout", limit.String())
	test.Dir = h.dir
	out, err := test.CombinedOutput()
	switch {
	case err == nil:
		return verdict{survived, ""}
	case s == nil:
		return verdict{caught, string(out)}
	case bytes.Contains(out, []byte("panic: test timed out")):
		return verdict{tooLong, ""}
	case bytes.Contains(out, []byte("panic: ")):
		return verdict{crashed, ""}
	}
	return verdict{caught, firstFailure(out)}
}

// overlay writes the changed file and the JSON that puts it in place of its original.
func (h *harness) overlay(s *site) (string, error) {
	text, err := os.ReadFile(s.file)
	if err != nil {
		return "", err
	}
	if !bytes.HasPrefix(text[s.offset:], []byte(s.from)) {
		return "", fmt.Errorf("%s changed while the mutants ran", s.file)
	}
	text = slices.Replace(text, s.offset, s.offset+len(s.from), []byte(s.to)...)
	changed, list := filepath.Join(h.scratch, filepath.Base(s.file)), filepath.Join(h.scratch, "overlay.json")
	if err := os.WriteFile(changed, text, 0o644); err != nil {
		return "", err
	}
	original, err := filepath.Abs(s.file)
	if err != nil {
		return "", err
	}
	entry, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		return "", err
	}
	return list, os.WriteFile(list, entry, 0o644)
}

var failure = regexp.MustCompile(`--- FAIL: (\S+)`)

// firstFailure is the first test reported, with the subtests within it, cut to a readable length.
func firstFailure(out []byte) string {
	name := ""
	for _, m := range failure.FindAllSubmatch(out, -1) {
		if !strings.HasPrefix(string(m[1]), name) {
			break
		}
		name = string(m[1])
	}
	if part := strings.Split(name, "/"); len(part) > 2 {
		return part[0] + " " + part[len(part)-2]
	}
	return name
}
