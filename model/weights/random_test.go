package weights

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"
)

func tinyRandom(t *testing.T, seed uint32) *Model {
	t.Helper()
	p := preset{layers: 2, hidden: 64, heads: 4, kvHeads: 2, ffn: 96, vocab: 512, tied: true}
	c := p.config()
	c.EOSTokenID, c.PadTokenID = IDs{1}, 0
	m, err := NewRandomOf("tiny", c, seed)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestRandomPresets holds the shapes to the parameters that the models are published with.
func TestRandomPresets(t *testing.T) {
	for name, want := range map[string]int64{"Qwen2.5-0.5B": 494032768, "qwen2.5-1.5b": 1543714304, "qwen2.5-3b": 3085938688,
		"qwen2.5-7b": 7615616512, "qwen2.5-14b": 14770033664, "qwen2.5-32b": 32763876352} {
		m, err := NewRandom(name, 1)
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		for _, name := range m.Names() {
			tensor, err := m.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			n += int64(tensor.Rows()) * int64(tensor.RowLen())
		}
		if n != want {
			t.Errorf("%s has %d parameters, want %d", name, n, want)
		}
	}
	if _, err := NewRandom("qwen2.5-8b", 1); err == nil || !strings.Contains(err.Error(), "qwen2.5-7b") {
		t.Errorf("an unknown shape: %v", err)
	}
}

// TestRandomTensors reads tensors as float32, as bytes and in pieces, and compares with their streams.
func TestRandomTensors(t *testing.T) {
	m := tinyRandom(t, 42)
	seen := map[uint32]string{}
	for _, name := range m.Names() {
		tensor, err := m.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		n := tensor.Rows() * tensor.RowLen()
		got, want := make([]float32, n), make([]float32, n)
		if err := tensor.ReadRowsF32(got, 0, tensor.Rows()); err != nil {
			t.Fatal(err)
		}
		if tensor.Random == nil {
			for i := range want {
				want[i] = 1
			}
		} else {
			if other, ok := seen[tensor.Random.Stream]; ok {
				t.Errorf("%s and %s are one stream", name, other)
			}
			seen[tensor.Random.Stream] = name
			tensor.Random.Fill(want, 0)
			for i, v := range want {
				b := bf16Bytes(v)
				want[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[:])) << 16)
				if math.Abs(float64(v-want[i])) > math.Abs(float64(v))/256 {
					t.Fatalf("%v rounds to %v", v, want[i])
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s does not hold its stream", name)
		}
		whole := make([]byte, tensor.size)
		if err := tensor.readAt(whole, 0); err != nil {
			t.Fatal(err)
		}
		for _, from := range []int64{1, 2, 77} {
			piece := make([]byte, max(min(1001, tensor.size-from-1), 0))
			if err := tensor.readAt(piece, from); err != nil || !bytes.HasPrefix(whole[min(from, tensor.size):], piece) {
				t.Errorf("%s: bytes from %d on differ from the whole (%v)", name, from, err)
			}
		}
	}
}

// TestRandomFingerprint says that the weights are random, and tells seeds apart.
func TestRandomFingerprint(t *testing.T) {
	var prints []string
	for _, seed := range []uint32{1, 1, 2} {
		f, err := tinyRandom(t, seed).Fingerprint()
		if err != nil || !strings.HasPrefix(f, "random ") {
			t.Fatalf("%q, %v", f, err)
		}
		prints = append(prints, f)
	}
	if prints[0] != prints[1] || prints[0] == prints[2] {
		t.Errorf("fingerprints of seeds 1, 1 and 2: %q", prints)
	}
}
