package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"qlora/internal/strictjson"
)

// maxConfig bounds the size of config.json, generation_config.json.
const maxConfig = 4 << 20

// A Config is the shape of a model, under the names of Hugging Face's config.json.
type Config struct {
	Architectures         strictjson.List[string] `json:"architectures"`
	ModelType             string                  `json:"model_type"`          // "qwen2" or "llama"
	HiddenSize            int                     `json:"hidden_size"`         // C
	IntermediateSize      int                     `json:"intermediate_size"`   // F
	NumHiddenLayers       int                     `json:"num_hidden_layers"`   // L
	NumAttentionHeads     int                     `json:"num_attention_heads"` // H
	NumKeyValueHeads      int                     `json:"num_key_value_heads"` // Hk, divides H
	HeadDim               int                     `json:"head_dim"`            // D, even
	VocabSize             int                     `json:"vocab_size"`          // V, rows of the embedding
	MaxPositionEmbeddings int                     `json:"max_position_embeddings"`
	RMSNormEps            float64                 `json:"rms_norm_eps"`
	RopeTheta             float64                 `json:"rope_theta"`
	TieWordEmbeddings     bool                    `json:"tie_word_embeddings"` // the head is the embedding
	HiddenAct             string                  `json:"hidden_act"`          // "silu"
	AttentionBias         bool                    `json:"-"`                   // q, k and v have a bias
	DType                 string                  `json:"-"`                   // of the published weights, "bfloat16"; may be empty
	BOSTokenID            int                     `json:"bos_token_id"`        // -1: none
	EOSTokenID            IDs                     `json:"eos_token_id"`
	PadTokenID            int                     `json:"pad_token_id"` // -1: none
}

// configFile is config.json: a Config and what it is derived from or refused for.
type configFile struct {
	Config
	TorchDType       string          `json:"torch_dtype"` // before transformers 5
	DType            string          `json:"dtype"`
	RopeParameters   *ropeParameters `json:"rope_parameters"` // since transformers 5
	RopeScaling      *ropeParameters `json:"rope_scaling"`    // before
	AttentionBias    *bool           `json:"attention_bias"`
	MLPBias          bool            `json:"mlp_bias"`
	UseSlidingWindow bool            `json:"use_sliding_window"`
	Quantization     json.RawMessage `json:"quantization_config"`
}

type ropeParameters struct {
	Theta   *float64 `json:"rope_theta"`
	Type    string   `json:"rope_type"`
	OldType string   `json:"type"`
}

// ParseConfig reads a config.json, as Qwen2.5 is published or as transformers 5
// writes it, and validates it. name is for error messages.
func ParseConfig(data []byte, name string) (Config, error) {
	f := configFile{Config: Config{BOSTokenID: -1, PadTokenID: -1, RMSNormEps: 1e-6, RopeTheta: 1e4, HiddenAct: "silu"}}
	if err := strictjson.Unmarshal(data, maxConfig, &f); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	if err := f.resolve(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	if err := f.Config.validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return f.Config, nil
}

// resolve fills the fields of Config that have several spellings, and refuses what
// is not implemented.
func (f *configFile) resolve() error {
	c := &f.Config
	c.DType = f.DType
	if c.DType == "" {
		c.DType = f.TorchDType
	}
	for _, rope := range []*ropeParameters{f.RopeParameters, f.RopeScaling} {
		if rope == nil {
			continue
		}
		if rope.Theta != nil {
			c.RopeTheta = *rope.Theta
		}
		for _, kind := range []string{rope.Type, rope.OldType} {
			if kind != "" && kind != "default" {
				return fmt.Errorf("rope type %q is not supported, only the default", kind)
			}
		}
	}
	c.AttentionBias = c.ModelType == "qwen2"
	if f.AttentionBias != nil {
		c.AttentionBias = *f.AttentionBias
	}
	switch {
	case f.UseSlidingWindow:
		return errors.New("use_sliding_window is true: sliding window attention is not supported")
	case f.MLPBias:
		return errors.New("mlp_bias is true: a bias in the MLP is not supported")
	case c.ModelType == "llama" && c.AttentionBias:
		return errors.New("attention_bias is true, which in a llama model includes o_proj: that is not supported")
	}
	if _, err := checkQuantization(f.Quantization); err != nil {
		return err
	}
	if c.NumKeyValueHeads == 0 && c.ModelType == "llama" {
		c.NumKeyValueHeads = c.NumAttentionHeads
	}
	if c.HeadDim == 0 && c.NumAttentionHeads > 0 {
		if c.HiddenSize%c.NumAttentionHeads != 0 {
			return fmt.Errorf("hidden_size %d is not a multiple of num_attention_heads %d, and head_dim is not given", c.HiddenSize, c.NumAttentionHeads)
		}
		c.HeadDim = c.HiddenSize / c.NumAttentionHeads
	}
	return nil
}

// validate checks that the shape is one that can exist: the products of its
// numbers stay far from overflow.
func (c *Config) validate() error {
	if c.ModelType != "qwen2" && c.ModelType != "llama" {
		return fmt.Errorf("model_type %q is not supported, only qwen2 and llama", c.ModelType)
	}
	for _, a := range c.Architectures {
		if !slices.Contains([]string{"Qwen2ForCausalLM", "LlamaForCausalLM"}, a) {
			return fmt.Errorf("architecture %q is not supported, only Qwen2ForCausalLM and LlamaForCausalLM", a)
		}
	}
	for _, n := range []struct {
		name     string
		val, max int
	}{
		{"hidden_size", c.HiddenSize, 1 << 17},
		{"intermediate_size", c.IntermediateSize, 1 << 19},
		{"num_hidden_layers", c.NumHiddenLayers, 1 << 10},
		{"num_attention_heads", c.NumAttentionHeads, 1 << 10},
		{"num_key_value_heads", c.NumKeyValueHeads, 1 << 10},
		{"head_dim", c.HeadDim, 1 << 10},
		{"vocab_size", c.VocabSize, 1 << 22},
		{"max_position_embeddings", c.MaxPositionEmbeddings, 1 << 27},
	} {
		if n.val < 1 || n.val > n.max {
			return fmt.Errorf("%s is missing or %d: it must be from 1 to %d", n.name, n.val, n.max)
		}
	}
	switch {
	case c.NumAttentionHeads%c.NumKeyValueHeads != 0:
		return fmt.Errorf("num_attention_heads %d is not a multiple of num_key_value_heads %d", c.NumAttentionHeads, c.NumKeyValueHeads)
	case c.HeadDim%2 != 0:
		return fmt.Errorf("head_dim %d is odd: rope turns pairs", c.HeadDim)
	case !(c.RMSNormEps > 0 && c.RMSNormEps < 1):
		return fmt.Errorf("rms_norm_eps %v is not between 0 and 1", c.RMSNormEps)
	case !(c.RopeTheta > 0) || math.IsInf(c.RopeTheta, 0):
		return fmt.Errorf("rope_theta %v is not a positive number", c.RopeTheta)
	case c.HiddenAct != "silu":
		return fmt.Errorf("hidden_act %q is not supported, only silu", c.HiddenAct)
	}
	ids := append(IDs{c.BOSTokenID, c.PadTokenID}, c.EOSTokenID...)
	for _, id := range ids {
		if id < -1 || id >= c.VocabSize {
			return fmt.Errorf("token id %d is outside the vocabulary of %d", id, c.VocabSize)
		}
	}
	return nil
}

// IDs is a list of token ids, which JSON may give as one number.
type IDs []int

// UnmarshalJSON takes null, a number or a list of numbers.
func (ids *IDs) UnmarshalJSON(data []byte) error {
	list := data
	if string(data) != "null" && data[0] != '[' {
		list = slices.Concat([]byte{'['}, data, []byte{']'})
	}
	if (*strictjson.List[int])(ids).UnmarshalJSON(list) != nil {
		return fmt.Errorf("%.40s is neither a token id nor a list of at most %d", data, strictjson.MaxItems)
	}
	return nil
}

// A GenerationConfig holds the sampling a model's authors advise, under the names
// of generation_config.json. What the file leaves out has transformers' default.
type GenerationConfig struct {
	DoSample          bool    `json:"do_sample"`          // false
	Temperature       float64 `json:"temperature"`        // 1
	TopP              float64 `json:"top_p"`              // 1
	TopK              int     `json:"top_k"`              // 50
	RepetitionPenalty float64 `json:"repetition_penalty"` // 1
	EOSTokenID        IDs     `json:"eos_token_id"`
	PadTokenID        int     `json:"pad_token_id"` // -1: none
}

// ParseGenerationConfig reads a generation_config.json and validates it. name is
// for error messages.
func ParseGenerationConfig(data []byte, name string) (GenerationConfig, error) {
	g := GenerationConfig{Temperature: 1, TopP: 1, TopK: 50, RepetitionPenalty: 1, PadTokenID: -1}
	if err := strictjson.Unmarshal(data, maxConfig, &g); err != nil {
		return GenerationConfig{}, fmt.Errorf("%s: %w", name, err)
	}
	bad := func(field string, value any, want string) (GenerationConfig, error) {
		return GenerationConfig{}, fmt.Errorf("%s: %s %v is not %s", name, field, value, want)
	}
	switch {
	case !(g.Temperature >= 0):
		return bad("temperature", g.Temperature, "0 or more")
	case !(g.TopP > 0 && g.TopP <= 1):
		return bad("top_p", g.TopP, "in (0, 1]")
	case g.TopK < 0:
		return bad("top_k", g.TopK, "0 or more")
	case !(g.RepetitionPenalty > 0):
		return bad("repetition_penalty", g.RepetitionPenalty, "positive")
	}
	return g, nil
}
