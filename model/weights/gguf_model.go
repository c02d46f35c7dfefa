package weights

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"qlora/internal/hubcache"
)

// openGGUFModel opens a .gguf file as a model with Hugging Face names.
func openGGUFModel(path string) (*Model, error) {
	g, err := OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	m := &Model{Dir: filepath.Dir(path), File: path, gguf: g, HubID: g.hubID(), closers: []io.Closer{g}}
	if m.Config, err = g.config(); err == nil {
		m.tensors, err = g.mapped(&m.Config)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// config makes a Config of the metadata.
func (g *GGUF) config() (Config, error) {
	r := ggufMeta{g: g}
	c := Config{ModelType: r.text("general.architecture"), HiddenAct: "silu"}
	if r.err == nil && c.ModelType != "qwen2" && c.ModelType != "llama" {
		return c, fmt.Errorf("%s: architecture %q is not supported, only qwen2 and llama", g.File, c.ModelType)
	}
	key := func(name string) string { return c.ModelType + "." + name }
	c.Architectures = []string{map[string]string{"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[c.ModelType]}
	c.NumHiddenLayers = r.int(key("block_count"), 0)
	c.MaxPositionEmbeddings = r.int(key("context_length"), 0)
	c.HiddenSize = r.int(key("embedding_length"), 0)
	c.IntermediateSize = r.int(key("feed_forward_length"), 0)
	c.NumAttentionHeads = r.int(key("attention.head_count"), 0)
	c.NumKeyValueHeads = r.int(key("attention.head_count_kv"), c.NumAttentionHeads)
	c.RMSNormEps = r.float(key("attention.layer_norm_rms_epsilon"), 0)
	c.RopeTheta = r.float(key("rope.freq_base"), 1e4)
	c.HeadDim = r.int(key("attention.key_length"), c.HiddenSize/max(1, c.NumAttentionHeads))
	for _, name := range []string{"attention.value_length", "rope.dimension_count"} {
		if n := r.int(key(name), c.HeadDim); r.err == nil && n != c.HeadDim {
			r.err = fmt.Errorf("metadata %s is %d, not the head size %d: that is not supported", key(name), n, c.HeadDim)
		}
	}
	if kind := r.textOr(key("rope.scaling.type"), "none"); kind != "none" || g.tensors.find("rope_freqs.weight") != nil {
		return c, fmt.Errorf("%s: the model scales its rope (%s), which is not supported", g.File, kind)
	}
	c.BOSTokenID = r.int("tokenizer.ggml.bos_token_id", -1)
	c.PadTokenID = r.int("tokenizer.ggml.padding_token_id", -1)
	for _, name := range []string{"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"} {
		if id := r.int(name, -1); id >= 0 && (len(c.EOSTokenID) == 0 || id != c.EOSTokenID[0]) {
			c.EOSTokenID = append(c.EOSTokenID, id)
		}
	}
	if embed := g.tensors.find("token_embd.weight"); embed != nil {
		c.VocabSize = embed.Rows()
	}
	c.AttentionBias = g.tensors.find("blk.0.attn_q.bias") != nil
	if r.err == nil {
		r.err = c.validate()
	}
	if r.err != nil {
		return c, fmt.Errorf("%s: %w", g.File, r.err)
	}
	return c, nil
}

// ggufNames maps the end of a tensor's name, or the whole of one outside the
// layers, to Hugging Face's.
var ggufNames = map[string]string{
	"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
	"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
	"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
	"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}

var ggufName = regexp.MustCompile(`^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$`)

// huggingFaceName maps a GGUF tensor name; one it does not know stays as it is, so
// that whoever lists the names sees it.
func huggingFaceName(name string) string {
	m := ggufName.FindStringSubmatch(name)
	if m == nil || ggufNames[m[2]] == "" {
		return name
	}
	inLayer := !strings.HasPrefix(m[2], "output") && m[2] != "token_embd"
	switch {
	case inLayer != (m[1] != ""):
		return name
	case inLayer:
		return "model.layers." + m[1] + "." + ggufNames[m[2]] + "." + m[3]
	}
	return ggufNames[m[2]] + "." + m[3]
}

// mapped returns the tensors under Hugging Face names, settles whether the head is
// tied, and marks the q and k rows that the llama architecture stores permuted.
func (g *GGUF) mapped(c *Config) (map[string]*Tensor, error) {
	tensors := make(map[string]*Tensor, len(g.tensors))
	for _, t := range g.tensors {
		renamed := *t
		renamed.Name = huggingFaceName(t.Name)
		if tensors[renamed.Name] != nil {
			return nil, &FormatError{g.File, t.entry, fmt.Sprintf("a second tensor for %s", renamed.Name)}
		}
		permuted := strings.Contains(renamed.Name, ".q_proj.") || strings.Contains(renamed.Name, ".k_proj.")
		if c.ModelType == "llama" && permuted {
			if len(t.Shape) > 2 || t.Shape[0]%c.HeadDim != 0 {
				return nil, fmt.Errorf("%s: tensor %s has shape %v, not whole heads of %d rows", g.File, t.Name, t.Shape, c.HeadDim)
			}
			renamed.permuted = c.HeadDim
		}
		tensors[renamed.Name] = &renamed
	}
	const embedName, headName = "model.embed_tokens.weight", "lm_head.weight"
	embed, head := tensors[embedName], tensors[headName]
	c.TieWordEmbeddings = head == nil
	if embed == nil || head == nil {
		return tensors, nil
	}
	same, err := sameMatrix(embed, head)
	if err != nil || !same {
		return tensors, err
	}
	// A tied model whose converter wrote the matrix twice, once in a better type.
	c.TieWordEmbeddings = true
	if head.size > embed.size {
		better := *head
		better.Name = embedName
		tensors[embedName] = &better
	}
	delete(tensors, headName)
	return tensors, nil
}

// sameMatrix reports whether two tensors store one matrix, up to quantisation: the
// cosine between rows, taken over a sample, which is nearly 1 for two quantisations
// of one row (a 4-bit one is off by 0.004) and far from it for an embedding and the
// head of an untied model.
func sameMatrix(a, b *Tensor) (bool, error) {
	if a.Rows() != b.Rows() || a.RowLen() != b.RowLen() {
		return false, nil
	}
	const samples = 32
	x, y := make([]float32, a.RowLen()), make([]float32, a.RowLen())
	var xy, xx, yy float64
	for i := range samples {
		row := int(int64(a.Rows()-1) * int64(i) / (samples - 1))
		if err := errors.Join(a.ReadRowsF32(x, row, 1), b.ReadRowsF32(y, row, 1)); err != nil {
			return false, err
		}
		for j := range x {
			xy += float64(x[j]) * float64(y[j])
			xx += float64(x[j]) * float64(x[j])
			yy += float64(y[j]) * float64(y[j])
		}
	}
	return xy > 0.95*math.Sqrt(xx*yy), nil
}

// hubID returns the hub id the file was converted from, when its metadata tell.
func (g *GGUF) hubID() string {
	for _, key := range []string{"general.source.huggingface.repository", "general.source.repo_url", "general.repo_url"} {
		if text, ok := g.meta.find(key).(string); ok {
			id := strings.TrimPrefix(strings.TrimSuffix(text, "/"), "https://huggingface.co/")
			if hubcache.IsID(id) {
				return id
			}
		}
	}
	return ""
}

// A GGUFTokenizer is the tokenizer in a file's metadata.
type GGUFTokenizer struct {
	Model        string    // "gpt2" is byte-level BPE
	Pre          string    // the pre-tokenizer, such as "qwen2" or "smollm"
	Tokens       []string  // by id
	Types        []int32   // by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
	Scores       []float32 // by id; may be nil
	Merges       []string  // "left right", the first merged first
	BOS, EOS     int       // -1: none
	Pad, Unknown int       // -1: none
	AddBOS       bool
	ChatTemplate string
}

// Tokenizer returns the tokenizer of the metadata. The slices belong to g and must
// not be changed.
func (g *GGUF) Tokenizer() (*GGUFTokenizer, error) {
	r := ggufMeta{g: g}
	t := &GGUFTokenizer{
		Model: r.text("tokenizer.ggml.model"), Pre: r.textOr("tokenizer.ggml.pre", ""),
		BOS: r.int("tokenizer.ggml.bos_token_id", -1), EOS: r.int("tokenizer.ggml.eos_token_id", -1),
		Pad: r.int("tokenizer.ggml.padding_token_id", -1), Unknown: r.int("tokenizer.ggml.unknown_token_id", -1),
		ChatTemplate: r.textOr("tokenizer.chat_template", ""),
	}
	var errs [5]error
	t.Tokens, _, errs[0] = metaValue[[]string](g, "tokenizer.ggml.tokens")
	t.Types, _, errs[1] = metaValue[[]int32](g, "tokenizer.ggml.token_type")
	t.Merges, _, errs[2] = metaValue[[]string](g, "tokenizer.ggml.merges")
	t.Scores, _, errs[3] = metaValue[[]float32](g, "tokenizer.ggml.scores")
	t.AddBOS, _, errs[4] = metaValue[bool](g, "tokenizer.ggml.add_bos_token")
	if err := errors.Join(append(errs[:], r.err)...); err != nil {
		return nil, fmt.Errorf("%s: %w", g.File, err)
	}
	n := len(t.Tokens)
	switch {
	case n == 0:
		return nil, fmt.Errorf("%s: no tokenizer: metadata tokenizer.ggml.tokens is missing or empty", g.File)
	case t.Types != nil && len(t.Types) != n:
		return nil, fmt.Errorf("%s: %d token types for %d tokens", g.File, len(t.Types), n)
	case t.Scores != nil && len(t.Scores) != n:
		return nil, fmt.Errorf("%s: %d token scores for %d tokens", g.File, len(t.Scores), n)
	}
	for name, id := range map[string]int{"bos": t.BOS, "eos": t.EOS, "pad": t.Pad, "unknown": t.Unknown} {
		if id >= n {
			return nil, fmt.Errorf("%s: %s token id %d of %d tokens", g.File, name, id, n)
		}
	}
	return t, nil
}

// ggufMeta reads metadata values and keeps the first error.
type ggufMeta struct {
	g   *GGUF
	err error
}

func (r *ggufMeta) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// text returns a text that must be there.
func (r *ggufMeta) text(key string) string {
	s, ok, err := metaValue[string](r.g, key)
	if err == nil && !ok {
		err = fmt.Errorf("metadata %s is missing", key)
	}
	if err != nil {
		r.fail(err)
	}
	return s
}

func (r *ggufMeta) textOr(key, absent string) string {
	if r.g.meta.find(key) == nil {
		return absent
	}
	return r.text(key)
}

// int returns a whole number, or absent.
func (r *ggufMeta) int(key string, absent int) int {
	switch v := r.g.meta.find(key).(type) {
	case nil:
		return absent
	case int64:
		return int(v)
	case uint64:
		if v <= math.MaxInt64 {
			return int(v)
		}
		r.fail(fmt.Errorf("metadata %s is %d", key, v))
	default:
		r.fail(fmt.Errorf("metadata %s is a %T, not one whole number", key, v))
	}
	return absent
}

// float returns a number, or absent. A float32 is read as the shortest decimal that
// rounds to it: 1e-5 is meant where 9.99999974e-06 is stored.
func (r *ggufMeta) float(key string, absent float64) float64 {
	switch v := r.g.meta.find(key).(type) {
	case nil:
		return absent
	case float64:
		return v
	case float32:
		decimal, err := strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64)
		if err != nil {
			r.fail(fmt.Errorf("metadata %s is %v", key, v))
		}
		return decimal
	default:
		r.fail(fmt.Errorf("metadata %s is a %T, not a number", key, v))
	}
	return absent
}
