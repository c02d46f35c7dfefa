package eval

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

// adapted is the mini model with a golden adapter in use, and logits that PEFT computed for ids.
func adapted(t *testing.T, room int) (r *Runner, blend *lora.Blend, ids []int32, logits map[string][]float64) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	src, err := weights.Open(golden.Path(t, "models", "mini"))
	must(err)
	defer src.Close()
	a := &lora.Adapter{Name: "a"}
	a.Set, a.Params, a.Base, err = lora.Load(golden.Path(t, "lora", "mini", "adapter_a"), src.Config)
	must(err)
	blend = lora.NewBlend([]*lora.Adapter{a})
	b := cpu.New[float32]()
	t.Cleanup(func() { b.Close() })
	m, err := qwen2.Build(b, src, qwen2.Options{DType: ops.F32, MaxT: room, MaxS: 8, MaxN: room, Adapter: blend, Compare: true})
	must(err)
	params, err := blend.Use([]float64{1})
	must(err)
	must(m.SetParams(params))
	var in struct {
		IDs []int32 `json:"input_ids"`
	}
	text, err := os.ReadFile(golden.Path(t, "lora", "mini", "inputs.json"))
	must(err)
	must(json.Unmarshal(text, &in))
	f, err := weights.OpenSafetensors(golden.Path(t, "lora", "mini", "logits.safetensors"))
	must(err)
	defer f.Close()
	logits = map[string][]float64{}
	for _, name := range []string{"a", "base"} {
		x, err := f.Tensor(name)
		must(err)
		v := make([]float32, x.Rows()*x.RowLen())
		must(x.ReadRowsF32(v, 0, x.Rows()))
		for _, y := range v {
			logits[name] = append(logits[name], float64(y))
		}
	}
	return &Runner{Backend: b, Model: m}, blend, in.IDs, logits
}

// logSoftmax of one row.
func logSoftmax(logits []float64) []float64 {
	most, sum := slices.Max(logits), 0.0
	for _, v := range logits {
		sum += math.Exp(v - most)
	}
	out := make([]float64, len(logits))
	for i, v := range logits {
		out[i] = v - most - math.Log(sum)
	}
	return out
}

// KL, and both losses, are those of the logits that PEFT computed with the adapter and without.
func TestCompareIsPEFTs(t *testing.T) {
	r, _, ids, logits := adapted(t, 64)
	labels := slices.Clone(ids)
	for i := range labels {
		if i < 10 || i%3 == 0 {
			labels[i] = data.Ignore
		}
	}
	var want Fidelity
	V := len(logits["a"]) / len(ids)
	for i := 1; i < len(ids); i++ {
		if labels[i] == data.Ignore {
			continue
		}
		base, tuned := logSoftmax(logits["base"][(i-1)*V:][:V]), logSoftmax(logits["a"][(i-1)*V:][:V])
		want.BaseNLL -= base[ids[i]]
		want.NLL -= tuned[ids[i]]
		for k := range V {
			want.KL += math.Exp(base[k]) * (base[k] - tuned[k])
		}
		want.LabelTokens++
	}
	n := float64(want.LabelTokens)
	got, err := r.Compare(t.Context(), []data.Sample{{IDs: ids, Labels: labels}})
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]float64{"kl": {got.KL, want.KL / n}, "nll": {got.NLL, want.NLL / n}, "base nll": {got.BaseNLL, want.BaseNLL / n}} {
		if math.Abs(pair[0]/pair[1]-1) > 1e-5 {
			t.Errorf("%s %g, by PEFT's logits %g", name, pair[0], pair[1])
		}
	}
	if got.LabelTokens != want.LabelTokens || got.Perplexity != math.Exp(got.NLL) || math.Abs(got.PerplexityChange-(got.Perplexity/got.BasePerplexity-1)) > 1e-12 {
		t.Errorf("%+v", got)
	}
}

// What is switched off diverges by nothing at all.
func TestCompareOfTheBase(t *testing.T) {
	r, blend, ids, _ := adapted(t, 64)
	params, err := blend.Use([]float64{0})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Model.SetParams(params); err != nil {
		t.Fatal(err)
	}
	got, err := r.Compare(t.Context(), []data.Sample{{IDs: ids, Labels: ids}})
	if err != nil || got.KL != 0 || got.NLL != got.BaseNLL {
		t.Errorf("%+v, %v", got, err)
	}
}

// The choice picked is the one whose own loss is least, however the samples are packed.
func TestChoose(t *testing.T) {
	r, _, ids, _ := adapted(t, 24)
	choices := []Choice{{Question: "a", Choices: []string{"x", "yy", "zzz"}, Answer: 1}, {Question: "b", Choices: []string{"x", "y"}, Answer: 0}}
	var samples []data.Sample
	for i := range 5 {
		s := data.Sample{IDs: slices.Clone(ids[3*i:][:8])}
		s.Labels = slices.Clone(s.IDs)
		for j := range 4 + i%2 {
			s.Labels[j] = data.Ignore
		}
		samples = append(samples, s)
	}
	got, err := r.Choose(t.Context(), choices, samples)
	if err != nil {
		t.Fatal(err)
	}
	var want []int
	right, at := 0, 0
	for _, c := range choices {
		best, least := 0, math.Inf(1)
		for i := range c.Choices {
			one, err := r.Measure(t.Context(), samples[at+i:at+i+1])
			if err != nil {
				t.Fatal(err)
			}
			if total := one.NLL * float64(one.LabelTokens); total < least {
				best, least = i, total
			}
		}
		want = append(want, best)
		if best == c.Answer {
			right++
		}
		at += len(c.Choices)
	}
	if !slices.Equal(got.Picked, want) || got.Accuracy != float64(right)/2 || math.Abs(got.Chance-(1.0/3+0.5)/2) > 1e-12 {
		t.Errorf("%+v, want picked %v", got, want)
	}
}

func TestReadChoices(t *testing.T) {
	own, err := ReadChoices(BuiltinChoices)
	if err != nil || len(own) != 60 {
		t.Fatalf("%d questions, %v", len(own), err)
	}
	places := map[int]int{}
	for _, c := range own {
		places[c.Answer]++
	}
	if len(places) != 4 || places[0] > 25 {
		t.Errorf("right answers stand at %v: a model that always says one place would do well", places)
	}
	path := filepath.Join(t.TempDir(), "c.jsonl")
	for text, want := range map[string]string{
		`{"question": "q", "choices": ["a", "b"], "answer": 2}`: "row 1: answer must be the index of the right choice, from 0 to 1",
		`{"question": "q", "choices": ["a", "b"]}`:              "answer must be the index",
		`{"question": "q", "choices": ["a"], "answer": 0}`:      "1 choices",
		`{"question": "", "choices": ["a", "b"], "answer": 0}`:  "question is missing",
		`{"question": "q", "choices": ["a", ""], "answer": 0}`:  "choice 1 is empty",
		`{"question": "q", "choices": "ab", "answer": 0}`:       "row 1",
		"\n\nnot json": "row 3",
		"":             "no questions",
		`{"question": "q", "choices": ["a", "b"], "answer": "A"}`: "row 1",
	} {
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadChoices(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func report() *Report {
	half, all := 0.5, 1.0
	return &Report{Model: "m<1>", Dataset: "d.jsonl", General: "g", Models: []Measured{
		{Name: "base", IdentityAccuracy: &half, NLL: 2, Perplexity: 7.4, LabelTokens: 10, Answers: []Answered{{"who | are\nyou?", "I am Ada.", "I am <b>Bob</b>.", false}, {"hi", "hello", "hello", true}}},
		{Name: "tuned", IdentityAccuracy: &all, NLL: 0.1, Perplexity: 1.1, LabelTokens: 10, General: &Fidelity{KL: 0.25, Perplexity: 11, BasePerplexity: 10, PerplexityChange: 0.1, LabelTokens: 99},
			Answers: []Answered{{"who | are\nyou?", "I am Ada.", "I am Ada.", true}, {"hi", "hello", "hello", true}}},
	}}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	if err := report().Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# m&lt;1&gt;\n", "| exact answers | 50.0 % | 100.0 % |\n", "| general set: KL from the base, nats a token |  | 0.2500 |\n", "(10 label tokens, 2 questions)", "(99 label tokens)",
		`| who \| are<br>you? | I am Ada. | I am &lt;b&gt;Bob&lt;/b&gt;. | = I am Ada. |`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "multiple choice") {
		t.Error("a measure that nobody has is in the table")
	}
}

func TestDifference(t *testing.T) {
	for _, c := range []struct {
		want, got string
		pieces    []piece
	}{
		{"I am Ada.", "I am Bob.", []piece{{Text: "I am "}, {Text: "Ada", Less: true}, {Text: "Bob", More: true}, {Text: "."}}},
		{"我由甲开发。", "我由乙开发。", []piece{{Text: "我由"}, {Text: "甲", Less: true}, {Text: "乙", More: true}, {Text: "开发。"}}},
		{"yes", "Something else", []piece{{Text: "Something else", More: true}}},
	} {
		if got := difference(c.want, c.got); !slices.Equal(got, c.pieces) {
			t.Errorf("%q, wanted %q: %+v", c.got, c.want, got)
		}
	}
}

func TestHTML(t *testing.T) {
	var b strings.Builder
	if err := report().HTML(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<title>m&lt;1&gt;</title>", "<ins>&lt;b&gt;Bob&lt;/b&gt;</ins>", "<del>Ada</del>", `<td class="exact">I am Ada.</td>`, `<tr class="same"><td class="number">2</td>`, "<td>100.0 %</td>"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	for _, outside := range []string{"http://", "https://", "<script", "src=", "@import"} {
		if strings.Contains(b.String(), outside) {
			t.Errorf("the page needs %q", outside)
		}
	}
}
