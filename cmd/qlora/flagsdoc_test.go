package main

import (
	"os"
	"strings"
	"testing"
)

func TestFlagsPageIsFresh(t *testing.T) {
	p, err := parse([]string{"help", "--flags-markdown"})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/flags.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != p.text {
		t.Error("docs/flags.md is stale: run `go generate ./cmd/qlora`")
	}
}

// Every flag of ms-swift has a line of its verb, and no flag has two.
func TestFlagsPageIsWhole(t *testing.T) {
	p, err := parse([]string{"help", "--flags-markdown"})
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]int{} // verb and name
	verb := ""
	for line := range strings.Lines(p.text) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			verb = strings.TrimSpace(name)
		}
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `--") {
			lines[verb+" "+strings.Trim(cells[0], "| `-")]++
		}
	}
	for i := range flagTable {
		for v := range strings.FieldsSeq(flagTable[i].verbs) {
			for name := range strings.FieldsSeq(flagTable[i].names) {
				if n := lines[v+" "+name]; n != 1 {
					t.Errorf("%s --%s has %d lines", v, name, n)
				}
			}
		}
	}
	for _, want := range []string{"| `--lora_rank` | works | `8` |", "| `--backend` | own | `auto` |", "| `--attn_impl` | no effect |",
		"| `--use_dora` | not supported |", "| `--optim` | not supported |  | the optimizer is AdamW: leave it out [adamw_torch,", "| `--train_type` | `--tuner_type` |"} {
		if !strings.Contains(p.text, want) {
			t.Errorf("no line %q", want)
		}
	}
}
