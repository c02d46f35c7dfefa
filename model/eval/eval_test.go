package eval

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"qlora/internal/golden"
	"qlora/model/cpu"
	"qlora/model/data"
	"qlora/model/infer"
	"qlora/model/ops"
	"qlora/model/qwen2"
	"qlora/model/weights"
)

func mini(t *testing.T) (ops.Backend, *qwen2.Model) {
	t.Helper()
	src, err := weights.Open(golden.Path(t, "models", "mini"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	b := cpu.New[float32]()
	t.Cleanup(func() { b.Close() })
	m, err := qwen2.Build(b, src, qwen2.Options{DType: ops.F32, MaxT: 256, MaxS: 8, MaxN: 256, Sequences: 2, Context: 64})
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

// The mean over three sequences is what transformers computed for them as one batch.
func TestMeasureIsTransformersLoss(t *testing.T) {
	text, err := os.ReadFile(golden.Path(t, "models", "mini", "golden", "inputs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		Sequences map[string][]int32 `json:"sequences"`
		Losses    map[string]struct {
			Labels json.RawMessage `json:"labels"`
			Mean   float64         `json:"loss_mean"`
			Tokens int             `json:"n_label_tokens"`
			Rows   []string        `json:"rows"`
		} `json:"losses"`
	}
	if err := json.Unmarshal(text, &in); err != nil {
		t.Fatal(err)
	}
	var samples []data.Sample
	for _, name := range in.Losses["batch"].Rows {
		s := data.Sample{IDs: in.Sequences[name], File: name}
		if err := json.Unmarshal(in.Losses[name].Labels, &s.Labels); err != nil {
			t.Fatal(err)
		}
		samples = append(samples, s)
	}
	b, m := mini(t)
	got, err := (&Runner{Backend: b, Model: m}).Measure(t.Context(), samples)
	if err != nil {
		t.Fatal(err)
	}
	want := in.Losses["batch"]
	if math.Abs(got.NLL/want.Mean-1) > 1e-5 || got.LabelTokens != want.Tokens || got.Perplexity != math.Exp(got.NLL) {
		t.Errorf("%+v, want %g over %d tokens", got, want.Mean, want.Tokens)
	}
}

func TestAnswerComparesWordForWord(t *testing.T) {
	b, m := mini(t)
	spell := func(ids []int32) string {
		text := " "
		for _, id := range ids {
			text += string(rune('a' + id%26))
		}
		return text + "\n"
	}
	o := infer.Options{MaxNewTokens: 4}
	ask := func(want ...string) []Answered {
		var qs []Question
		for i, w := range want {
			qs = append(qs, Question{Text: w, Prompt: []int32{int32(i + 1), 7, 9}, Want: w})
		}
		got, err := Answer(t.Context(), infer.New(b, m, 2, 64), qs, o, spell, nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := ask("?", "?", "?")
	again := ask(first[0].Got, "no", first[2].Got)
	if !again[0].Exact || again[1].Exact || !again[2].Exact || Accuracy(again) != 2.0/3 || Accuracy(first) != 0 {
		t.Errorf("%+v then %+v", first, again)
	}
}
