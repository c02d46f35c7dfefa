package bench

import (
	"bytes"
	"context"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"qlora/bench/measure"
	"qlora/bench/measure/fakecard"
	"qlora/bench/result"
	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
	"qlora/model/plan"
	"qlora/model/weights"
)

func under() ops.Backend  { return cpu.New[float32]() }
func oracle() ops.Backend { return cpu.New[float64]() }

func another() (ops.Backend, error) { return under(), nil }

// few is a rule for tests, in which times mean nothing.
var few = measure.Rule{Least: 10, Noise: 1e9, Most: 10, Time: time.Minute}

// device is the processor behind the probe of a card.
func device(t *testing.T) (*Bench, *fakecard.Card) {
	t.Helper()
	backend := under()
	card := fakecard.New(backend)
	b := &Bench{Backend: backend, Probe: card, Rule: few, Suite: Suite{Open: another, Oracle: oracle, Weights: ops.BF16}, Say: t.Logf, Open: again,
		Env: result.Environment{Backend: "cuda", Kernels: "test", Host: result.Host{CPU: "a processor", Cores: 2, Threads: 2, Memory: 1 << 30, System: "Linux"},
			Program: result.Program{Commit: "0123456", Go: "go1.26", Args: []string{"test"}}}}
	t.Cleanup(func() { b.Backend.Close() })
	return b, card
}

// again opens what reopen replaces.
func again() (ops.Backend, measure.Probe, error) {
	b := under()
	return b, fakecard.New(b), nil
}

func mini(t *testing.T) Training {
	t.Helper()
	src, err := weights.Open(golden.Path(t, "models/mini"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return Training{Name: "mini", Source: src, DType: ops.F32, Adapter: lora.Config{R: 4, Alpha: 8, Init: lora.InitKaiming, Targets: []string{lora.AllLinear}},
		Tokens: 24, Segments: 3, Rows: 2, Labels: 0.5}
}

func complete(t *testing.T, f *result.File) {
	t.Helper()
	if lacks := f.Incomplete(); len(lacks) > 0 {
		t.Errorf("the file lacks %q", lacks)
	}
	var text bytes.Buffer
	if err := f.Encode(&text); err != nil {
		t.Fatal(err)
	}
	if _, err := result.Parse(text.Bytes()); err != nil {
		t.Error(err)
	}
}

func TestKernels(t *testing.T) {
	b, card := device(t)
	card.Run, card.Slow = func() { time.Sleep(0) }, 2
	f, err := b.Kernels(context.Background(), KernelOptions{Filter: regexp.MustCompile(`^(RMSNorm|Logits|SwiGLUBack|Attention)/tiny T(2|31|63|129) `), Small: true, Cold: true, Hot: true, Roofs: true, Variant: "auto"})
	if err != nil {
		t.Fatal(err)
	}
	complete(t, f)
	ops := map[string]int{}
	for _, r := range f.Rows {
		op, _, _ := strings.Cut(r.Name, "/")
		ops[op+" "+r.Params["cache"]]++
		if r.Error != "" || len(r.Seconds) != 10 || len(r.MHz) != 10 || r.MHz[0] != 1500 || r.FLOPs == 0 || r.Bytes == 0 || r.Params["variant"] != "auto" {
			t.Errorf("%s: %+v", r.Key(), r)
		}
		if p := r.Proof; p == nil || p.Cases < 4 || len(p.Digest) != 16 || p.Shape != "held to the oracle" {
			t.Errorf("%s: proof %+v", r.Key(), p)
		}
		if y := r.Yardstick; (y != nil) != (op == "Logits") || y != nil && (y.Library != "cuFAKE 1.0" || len(y.Seconds) != 10) {
			t.Errorf("%s: yardstick %+v", r.Key(), y)
		}
	}
	for _, op := range []string{"RMSNorm", "Logits", "SwiGLUBack", "Attention"} {
		if ops[op+" cold"] == 0 || ops[op+" cold"] != ops[op+" hot"] {
			t.Errorf("%s: %d cold, %d hot", op, ops[op+" cold"], ops[op+" hot"])
		}
	}
	if len(f.Roofs) != 3 || f.Watch.Readings == 0 || f.Watch.Throttled["power cap"] < 0.99 || f.Environment.Card.Name != "NVIDIA H200" {
		t.Errorf("roofs %v, watch %+v", f.Roofs, f.Watch)
	}
	if !slices.ContainsFunc(f.Notes, func(n string) bool { return strings.HasPrefix(n, "no yardstick: ") }) { // of attention
		t.Errorf("notes %q", f.Notes)
	}
}

// wrong is a backend whose norm is wrong.
type wrong struct{ ops.Backend }

func (w wrong) RMSNorm(xn, rho, u, x, norm ops.Tensor, eps float32, l *ops.LoRA, b *ops.Batch) {
	w.Backend.RMSNorm(xn, rho, u, x, norm, 2*eps+1, l, b)
}

// TestKernelsChecked: what is not right is not timed.
func TestKernelsChecked(t *testing.T) {
	b, _ := device(t)
	b.Suite.Open = func() (ops.Backend, error) { return wrong{under()}, nil }
	f, err := b.Kernels(context.Background(), KernelOptions{Filter: regexp.MustCompile(`^(RMSNorm|SwiGLU)/tiny T63 `), Small: true, Hot: true})
	if err != nil {
		t.Fatal(err)
	}
	failed := Failed(f)
	if len(failed) != 1 || !strings.Contains(failed[0], "RMSNorm/tiny T63") || !strings.Contains(failed[0], "not timed, for it is not right") {
		t.Errorf("failed %q", failed)
	}
	for _, r := range f.Rows {
		if strings.HasPrefix(r.Name, "RMSNorm/") && len(r.Seconds) > 0 {
			t.Errorf("%s was timed", r.Key())
		}
	}
}

// TestKernelsOfARealShape times one of a 7B model: held to the oracle itself only when asked.
func TestKernelsOfARealShape(t *testing.T) {
	b, _ := device(t)
	for full, want := range map[bool]string{false: "two calls to the bit, finite, nothing written outside", true: "held to the oracle"} {
		f, err := b.Kernels(context.Background(), KernelOptions{Filter: regexp.MustCompile(`^RMSNorm/7B.*no LoRA`), Hot: true, Full: full})
		if err != nil || len(f.Rows) != 1 || f.Rows[0].Proof == nil || f.Rows[0].Proof.Shape != want {
			t.Errorf("full %v: %+v, %v", full, f.Rows, err)
		}
	}
	if _, err := b.Kernels(context.Background(), KernelOptions{Filter: regexp.MustCompile("nothing")}); err == nil || !strings.Contains(err.Error(), "--list") {
		t.Errorf("no case: %v", err)
	}
}

// TestKernelsVoid: a card that is too hot gives no times.
func TestKernelsVoid(t *testing.T) {
	b, card := device(t)
	card.Sensor = func(_ int, r *measure.Reading) {
		r.Throttled, r.Void = []string{"heat (driver)"}, []string{"heat (driver)"}
	}
	f, err := b.Kernels(context.Background(), KernelOptions{Filter: regexp.MustCompile(`^Embed/tiny`), Small: true, Hot: true})
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Rows[0]; len(r.Seconds) != 0 || r.Void["heat (driver)"] != 10 || !strings.Contains(r.Error, "every sample is void") {
		t.Errorf("%+v", r)
	}
}

func TestStep(t *testing.T) {
	b, card := device(t)
	card.Beside = []string{"python3 (pid 7), 4.0 GiB"}
	short, big := mini(t), mini(t)
	short.Tokens, short.Segments, short.Rows, short.Labels = 16, 1, 1, 1
	big.Tokens, big.Budget = 48, 1<<10
	f, err := b.Steps(context.Background(), StepOptions{Trainings: []Training{mini(t), short, big}, Ops: true, Roofs: true})
	if err != nil {
		t.Fatal(err)
	}
	if lacks := strings.Join(f.Incomplete(), "; "); lacks != "a card without other processes" {
		t.Errorf("the file lacks %q", lacks)
	}
	if !slices.Contains(f.Notes, "another process was on the card: python3 (pid 7), 4.0 GiB") {
		t.Errorf("notes %q", f.Notes)
	}
	r := f.Rows[0]
	if len(r.Seconds) != 10 || r.Tokens != 48 || r.Labels != 24 || r.Joules <= 0 || r.Params["samples"] != "3" || r.Params["model"] != "mini" {
		t.Errorf("%+v", r)
	}
	if perStep := r.Summary().Mean * 600; r.Joules < perStep/3 || r.Joules > perStep*3 { // 600 W
		t.Errorf("%v J a step of %v s at 600 W", r.Joules, r.Summary().Mean)
	}
	phases, products, seconds := map[string]int{}, 0.0, 0.0
	for _, o := range r.Ops {
		phases[o.Phase]++
		seconds += o.Seconds
		switch o.Name {
		case "Linear", "LinearBack", "HeadLoss":
			products += o.FLOPs
		case "AdamW":
			if o.Calls != 1 || o.Phase != phaseOptimizer {
				t.Errorf("%+v", o)
			}
		}
	}
	for _, p := range Phases() {
		if phases[p] == 0 {
			t.Errorf("no op in phase %s: %v", p, phases)
		}
	}
	if last := r.Ops[len(r.Ops)-1]; last.Name != result.Gap || last.Seconds <= 0 {
		t.Errorf("the last op is %+v", last)
	}
	if seconds > 20*r.Summary().Median {
		t.Errorf("ops of %v s in steps of %v s", seconds, r.Summary().Median)
	}
	memory := map[string]result.Memory{}
	for _, m := range r.Memory {
		memory[m.Category] = m
	}
	if memory["weights"].Planned == 0 || memory[result.MemoryArena].Planned == 0 || memory[result.MemoryProcess].Measured != 1<<30 {
		t.Errorf("memory %+v", r.Memory)
	}
	if full := f.Rows[1]; full.Tokens != 16 || full.Labels != 15 {
		t.Errorf("%+v", full)
	}
	if no := f.Rows[2]; len(no.Seconds) != 0 || !strings.Contains(no.Error, "0.00 GiB is there for it") || no.Params["budget"] == "" {
		t.Errorf("%+v", no)
	}
}

// TestWithParams: the parameters of a row make the training they came from.
// full is a backend without room for large arenas.
type full struct{ ops.Backend }

type noRoom struct{}

func (noRoom) Error() string { return "there is no room" }
func (noRoom) NoFit()        {}

func (b full) NewArena(bytes int64) (ops.Buffer, error) {
	if bytes > 5<<20 {
		return nil, noRoom{}
	}
	return b.Backend.NewArena(bytes)
}

// TestStepDoesNotFit: a step without room is a row that says so, and those behind it are measured, each on a backend of its
// own.
func TestStepDoesNotFit(t *testing.T) {
	b, _ := device(t)
	opened := 0
	b.Backend = full{b.Backend}
	b.Open = func() (ops.Backend, measure.Probe, error) {
		opened++
		backend, probe, err := again()
		return full{backend}, probe, err
	}
	small, large := mini(t), mini(t)
	large.Tokens, large.Segments = 2400, 100
	b.Variant = "sm_80"
	f, err := b.Steps(context.Background(), StepOptions{Trainings: []Training{large, small}})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Rows) != 2 || !strings.HasSuffix(f.Rows[0].Error, "there is no room") || len(f.Rows[1].Seconds) < 10 || opened != 1 || f.Rows[1].Params["variant"] != "sm_80" {
		t.Errorf("opened %d times: %+v", opened, f.Rows)
	}
}

func TestWithParams(t *testing.T) {
	a := mini(t)
	b, err := Training{Name: a.Name, Source: a.Source}.WithParams(a.params())
	a.Adapter.Alpha, a.Adapter.Init = 16, ""
	if d := cmp.Diff(a.params(), b.params()); err != nil || d != "" || b.DType != a.DType || b.Adapter.Alpha != 16 {
		t.Errorf("%v, %s", err, d)
	}
	for name, value := range map[string]string{"rank": "x", "labels": "", "method": "nf5"} {
		p := a.params()
		p[name] = value
		if _, err := a.WithParams(p); err == nil || !strings.Contains(err.Error(), strconv.Quote(value)) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

// TestModelFLOPs: what the formula says is what the meter counts of products, attention and the head, without adapters.
func TestModelFLOPs(t *testing.T) {
	b, _ := device(t)
	s := b.start()
	tr := mini(t)
	tr.Adapter.R = 8 // as many columns
	row, err := b.step(context.Background(), s, tr, StepOptions{Ops: true})
	b.watch.Stop()
	if err != nil {
		t.Fatal(err)
	}
	set, err := lora.New(tr.Source.Config, tr.Adapter)
	if err != nil {
		t.Fatal(err)
	}
	counted, c := 0.0, tr.Source.Config
	for _, o := range row.Ops {
		switch o.Name {
		case "Linear", "LinearBack", "HeadLoss", "Attention", "AttentionBack":
			counted += o.FLOPs
		}
	}
	// Of the adapters' part the meter counts here what these ops do: u·B of every weight, at the rank of the whole weight, and
	// u of o, du of qkv in attention.
	layers, T := float64(c.NumHiddenLayers), 48.
	wide, narrow := float64((c.NumAttentionHeads+2*c.NumKeyValueHeads)*c.HeadDim), float64(c.NumAttentionHeads*c.HeadDim)
	adapters := 2 * T * layers * float64(tr.Adapter.R) * (3*wide + float64(c.HiddenSize) + 2*2*float64(c.IntermediateSize) + float64(c.HiddenSize) + narrow + narrow + 3*wide)
	want := row.FLOPs - 6*float64(set.Len())*T + adapters
	if math.Abs(counted-want) > 1e-9*want {
		t.Errorf("the meter counts %g, the formula %g", counted, want)
	}
	// Qwen2.5-7B, rank 8, 2048 tokens a row: 29.84 GFLOP a token.
	big, err := weights.NewRandom("qwen2.5-7b", 1)
	if err != nil {
		t.Fatal(err)
	}
	samples := randomRow(2048, big.Config.VocabSize)
	if got := modelFLOPs(big.Config, 20185088, samples) / 2048 / 1e9; math.Abs(got-29.84) > 0.05 {
		t.Errorf("%.2f GFLOP a token, want 29.84", got)
	}
}

func TestSustained(t *testing.T) {
	b, _ := device(t)
	f, err := b.Steps(context.Background(), StepOptions{Trainings: []Training{mini(t)}, Sustained: 1200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r := f.Rows[0]
	if len(r.Track) != 1 || r.Track[0].Power != 600 || r.Track[0].TempC != 50 || r.Track[0].Seconds <= 0 || r.Cap != "" || len(r.Seconds) < 11 {
		t.Errorf("%d samples, cap %q, %+v", len(r.Seconds), r.Cap, r.Track)
	}
}

func TestDecode(t *testing.T) {
	b, _ := device(t)
	m := mini(t)
	f, err := b.Decodings(context.Background(), DecodeOptions{Name: "mini", Source: m.Source, DType: ops.F32, Adapter: &m.Adapter, Sequences: []int{1, 3}, Prompt: 9, New: 5})
	if err != nil {
		t.Fatal(err)
	}
	complete(t, f)
	var names []string
	for _, r := range f.Rows {
		names = append(names, r.Name+r.Params["sequences"])
	}
	if !slices.Equal(names, []string{"prefill1", "decode1", "prefill3", "decode3"}) {
		t.Fatalf("rows %q", names)
	}
	one, three := f.Rows[1], f.Rows[3]
	var weightBytes, size float64 = 0, 4
	c := m.Source.Config
	narrow, wide := c.NumAttentionHeads*c.HeadDim, (c.NumAttentionHeads+2*c.NumKeyValueHeads)*c.HeadDim
	weightBytes = size * (float64(c.NumHiddenLayers)*(mul(c.HiddenSize, wide)+mul(narrow, c.HiddenSize)+3*mul(c.HiddenSize, c.IntermediateSize)) + mul(c.VocabSize, c.HiddenSize))
	if one.Tokens != 1 || three.Tokens != 3 || one.Bytes < weightBytes || one.Bytes > 1.2*weightBytes || three.Bytes < one.Bytes || three.Bytes > 1.5*one.Bytes {
		t.Errorf("one: %g bytes, three: %g bytes, weights %g", one.Bytes, three.Bytes, weightBytes)
	}
	calls := map[string]float64{}
	for _, o := range one.Ops {
		calls[o.Name] += o.Calls
	}
	if calls["Linear"] != 4*float64(c.NumHiddenLayers) || calls["Sample"] != 1 || calls["DecodeAttention"] != float64(c.NumHiddenLayers) {
		t.Errorf("calls a step: %v", calls)
	}
	if f.Rows[2].Tokens != 27 || len(f.Rows[2].Seconds) != 10 {
		t.Errorf("%+v", f.Rows[2])
	}
	if _, err := b.Decodings(context.Background(), DecodeOptions{Sequences: []int{1}, Prompt: 1, New: 1}); err == nil {
		t.Error("one token was decoded")
	}
}

// TestUnavoidable: a weight in NF4 is 0.516 bytes a number, and nothing else of a case changes.
func TestUnavoidable(t *testing.T) {
	c := opstest.Case{Bytes: 1e6, Products: []opstest.Product{{M: 3, N: 256, K: 512}}}
	if got := unavoidable(c, ops.BF16); got != 1e6 {
		t.Errorf("bfloat16: %v", got)
	}
	// codes, an absmax of 8 bits for each 64, a float32 for each 256 of those
	if got, want := unavoidable(c, ops.NF4), 1e6-2*256*512+256*512/2+256*512/64+4*256*512/64/256; got != float64(want) {
		t.Errorf("NF4: %v, want %v", got, want)
	}
}

func TestVRAM(t *testing.T) {
	b, _ := device(t)
	short, long := mini(t), mini(t)
	long.Tokens, long.Segments = 240, 1
	f, err := b.VRAM(context.Background(), VRAMOptions{Trainings: []Training{short, long}, Budgets: []int64{1 << 10, 8 << 20}, Measure: true})
	if err != nil {
		t.Fatal(err)
	}
	complete(t, f)
	var keys []string
	for _, r := range f.Rows {
		keys = append(keys, r.Name+" "+r.Params["tokens"]+r.Params["budget"])
	}
	if len(f.Rows) != 6 { // two, and for each budget with nothing made again, and with whatever it takes
		t.Fatalf("%q", keys)
	}
	memory := func(r result.Row, category string) result.Memory {
		for _, m := range r.Memory {
			if m.Category == category {
				return m
			}
		}
		return result.Memory{}
	}
	if a, b := memory(f.Rows[0], result.MemoryArena), memory(f.Rows[1], result.MemoryArena); a.Planned <= 0 || b.Planned <= a.Planned {
		t.Errorf("arenas of %d and %d bytes", a.Planned, b.Planned)
	}
	if p := memory(f.Rows[0], result.MemoryProcess); p.Measured != 1<<30 {
		t.Errorf("%+v", p)
	}
	for _, c := range []string{"activations", "gradients", "optimizer"} {
		if m := memory(f.Rows[0], c); m.Planned == 0 || m.Measured == 0 || m.Measured > m.Planned {
			t.Errorf("%+v", m)
		}
	}
	none, plain, again := f.Rows[2], f.Rows[4], f.Rows[5]
	if none.Tokens != 0 || !strings.Contains(none.Error, "no row fits in") || plain.Tokens == 0 || plain.Error != "" || again.Tokens < plain.Tokens || again.Params["made again"] != "yes" {
		t.Errorf("%q\n%+v\n%+v\n%+v", keys, none, plain, again)
	}
	// Of the run that the budget just holds it holds the block, and of a longer one it does not.
	u := long
	for _, c := range []struct {
		tokens int
		fits   bool
	}{{plain.Tokens, true}, {plain.Tokens + ops.GradBlock, plain.Tokens == u.Source.Config.MaxPositionEmbeddings}} {
		u.Tokens = min(c.tokens, u.Source.Config.MaxPositionEmbeddings)
		choice, err := u.choose(b.Backend, Room{Free: 1 << 62, Card: plan.Processor})
		if err != nil {
			t.Fatal(err)
		}
		if fits := choice.Plan.Bytes <= 8<<20; fits != c.fits {
			t.Errorf("%d tokens take %d bytes", u.Tokens, choice.Plan.Bytes)
		}
	}
}

func TestJob(t *testing.T) {
	b, _ := device(t)
	f, err := b.Job(context.Background(), map[string]string{"model": "mini"}, []Phase{
		{"load", func(context.Context) ([]Part, error) { time.Sleep(time.Millisecond); return nil, nil }},
		{"train", func(context.Context) ([]Part, error) {
			return []Part{{"train", 2, 100}, {"save", 1, 0}}, nil
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	complete(t, f)
	var names []string
	for _, r := range f.Rows {
		names = append(names, r.Name)
	}
	if !slices.Equal(names, []string{"load", "train", "save", "job"}) || f.Rows[0].Seconds[0] < 1e-3 || f.Rows[1].Seconds[0] != 2 || f.Rows[1].Tokens != 100 || len(f.Rows[3].Memory) != 1 {
		t.Errorf("%q %+v", names, f.Rows)
	}
}

func TestQuick(t *testing.T) {
	b, _ := device(t)
	f, err := b.Quick(context.Background(), QuickOptions{Training: mini(t), Kernels: []string{"^RMSNorm/tiny", "^SwiGLU/tiny", "^Nothing"}, Small: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Roofs) != 3 || len(f.Rows) != 5 || f.Rows[4].Name != "step" {
		t.Errorf("%+v", f.Rows)
	}
}

// TestQuickKernels: each pattern names a case that a card takes.
func TestQuickKernels(t *testing.T) {
	b, _ := device(t)
	b.Suite.Options = opstest.Options{Multiple: 8, HeadSizes: []int{64, 128}}
	all := b.Cases(KernelOptions{})
	for _, p := range QuickKernels {
		if !slices.ContainsFunc(all, func(c opstest.Case) bool { return regexp.MustCompile(p).MatchString(c.Name) }) {
			t.Errorf("%s names no case", p)
		}
	}
}

func randomRow(n, vocab int) data.Samples {
	return data.RandomRows{Length: n, Rows: 1, Labels: 1}.Samples(vocab, 1)
}
