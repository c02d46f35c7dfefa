package main

import (
	"regexp"
	"slices"
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
