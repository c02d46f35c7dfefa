package bench

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qlora/bench/result"
	"qlora/model/weights"
)

// tinyShape is a model of 2 layers.
func tinyShape(t *testing.T) *weights.Model {
	t.Helper()
	m, err := weights.NewRandomOf("tiny", weights.Config{Architectures: []string{"Qwen2ForCausalLM"}, ModelType: "qwen2", HiddenSize: 32, IntermediateSize: 48, NumHiddenLayers: 2, NumAttentionHeads: 4,
		NumKeyValueHeads: 2, HeadDim: 8, VocabSize: 300, MaxPositionEmbeddings: 64, RMSNormEps: 1e-6, RopeTheta: 1e6, HiddenAct: "silu", AttentionBias: true, DType: "bfloat16", BOSTokenID: -1,
		EOSTokenID: weights.IDs{299}, PadTokenID: 298}, 7)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestWriteModel reads a folder of random weights back, to the byte.
func TestWriteModel(t *testing.T) {
	dir, src := filepath.Join(t.TempDir(), "tiny"), tinyShape(t)
	last, whole := int64(0), int64(0)
	if err := WriteModel(dir, src, map[string][]byte{"tokenizer.json": []byte("{}")}, func(done, total int64) { last, whole = done, total }); err != nil {
		t.Fatal(err)
	}
	back, err := weights.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if a, b := src.Config, back.Config; a.HiddenSize != b.HiddenSize || a.RopeTheta != b.RopeTheta || a.DType != b.DType || !b.AttentionBias || b.TieWordEmbeddings || !slices.Equal(a.EOSTokenID, b.EOSTokenID) {
		t.Errorf("%+v, want %+v", b, a)
	}
	if !slices.Equal(src.Names(), back.Names()) || last != whole || whole == 0 {
		t.Fatalf("%d of %d bytes; names %q", last, whole, back.Names())
	}
	for _, name := range src.Names() {
		var raw [2][]byte
		for i, m := range []*weights.Model{src, back} {
			w, err := m.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			raw[i] = make([]byte, 2*w.Rows()*w.RowLen())
			if err := w.ReadRowsRaw(raw[i], 0, w.Rows()); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(raw[0], raw[1]) {
			t.Errorf("%s differs", name)
		}
	}
	if err := WriteModel(dir, back, nil, nil); err == nil {
		t.Error("a real model was written")
	}
}

// script stands in for an interpreter with torch: it says what peers.py would, trainer by trainer.
const script = `#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in --trainer) trainer=$2 ;; --cases) cases=$2 ;; --model) model=$2 ;; esac
  shift
done
[ -f "$model/config.json" ] || { echo "no model in $model" >&2; exit 1; }
case $trainer in
peft)
  echo "a library's own words {"
  echo '{"rows": 1, "tokens": 16, "checkpointing": false, "seconds": [0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5], "first": 2.25, "bytes": 1073741824, "versions": {"torch": "2.11"}}'
  echo '{"rows": 2, "tokens": 16, "checkpointing": true, "versions": {"torch": "2.11"}, "error": "OutOfMemoryError: 1 GiB"}' ;;
unsloth) echo '{"error": "ModuleNotFoundError: unsloth"}'; exit 3 ;;
peft-liger) echo '{"rows": 1, "tokens": 16, "checkpointing": false, "seconds": [1,1,1,1,1,1,1,1,1,1]}'; sleep 60 & sleep 60 ;;
peft-nf4) exit 1 ;;
esac
`

func TestPeers(t *testing.T) {
	b, _ := device(t)
	dir := t.TempDir()
	python, model := filepath.Join(dir, "python"), filepath.Join(dir, "tiny")
	if err := os.WriteFile(python, []byte(script), 0o777); err != nil {
		t.Fatal(err)
	}
	src := tinyShape(t)
	if err := WriteModel(model, src, nil, nil); err != nil {
		t.Fatal(err)
	}
	ours := mini(t)
	ours.Name, ours.Source, ours.Tokens, ours.Segments, ours.Rows, ours.Labels = "tiny", src, 32, 2, 1, 1
	begun := time.Now()
	f, err := b.Peers(context.Background(), PeersOptions{Python: python, Model: model, Name: "tiny", Rank: 4, Steps: 12, Device: "cpu", Scratch: dir, Ours: []Training{ours}, Peers: []Peer{
		{"peft", []string{"1x16", "2x16c", "4x16"}, time.Minute}, {"unsloth", []string{"1x16"}, time.Minute}, {"peft-liger", []string{"1x16", "2x16"}, 300 * time.Millisecond}, {"peft-nf4", []string{"1x16"}, time.Minute}}})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("a trainer that hangs held the run up for %v", took)
	}
	complete(t, f)
	type row struct{ key, err string }
	var got []row
	for _, r := range f.Rows {
		got = append(got, row{r.Params["trainer"] + " " + r.Params["rows"] + "x" + r.Params["tokens"] + " " + r.Params["checkpointing"], r.Error})
	}
	want := []row{{"qlora 2x16 no", ""}, {"peft 1x16 no", ""}, {"peft 2x16 yes", "OutOfMemoryError: 1 GiB"}, {"peft 4x16 no", "no line came for it"}, {"unsloth 1x16 no", "ModuleNotFoundError: unsloth"},
		{"peft-liger 1x16 no", ""}, {"peft-liger 2x16 no", "not done after 0s"}, {"peft-nf4 1x16 no", "exit status 1"}}
	if !slices.Equal(got, want) {
		t.Fatalf("%q\nwant %q", got, want)
	}
	peft := f.Rows[1]
	if peft.Tokens != 16 || len(peft.Seconds) != 12 || peft.Memory[0] != (result.Memory{Category: result.MemoryProcess, Measured: 1 << 30}) || peft.Params["first"] != "2.2 s" || peft.Params["torch"] != "2.11" {
		t.Errorf("%+v", peft)
	}
	if log, err := os.ReadFile(filepath.Join(dir, "peft.log")); err != nil || !strings.Contains(string(log), "own words") {
		t.Errorf("log %q, %v", log, err)
	}
	f, err = b.Peers(context.Background(), PeersOptions{Python: python, Model: model, Name: "tiny", Scratch: dir, Budget: time.Second, Peers: []Peer{{"peft", []string{"1x16"}, time.Minute}}})
	if err != nil || len(f.Rows) != 1 || !strings.Contains(f.Rows[0].Error, "left out") {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestPeersScript: the script that goes with the program compiles, and knows the trainers.
func TestPeersScript(t *testing.T) {
	for _, p := range AllPeers {
		if !strings.Contains(string(peersScript), `"`+p.Trainer+`": `) {
			t.Errorf("peers.py does not know %s", p.Trainer)
		}
	}
	if _, err := HasTorch(context.Background(), "/bin/false"); err == nil {
		t.Error("/bin/false has torch")
	}
}
