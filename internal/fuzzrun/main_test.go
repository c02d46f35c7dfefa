package main

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestFindTargets(t *testing.T) {
	all, err := findTargets("../..", regexp.MustCompile("Config$| FuzzLoad$"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, target := range all {
		names = append(names, target.Package+" "+target.Name)
	}
	want := []string{"./../../cmd/qlora FuzzConfig", "./../../model/lora FuzzAdapterConfig", "./../../model/tokenizer FuzzLoad", "./../../model/weights FuzzConfig"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q", names)
	}
	if _, err := findTargets(".", regexp.MustCompile("")); err == nil {
		t.Error("a folder without targets has some")
	}
}

func TestProgress(t *testing.T) {
	m := progressPattern.FindStringSubmatch("fuzz: elapsed: 5s, execs: 60000 (15451/sec), new interesting: 23 (total: 158)")
	if len(m) != 3 || m[1] != "60000" || m[2] != "158" {
		t.Errorf("got %q", m)
	}
}

func TestAddUp(t *testing.T) {
	dir := t.TempDir()
	for name, execs := range map[string]int64{"a.json": 5, "b.json": 7} {
		r := &Result{Targets: []*Target{{Package: "./model/data", Name: "FuzzFront", Execs: execs, Seconds: 1800}, {Package: "./cmd/qlora", Name: "FuzzParse", Execs: 1}}}
		if err := r.keep(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	var table strings.Builder
	if err := addUp(&table, dir); err != nil {
		t.Fatal(err)
	}
	const want = "| target | executions | hours |\n|---|---|---|\n| cmd/qlora FuzzParse | 2 | 0.0 |\n| model/data FuzzFront | 12 | 1.0 |\n| all, in 2 runs | 14 | 1.0 |\n"
	if table.String() != want {
		t.Errorf("got\n%s", &table)
	}
	if err := addUp(&table, t.TempDir()); err == nil {
		t.Error("an empty folder was added up")
	}
}
