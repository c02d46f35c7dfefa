package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const source = `package p

import "math"

type float interface{ float32 | float64 }

type B[T float] struct{}

func (b *B[T]) NormBack(x []T) {
	for i := 0; i < len(x); i += 2 {
		x[i] = helper(x)
	}
	b.other(x, true)
	norm := math.Abs(2)
	_ = norm
}

func helper[T float](x []T) (s T) {
	n := 0
	n += len(x)
	for _, v := range x {
		s += v - 1
	}
	s += 1
	return s
}

func (b *B[T]) other(x []T, _ bool) { f := deep[T]; f(x) }

func deep[T float](x []T) { x[0] = 3 - x[1]*2 }

func norm(x []float64) { x[0] += 4 }

func CopyBack(x []float64) { x[0] = x[len(x)-1] }

func rowBack(x []float64) { norm(x) }
`

func TestFindSites(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	found, bare, err := findSites(dir, regexp.MustCompile("Back$"))
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, s := range found {
		if !strings.HasPrefix(source[s.offset:], s.from) {
			t.Errorf("line %d: the offset is at %q", s.line, source[s.offset:s.offset+2])
		}
		got += fmt.Sprintln(s.line, s.function, s.from, s.to, s.roots)
	}
	// neither integers, nor a second +=, nor a function of another package, nor an unexported root
	if want := "13 NormBack true false [NormBack]\n22 helper += -= [NormBack]\n30 deep - + [NormBack]\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if strings.Join(bare, " ") != "CopyBack" {
		t.Errorf("functions without an operator are %v, want CopyBack", bare)
	}
}

func TestFirstFailureIsTheInnermost(t *testing.T) {
	out := []byte("--- FAIL: TestA (0.1s)\n    --- FAIL: TestA/b (0.1s)\n        --- FAIL: TestA/b/c (0.1s)\n--- FAIL: TestD (0.2s)\n")
	if got := firstFailure(out); got != "TestA b" {
		t.Errorf("got %q", got)
	}
}
