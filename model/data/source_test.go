package data

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lengthsOf makes samples of these lengths, trained on but for the first token.
func lengthsOf(lengths ...int) Samples {
	var all Samples
	for i, n := range lengths {
		s := Sample{IDs: slices.Repeat([]int32{int32(i)}, n), Labels: slices.Repeat([]int32{int32(i)}, n), File: "f", Row: i + 1}
		s.Labels[0] = Ignore
		all = append(all, s)
	}
	return all
}

// Units of up to a thousand samples are those of the library that ms-swift packs with.
func TestPackedGolden(t *testing.T) {
	for _, c := range wanted[struct {
		Length  int
		Samples []int
		Units   [][]int
	}](t, "units.jsonl", 4) {
		samples := lengthsOf(c.Samples...)
		p, err := NewPacked(samples, c.Length, BinPack)
		if err != nil {
			t.Fatal(err)
		}
		var got [][]int
		for i := range p.Len() {
			unit, err := p.Unit(i)
			if err != nil {
				t.Fatal(err)
			}
			var lengths []int
			for _, s := range unit.Samples {
				lengths = append(lengths, len(s.IDs))
			}
			got = append(got, lengths)
		}
		if diff := cmp.Diff(c.Units, got); diff != "" {
			t.Errorf("%d samples: %s", len(samples), diff)
		}
	}
}

// Whatever the lengths: every sample is in one unit, none is over the limit, and the order of
// sequential packing is that of the samples.
func TestPackedProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 7, 999, 1000, 1001, 3500} {
		lengths := make([]int, n)
		total := 0
		for i := range lengths {
			lengths[i] = 1 + rng.IntN(100)
			total += lengths[i]
		}
		samples := lengthsOf(lengths...)
		for _, how := range []Packing{BinPack, Sequential} {
			p, err := NewPacked(samples, 100, how)
			if err != nil {
				t.Fatal(err)
			}
			var order []int
			most := 0
			for i := range p.Len() {
				unit, _ := p.Unit(i)
				tokens := 0
				for _, s := range unit.Samples {
					order = append(order, s.Row-1)
					tokens += len(s.IDs)
				}
				if tokens > 100 || tokens == 0 {
					t.Fatalf("%s: a unit of %d tokens", how, tokens)
				}
				most = max(most, len(unit.Samples))
			}
			if want := (Bounds{Sample: slices.Max(lengths), Unit: most, Total: total}); p.Bounds() != want {
				t.Errorf("%s: %+v, want %+v", how, p.Bounds(), want)
			}
			if how == Sequential && !slices.IsSorted(order) {
				t.Errorf("%d samples: the order is lost", n)
			}
			slices.Sort(order)
			if !slices.Equal(order, identity(n)) {
				t.Errorf("%s: of %d samples %d are in units", how, n, len(order))
			}
		}
	}
	a, _ := NewPacked(lengthsOf(50, 50, 50), 100, Sequential)
	b, _ := NewPacked(lengthsOf(50, 50, 50), 150, Sequential)
	if a.Fingerprint() == b.Fingerprint() {
		t.Error("other units have the same fingerprint")
	}
	for want, try := range map[string]func() (*Packed, error){
		"f, row 2: 101 tokens do not fit": func() (*Packed, error) { return NewPacked(lengthsOf(1, 101), 100, BinPack) },
		"unknown packing strategy":        func() (*Packed, error) { return NewPacked(lengthsOf(1), 100, "x") },
	} {
		if _, err := try(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// counted writes n rows of which every seventh cannot be used, and every eleventh is long.
func counted(t testing.TB, n int) string {
	var text strings.Builder
	for i := range n {
		switch {
		case i%7 == 3:
			text.WriteString(`{"query":3}` + "\n")
		case i%11 == 4:
			fmt.Fprintf(&text, `{"query":"q%d","response":"%s"}`+"\n", i, strings.Repeat("long ", 300))
		default:
			fmt.Fprintf(&text, `{"query":"q%d","response":"r%d"}`+"\n", i, i)
		}
	}
	return write(t, "rows.jsonl", text.String())
}

// The counts of a mixture are ms-swift's: of the rows that can be used, then less those that are
// too long.
func TestLoadCounts(t *testing.T) {
	path := counted(t, 100) // 14 not usable, 8 long
	c := chat(t, template(t, "qwen2_5"))
	opt := Options{MaxLength: 100, Seed: 7, Shuffle: true}
	for _, tc := range []struct {
		datasets     []string
		share        float64
		rows, chosen int // of the report, at least; of the choice
		held         int
	}{
		{[]string{path}, 0, 100, 86, 0},
		{[]string{path + "#30"}, 0, 30, 30, 0},
		{[]string{path + "#85"}, 0, 85, 85, 0},
		{[]string{path + "#86"}, 0, 100, 86, 0},
		{[]string{path + "#95"}, 0, 109, 95, 0},
		{[]string{path + "#200"}, 0, 214, 200, 0},
		{[]string{path + "#30", path + "#30", SelfCognition}, 0, 68, 68, 0},
		{[]string{path + "#20", SelfCognition + "#20"}, 0.1, 40, 40, 2 + 1},
	} {
		opt.SplitRatio = tc.share
		train, validation, report, err := LoadSplit(tc.datasets, c, opt)
		if err != nil {
			t.Fatal(err)
		}
		if report.Rows < tc.rows || report.Rows > tc.rows+14 && tc.rows < 100 || report.Rows-report.Invalid.Count != tc.chosen || report.Kept != len(train)+len(validation) ||
			report.Rows != report.Kept+report.Dropped() {
			t.Errorf("%v: %d and %d samples, report %+v", tc.datasets, len(train), len(validation), report)
		}
		if tc.held > 0 && (len(validation) > tc.held || len(validation) < tc.held-2) {
			t.Errorf("%v: %d held, want %d", tc.datasets, len(validation), tc.held)
		}
		for _, workers := range []int{1, 3, 8} {
			opt.Workers = workers
			again, held, _, err := LoadSplit(tc.datasets, c, opt)
			if err != nil || Fingerprint(again) != Fingerprint(train) || Fingerprint(held) != Fingerprint(validation) {
				t.Errorf("%v: %d workers load other samples: %v", tc.datasets, workers, err)
			}
		}
		opt.Workers = 0
		rows := 0
		opt.SplitRatio = 0
		for _, err := range Chosen(tc.datasets, opt) {
			if err == nil {
				rows++
			}
		}
		if rows != tc.chosen {
			t.Errorf("%v: Chosen gives %d rows, want %d", tc.datasets, rows, tc.chosen)
		}
	}
	opt.Strict, opt.SplitRatio = true, 0
	opt.Shuffle = false
	for _, dataset := range []string{path, path + "#5"} {
		if _, _, err := Load([]string{dataset}, c, opt); err == nil || !strings.Contains(err.Error(), "rows.jsonl, row 4: query") {
			t.Errorf("%s: %v", dataset, err)
		}
	}
	opt.Strict = false
	first, _, err := Load([]string{path + "#5"}, c, opt)
	if err != nil || len(first) != 4 || first[3].Row != 6 { // row 4 cannot be used, row 5 is long
		t.Errorf("the first 5 rows: %d samples, %v", len(first), err)
	}
	_, report, err := Load([]string{SelfCognition + "#20"}, c, Options{})
	if err != nil || len(report.Notices) != 1 || !strings.Contains(report.Notices[0], "20 rows are wanted of 8") {
		t.Errorf("no notice that rows are repeated: %+v, %v", report, err)
	}
}

// Rows read when asked for are those read at once, where all can be used.
func TestLazyEqualsLoad(t *testing.T) {
	c := chat(t, template(t, "qwen2_5"))
	opt := Options{MaxLength: 200, Seed: 3, Shuffle: true}
	datasets := []string{SelfCognition + "#11", filepath.Join(formats, "plain.csv"), "self_cognition.json#3"}
	want, _, err := Load(datasets, c, opt)
	if err != nil {
		t.Fatal(err)
	}
	lazy, _, _, err := LoadLazy(datasets, c, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	var got Samples
	for i := range lazy.Len() {
		unit, err := lazy.Unit(i)
		if err != nil || len(unit.Passed) > 0 {
			t.Fatal(unit, err)
		}
		got = append(got, unit.Samples...)
	}
	if Fingerprint(got) != Fingerprint(want) {
		t.Error("the samples differ")
	}
	if b := lazy.Bounds(); b != (Bounds{Sample: 200, Unit: 1, Total: 200 * lazy.Len()}) {
		t.Errorf("%+v", b)
	}
}

// A row that cannot be used gets the same stand-in whenever it is asked for, and is named.
func TestLazyStandIns(t *testing.T) {
	text := strings.Repeat(`{"query":"q","response":"r"}`+"\n"+`{"query":3}`+"\n"+"{broken\n", 20)
	path := write(t, "rows.jsonl", text)
	c := chat(t, template(t, "qwen2_5"))
	opt := Options{MaxLength: 100, Seed: 5}
	lazy, _, _, err := LoadLazy([]string{path}, c, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	passed := 0
	for i := range lazy.Len() {
		a, errA := lazy.Unit(i)
		b, errB := lazy.Unit(i)
		if !reflect.DeepEqual(a, b) || fmt.Sprint(errA) != fmt.Sprint(errB) {
			t.Fatalf("row %d: %+v, %v; then %+v, %v", i+1, a, errA, b, errB)
		}
		if errA != nil { // 10 tries may all fail, once in 57
			continue
		}
		if (i%3 == 0) != (len(a.Passed) == 0) || i%3 != 0 && a.Passed[0].Row != i+1 {
			t.Errorf("row %d: passed %v", i+1, a.Passed)
		}
		passed += len(a.Passed)
	}
	if passed < 40 {
		t.Errorf("%d rows were passed over", passed)
	}
	opt.Strict = true
	strict, _, _, err := LoadLazy([]string{path}, c, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer strict.Close()
	for i, want := range []string{"", "rows.jsonl, row 2: query", "rows.jsonl, row 3: byte 2"} {
		if _, err := strict.Unit(i); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("row %d: %v, want %q", i+1, err, want)
		}
	}
	none, _, _, err := LoadLazy([]string{write(t, "none.jsonl", strings.Repeat("{}\n", 5))}, c, Options{MaxLength: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if _, err := none.Unit(0); err == nil || !strings.Contains(err.Error(), "10 rows were tried") {
		t.Error(err)
	}
	if _, _, _, err := LoadLazy([]string{path}, c, Options{}); err == nil {
		t.Error("no limit was needed")
	}
}

// What a lazily read run is made of shows in its fingerprint.
func TestLazyFingerprint(t *testing.T) {
	path := write(t, "rows.jsonl", strings.Repeat(rowA, 9))
	print := func(tmpl string, dataset string, opt Options) string {
		t.Helper()
		lazy, _, _, err := LoadLazy([]string{dataset}, chat(t, template(t, tmpl)), opt)
		if err != nil {
			t.Fatal(err)
		}
		defer lazy.Close()
		return lazy.Fingerprint()
	}
	names, err := NewNames([]string{"x"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	base := Options{MaxLength: 50, Seed: 1, Shuffle: true}
	change := func(f func(*Options)) Options { o := base; f(&o); return o }
	seen := map[string]bool{print("qwen2_5", path, base): true}
	for i, other := range []string{
		print("qwen", path, base), print("qwen2_5", path+"#4", base), print("qwen2_5", write(t, "b.jsonl", strings.Repeat(rowB, 9)), base),
		print("qwen2_5", path, change(func(o *Options) { o.MaxLength = 51 })), print("qwen2_5", path, change(func(o *Options) { o.Truncation = Left })),
		print("qwen2_5", path, change(func(o *Options) { o.Names = names })), print("qwen2_5", path, change(func(o *Options) { o.Columns = map[string]string{"a": "b"} })),
		print("qwen2_5", path+"#4", change(func(o *Options) { o.Seed = 2 })),
	} {
		if seen[other] {
			t.Errorf("change %d is not seen", i)
		}
		seen[other] = true
	}
	if !seen[print("qwen2_5", path, change(func(o *Options) { o.Workers = 3 }))] {
		t.Error("the number of workers is seen")
	}
}

// Steps are the same however many goroutines read them, from the start or from a cursor.
func TestLoader(t *testing.T) {
	path := counted(t, 60)
	lazy, _, _, err := LoadLazy([]string{path}, chat(t, template(t, "qwen2_5")), Options{MaxLength: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer lazy.Close()
	order := Order{N: lazy.Len(), Seed: 9, EpochShuffle: true}
	steps := func(at Cursor, workers, n int) []Step {
		t.Helper()
		l, err := NewLoader(lazy, order, at, 7, workers)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var all []Step
		for range n {
			s, err := l.Next()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return all
	}
	before := runtime.NumGoroutine()
	want := steps(Cursor{}, 0, 25) // 9 steps an epoch
	if n := len(want[8].Samples); n != 60%7 || want[8].After != (Cursor{1, 0}) {
		t.Errorf("the epoch ends with %d samples, and goes on at %+v", n, want[8].After)
	}
	for _, workers := range []int{1, 2, 5} {
		if diff := cmp.Diff(want, steps(Cursor{}, workers, 25)); diff != "" {
			t.Errorf("%d workers: %s", workers, diff)
		}
		if diff := cmp.Diff(want[12:], steps(want[11].After, workers, 13)); diff != "" {
			t.Errorf("%d workers, from step 13: %s", workers, diff)
		}
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines are left", n-before)
	}
	if _, err := NewLoader(lazy, Order{N: 3}, Cursor{}, 1, 1); err == nil {
		t.Error("an order of another length was taken")
	}
	none, _, _, err := LoadLazy([]string{write(t, "none.jsonl", rowA+"{}\n")}, chat(t, template(t, "qwen2_5")), Options{MaxLength: 100, Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	l, err := NewLoader(none, Order{N: 2}, Cursor{}, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Next(); err != nil {
		t.Error(err)
	}
	var fault *RowError
	if _, err := l.Next(); !errors.As(err, &fault) || fault.Row != 2 {
		t.Error(err)
	}
}

func TestAhead(t *testing.T) {
	for _, workers := range []int{0, 1, 4} {
		var got []int
		for v := range inOrder(identity(1000), workers, func(i int) int { return i * i }) {
			if got = append(got, v); len(got) == 300 {
				break
			}
		}
		for i, v := range got {
			if v != i*i {
				t.Fatalf("%d workers: value %d is %d", workers, i, v)
			}
		}
		if len(got) != 300 {
			t.Errorf("%d values", len(got))
		}
	}
}

// A file of many rows is opened by its row ends alone.
func BenchmarkOpenLazy(b *testing.B) {
	row := `{"instruction":"Give three tips for staying healthy.","input":"","output":"` + strings.Repeat("Eat a balanced diet. ", 25) + `"}` + "\n"
	path := write(b, "rows.jsonl", strings.Repeat(row, 100_000))
	c := chat(b, template(b, "qwen2_5"))
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(info.Size())
	for b.Loop() {
		lazy, _, _, err := LoadLazy([]string{path}, c, Options{MaxLength: 2048})
		if err != nil {
			b.Fatal(err)
		}
		lazy.Close()
	}
}

// together is a Source whose first units wait for each other.
type together struct {
	Samples
	all    sync.WaitGroup
	number atomic.Int32
}

func (s *together) Unit(i int) (Unit, error) {
	if s.number.Add(-1) >= 0 {
		s.all.Done()
		s.all.Wait()
	}
	return s.Samples.Unit(i)
}

// Workers read steps at the same time, and ahead of who asks for them: each of the first three waits for the others.
func TestLoaderReadsAhead(t *testing.T) {
	s := &together{Samples: make(Samples, 12)}
	for i := range s.Samples {
		s.Samples[i] = Sample{IDs: []int32{1}, Labels: []int32{1}}
	}
	s.number.Store(3)
	s.all.Add(3)
	l, err := NewLoader(s, Order{N: 12}, Cursor{}, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		_, err := l.Next()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("three workers do not read three steps at a time")
	}
}
