package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"qlora/internal/strictjson"
)

// limit bounds a file, which may come from anywhere.
const limit = 64 << 20

// ErrOther is a file that is no result of the harness.
var ErrOther = errors.New("no result of qlora bench")

// Read reads a file of any schema.
func Read(path string) (*File, error) {
	f, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.Path = path
	return f, nil
}

func read(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err) // Read names the path
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if filepath.Ext(path) == ".jsonl" {
		return lines(path, text)
	}
	return Parse(text)
}

// Parse reads a document of schema 2, and says what is wrong with it.
func Parse(text []byte) (*File, error) {
	var head struct {
		Schema *int `json:"schema"`
	}
	if err := strictjson.Unmarshal(text, limit, &head); err != nil {
		return nil, err
	}
	switch {
	case head.Schema == nil:
		return nil, ErrOther
	case *head.Schema > Schema:
		return nil, fmt.Errorf("schema %d is newer than this program, which knows up to %d: update it", *head.Schema, Schema)
	case *head.Schema < Schema:
		return nil, fmt.Errorf("there are no documents of schema %d", *head.Schema)
	}
	f := &File{}
	if err := strictjson.Unmarshal(text, limit, f); err != nil {
		return nil, err
	}
	return f, f.check()
}

// check holds a file to what readers of its rows rely on.
func (f *File) check() error {
	seen := map[string]bool{}
	for _, r := range f.Rows {
		if err := r.check(); err != nil {
			return fmt.Errorf("row %q: %w", r.Key(), err)
		}
		if seen[r.Key()] {
			return fmt.Errorf("two rows %q", r.Key())
		}
		seen[r.Key()] = true
	}
	for _, r := range f.Roofs {
		if err := r.Row.check(); err != nil {
			return fmt.Errorf("roof %q: %w", r.Name, err)
		}
	}
	return nil
}

func (r Row) check() error {
	if r.Name == "" {
		return errors.New("it has no name")
	}
	times := []Samples{r.Seconds}
	if r.Yardstick != nil {
		times = append(times, r.Yardstick.Seconds)
	}
	for _, s := range times {
		for i, v := range s {
			if !(v > 0) || math.IsInf(v, 0) {
				return fmt.Errorf("sample %d is %v seconds", i, v)
			}
		}
	}
	switch {
	case len(r.MHz) > 0 && len(r.MHz) != len(r.Seconds):
		return fmt.Errorf("%d samples and %d clocks", len(r.Seconds), len(r.MHz))
	case len(r.Seconds) == 0 && r.Error == "" && len(r.Memory) == 0 && r.Tokens == 0:
		return errors.New("it has neither samples nor memory nor tokens nor an error")
	case !(r.FLOPs >= 0 && r.Bytes >= 0 && r.Joules >= 0) || math.IsInf(r.FLOPs+r.Bytes+r.Joules, 0):
		return errors.New("its work is not a number")
	}
	return nil
}

// Incomplete names what a file lacks to be compared with others, and taken in from other people: nothing, if it is whole.
func (f *File) Incomplete() []string {
	var lacks []string
	need := func(ok bool, what string) {
		if !ok {
			lacks = append(lacks, what)
		}
	}
	e := f.Environment
	need(f.Schema == Schema && f.Kind != "" && !f.Time.IsZero(), "kind and time")
	need(e.Backend != "" && e.Kernels != "", "backend and kernels")
	need(e.Program.Commit != "" && e.Program.Commit != "unknown", "the commit of the program")
	need(!e.Program.Dirty, "a program built from a commit as it is (this one's files were changed)")
	need(e.Host.CPU != "" && e.Host.System != "", "the machine")
	if e.Backend == "cuda" {
		c := e.Card
		need(c != nil && c.Name != "" && c.ID != "" && c.Driver != "" && c.Memory > 0, "the card: name, id, driver, memory")
		need(c != nil && c.PowerLimit > 0 && c.SMClockMax > 0 && c.MemClockMax > 0, "the card's power limit and clocks")
		need(f.Watch.Readings > 0, "readings of clocks, power and temperature")
		need(len(f.Watch.Others) == 0 || f.Kind == Peers, "a card without other processes")
	}
	need(len(f.Rows) > 0, "rows")
	for _, r := range f.Rows {
		need(r.Error != "" || f.Kind == VRAM || f.Kind == Job || len(r.Seconds) >= leastSamples, fmt.Sprintf("%d samples of %s", leastSamples, r.Key()))
		need(f.Kind != Kernels || r.Proof != nil || r.Error != "", "a proof that "+r.Key()+" is right")
	}
	return lacks
}

// leastSamples is what a time needs to be compared.
const leastSamples = 10

// Encode writes the document.
func (f *File) Encode(w io.Writer) error {
	f.Schema = Schema
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	return enc.Encode(f)
}
