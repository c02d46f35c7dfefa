package weights

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"qlora/internal/bfloat16"
	"qlora/internal/random"
)

// preset is a published shape: layers, hidden size, heads, key/value heads, feed-forward size, rows of the embedding,
// whether the head is the embedding. From the config.json of each Qwen2.5 model.
type preset struct {
	layers, hidden, heads, kvHeads, ffn, vocab int
	tied                                       bool
}

var presets = map[string]preset{
	"qwen2.5-0.5b": {24, 896, 14, 2, 4864, 151936, true},
	"qwen2.5-1.5b": {28, 1536, 12, 2, 8960, 151936, true},
	"qwen2.5-3b":   {36, 2048, 16, 2, 11008, 151936, true},
	"qwen2.5-7b":   {28, 3584, 28, 4, 18944, 152064, false},
	"qwen2.5-14b":  {48, 5120, 40, 8, 13824, 152064, false},
	"qwen2.5-32b":  {64, 5120, 40, 8, 27648, 152064, false},
}

// Presets names the shapes that NewRandom knows, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

func (p preset) config() Config {
	return Config{Architectures: []string{"Qwen2ForCausalLM"}, ModelType: "qwen2", HiddenSize: p.hidden, IntermediateSize: p.ffn,
		NumHiddenLayers: p.layers, NumAttentionHeads: p.heads, NumKeyValueHeads: p.kvHeads, HeadDim: p.hidden / p.heads,
		VocabSize: p.vocab, MaxPositionEmbeddings: 32768, RMSNormEps: 1e-6, RopeTheta: 1e6, TieWordEmbeddings: p.tied,
		HiddenAct: "silu", AttentionBias: true, DType: "bfloat16", BOSTokenID: -1, EOSTokenID: IDs{151645}, PadTokenID: 151643}
}

// randomStd is the deviation of random weights: initializer_range of Qwen2.5.
const randomStd = 0.02

// NewRandom makes a model of a published shape (see Presets; case does not matter) with random weights: to measure by,
// and for nothing else. All matrices and biases are normal numbers of deviation 0.02, all norms 1, bfloat16; none lies in
// memory or in a file. The same seed gives the same bits.
func NewRandom(name string, seed uint32) (*Model, error) {
	p, ok := presets[strings.ToLower(name)]
	if !ok {
		return nil, fmt.Errorf("no shape of that name: choose %s", strings.Join(Presets(), ", "))
	}
	return NewRandomOf(strings.ToLower(name), p.config(), seed)
}

// NewRandomOf is NewRandom for a shape of one's own.
func NewRandomOf(name string, c Config, seed uint32) (*Model, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	m := &Model{Config: c, Random: true, HubID: "random/" + name, tensors: map[string]*Tensor{}}
	normal := func(name string, shape ...int) {
		n := random.Normal{Seed: seed, Stream: uint32(len(m.tensors)), Std: randomStd}
		m.addRandom(name, shape, normalBytes(n), &n)
	}
	norm := func(name string) { m.addRandom(name, []int{c.HiddenSize}, ones{}, nil) }
	linear := func(name string, out, in int, bias bool) {
		normal(name+".weight", out, in)
		if bias {
			normal(name+".bias", out)
		}
	}
	hidden, ffn := c.HiddenSize, c.IntermediateSize
	q, kv := c.NumAttentionHeads*c.HeadDim, c.NumKeyValueHeads*c.HeadDim
	normal("model.embed_tokens.weight", c.VocabSize, hidden)
	for i := range c.NumHiddenLayers {
		layer := fmt.Sprintf("model.layers.%d.", i)
		norm(layer + "input_layernorm.weight")
		linear(layer+"self_attn.q_proj", q, hidden, c.AttentionBias)
		linear(layer+"self_attn.k_proj", kv, hidden, c.AttentionBias)
		linear(layer+"self_attn.v_proj", kv, hidden, c.AttentionBias)
		linear(layer+"self_attn.o_proj", hidden, q, false)
		norm(layer + "post_attention_layernorm.weight")
		linear(layer+"mlp.gate_proj", ffn, hidden, false)
		linear(layer+"mlp.up_proj", ffn, hidden, false)
		linear(layer+"mlp.down_proj", hidden, ffn, false)
	}
	norm("model.norm.weight")
	if !c.TieWordEmbeddings {
		normal("lm_head.weight", c.VocabSize, hidden)
	}
	return m, nil
}

// addRandom adds a tensor whose bytes are made when they are read.
func (m *Model) addRandom(name string, shape []int, src io.ReaderAt, stream *random.Normal) {
	t := &Tensor{Name: name, DType: BF16, Shape: shape, from: &origin{name: m.HubID, src: src}, Random: stream}
	t.size = 2 * int64(t.Rows()) * int64(t.RowLen())
	m.tensors[name] = t
}

// normalBytes is an endless file of normal numbers in bfloat16.
type normalBytes random.Normal

// ReadAt makes the bytes from off on.
func (n normalBytes) ReadAt(p []byte, off int64) (int, error) {
	var values [256]float32
	for done := 0; done < len(p); {
		at := off + int64(done)
		odd := int(at & 1) // the upper half of a number comes first
		some := values[:min(len(values), (len(p)-done+odd+1)/2)]
		random.Normal(n).Fill(some, at/2)
		for i, v := range some {
			for half, b := range bf16Bytes(v) {
				if to := done + 2*i + half - odd; to >= done && to < len(p) {
					p[to] = b
				}
			}
		}
		done = min(done+2*len(some)-odd, len(p))
	}
	return len(p), nil
}

// bf16Bytes is a bfloat16 as files have it: little endian.
func bf16Bytes(v float32) [2]byte {
	bits := bfloat16.Bits(v)
	return [2]byte{byte(bits), byte(bits >> 8)}
}

// ones is an endless file of ones in bfloat16.
type ones struct{}

// ReadAt makes the bytes from off on.
func (ones) ReadAt(p []byte, off int64) (int, error) {
	one := bf16Bytes(1)
	for i := range p {
		p[i] = one[(off+int64(i))&1]
	}
	return len(p), nil
}
