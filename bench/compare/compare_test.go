package compare

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"qlora/bench/result"
	"qlora/bench/stat"
)

// file has one row of 12 samples around seconds, at a clock.
func file(name string, seconds, mhz float64) *result.File {
	r := result.Row{Name: name, Params: map[string]string{"cache": "hot"}}
	for i := range 12 {
		r.Seconds = append(r.Seconds, seconds*(1+0.0005*float64(i*5%12)))
		if mhz > 0 {
			r.MHz = append(r.MHz, mhz)
		}
	}
	card := result.Card{Name: "NVIDIA H200", ID: "a", Driver: "580", PowerLimit: 700, SMClockMax: 1980, MemClockMax: 3201}
	return &result.File{Schema: result.Schema, Kind: result.Kernels, Environment: result.Environment{Backend: "cuda", Card: &card}, Rows: []result.Row{r}}
}

func one(f *result.File) []*result.File { return []*result.File{f} }

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		old, new *result.File
		want     stat.Verdict
		why      string
	}{
		{file("a", 1, 1500), file("a", 1, 1500), stat.Same, ""},
		{file("a", 1, 1500), file("a", 1.05, 1500), stat.Slower, ""},
		{file("a", 1, 1500), file("a", 0.95, 1500), stat.Faster, ""},
		{file("a", 1, 0), file("a", 1.05, 0), stat.Slower, ""},
		{file("a", 1, 1500), file("a", 1.05, 1500/1.05), stat.Unsure, "clock drift, 1500 to 1429 MHz: +0.0 % in cycles"},
		{file("a", 1, 1500), file("a", 1, 1600), stat.Unsure, "clock drift, 1500 to 1600 MHz: +6.7 % in cycles"},
	} {
		r, err := Files(one(c.old), one(c.new), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if l := r.Lines[0]; l.Verdict != c.want || l.Why != c.why || l.Key != "kernels a cache=hot" {
			t.Errorf("%s: %s (%s), want %s (%s)", l.Key, l.Verdict, l.Why, c.want, c.why)
		}
	}
}

// TestPartners pools rows of a key, and names those without a partner.
func TestPartners(t *testing.T) {
	r, err := Files([]*result.File{file("a", 1, 0), file("a", 1, 0), file("b", 1, 0)}, []*result.File{file("a", 1, 0), file("c", 1, 0)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Lines) != 1 || r.Lines[0].Test.Old.N != 24 || r.Lines[0].Test.New.N != 12 ||
		!slices.Equal(r.OnlyOld, []string{"kernels b cache=hot"}) || !slices.Equal(r.OnlyNew, []string{"kernels c cache=hot"}) {
		t.Errorf("%+v", r)
	}
	if g := r.Geomean(); math.Abs(g-1) > 1e-9 {
		t.Errorf("geometric mean %v", g)
	}
}

func TestRefused(t *testing.T) {
	change := func(f func(*result.File)) *result.File {
		c := file("a", 1, 0)
		f(c)
		return c
	}
	for _, c := range []struct {
		new  *result.File
		want string
	}{
		{change(func(f *result.File) { f.Environment.Card.Name = "NVIDIA H100" }), "device: NVIDIA H200 against NVIDIA H100"},
		{change(func(f *result.File) { f.Environment.Card.PowerLimit = 500 }), "power limit (W): 700 against 500"},
		{change(func(f *result.File) { f.Environment.Card.SMClockLimit = 1200 }), "SM clock set"},
		{change(func(f *result.File) { f.Environment.Card.ECC = true }), "ECC"},
		{change(func(f *result.File) { f.Environment.Backend, f.Environment.Card = "cpu", nil }), "backend: cuda against cpu"},
		{file("b", 1, 0), "no row with samples on both sides"},
	} {
		_, err := Files(one(file("a", 1, 0)), one(c.new), Options{})
		var refused *Refused
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	r, err := Files(one(file("a", 1, 0)), one(change(func(f *result.File) { f.Environment.Card.PowerLimit = 500 })), Options{AnyDevice: true})
	if err != nil || len(r.Notices) != 1 || !strings.Contains(r.Notices[0], "power limit") {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Files(nil, one(file("a", 1, 0)), Options{}); err == nil {
		t.Error("nothing was compared with something")
	}
	few := file("a", 1, 0)
	few.Rows[0].Seconds = few.Rows[0].Seconds[:3]
	if _, err := Files(one(few), one(file("a", 1, 0)), Options{}); err == nil || !strings.Contains(err.Error(), "1 rows have fewer than 4 samples") {
		t.Errorf("three samples: %v", err)
	}
}

// TestNotices: what makes a time doubtful is said.
func TestNotices(t *testing.T) {
	a, b := file("a", 1, 0), file("a", 1, 0)
	b.Environment.Card.ID, b.Environment.Card.Driver = "b", "590"
	b.Environment.Program.Dirty, b.Watch.Others, b.Path = true, []string{"python3"}, "new.json"
	r, err := Files(one(a), one(b), Options{})
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(r.Notices, "\n")
	for _, want := range []string{"new (new.json): other processes were on the card: [python3]", "files that differ from commit", "two cards of one model", "driver 580 against 590"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
}

func TestGate(t *testing.T) {
	for text, want := range map[string]Gate{"median>3%": {"median", 0.03}, " p90 > 0.5 %": {"p90", 0.005}} {
		if g, err := ParseGate(text); err != nil || g != want {
			t.Errorf("%q: %+v, %v", text, g, err)
		}
	}
	for text, want := range map[string]string{"": "is no rule", "median>3": "is no rule", "mode>3%": "mode is no metric", "median>..%": "no number", "median<3%": "is no rule"} {
		if _, err := ParseGate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	r, err := Files([]*result.File{file("a", 1, 0), file("b", 1, 0), file("c", 1, 1500)}, []*result.File{file("a", 1.05, 0), file("b", 1.02, 0), file("c", 1.05, 1500/1.05)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	closed := Gate{"median", 0.03}.Closed(r)
	if len(closed) != 1 || closed[0].Key != "kernels a cache=hot" {
		t.Errorf("closed on %+v", closed)
	}
	if got := (Gate{"median", 0.03}).String(); got != "median>3%" {
		t.Error(got)
	}
}
