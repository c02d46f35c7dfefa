package weights

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	want := Config{Architectures: []string{"Qwen2ForCausalLM"}, ModelType: "qwen2", HiddenSize: 192, IntermediateSize: 352,
		NumHiddenLayers: 3, NumAttentionHeads: 6, NumKeyValueHeads: 2, HeadDim: 32, VocabSize: 1000, MaxPositionEmbeddings: 2048,
		RMSNormEps: 1e-6, RopeTheta: 1e6, HiddenAct: "silu", AttentionBias: true, DType: "float32", BOSTokenID: -1, PadTokenID: -1}
	// transformers 5 writes the one, the publisher of Qwen2.5 the other.
	for _, name := range []string{"mini_untied", "mini_untied_sharded"} {
		path := filepath.Join(goldenDir(t, "models/"+name), "config.json")
		got, err := ParseConfig(readFile(t, path), path)
		if err != nil {
			t.Fatal(err)
		}
		if os.Getenv("QLORA_GOLDEN") == "" {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

// qwenConfig is a Qwen2.5 config.json, with other parts in place.
func qwenConfig(oldnew ...string) string {
	return strings.NewReplacer(oldnew...).Replace(`{"architectures":["Qwen2ForCausalLM"],"bos_token_id":151643,"eos_token_id":151645,
"hidden_act":"silu","hidden_size":896,"intermediate_size":4864,"max_position_embeddings":32768,"max_window_layers":21,
"model_type":"qwen2","num_attention_heads":14,"num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,
"rope_theta":1000000.0,"sliding_window":32768,"tie_word_embeddings":true,"torch_dtype":"bfloat16",
"use_sliding_window":false,"vocab_size":151936}`)
}

func TestParseConfigVariants(t *testing.T) {
	cases := []struct {
		name, doc string
		check     func(Config) bool
	}{
		{"published", qwenConfig(), func(c Config) bool {
			return c.HeadDim == 64 && c.EOSTokenID[0] == 151645 && c.BOSTokenID == 151643 && c.DType == "bfloat16" && c.AttentionBias
		}},
		{"eos list", qwenConfig("151645", "[151645,151643]"), func(c Config) bool { return cmp.Equal(c.EOSTokenID, IDs{151645, 151643}) }},
		{"eos null", qwenConfig("151645", "null"), func(c Config) bool { return c.EOSTokenID == nil }},
		{"head_dim", qwenConfig(`"hidden_size":896`, `"hidden_size":897,"head_dim":128`), func(c Config) bool { return c.HeadDim == 128 }},
		{"no bias", qwenConfig(`"hidden_act"`, `"attention_bias":false,"hidden_act"`), func(c Config) bool { return !c.AttentionBias }},
		{"llama", qwenConfig("Qwen2For", "LlamaFor", `"qwen2"`, `"llama"`, `"num_key_value_heads":2,`, ""), func(c Config) bool {
			return c.NumKeyValueHeads == 14 && !c.AttentionBias
		}},
		{"rope parameters", qwenConfig(`"rope_theta":1000000.0`, `"rope_parameters":{"rope_theta":5e5,"rope_type":"default"}`), func(c Config) bool { return c.RopeTheta == 5e5 }},
		{"no rope_theta", qwenConfig(`"rope_theta":1000000.0,`, ""), func(c Config) bool { return c.RopeTheta == 1e4 }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got, err := ParseConfig([]byte(c.doc), "config.json"); err != nil || !c.check(got) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestParseConfigRefuses(t *testing.T) {
	cases := []struct{ name, doc, msg string }{
		{"not JSON", "{", "byte 1: unexpected end"},
		{"null", "null", "the document is null"},
		{"empty", "{}", `model_type "" is not supported`},
		{"other model", qwenConfig(`"model_type":"qwen2"`, `"model_type":"qwen3"`), `model_type "qwen3" is not supported`},
		{"other architecture", qwenConfig("Qwen2ForCausalLM", "Qwen2ForSequenceClassification"), "Qwen2ForSequenceClassification"},
		{"hidden_size 0", qwenConfig(`"hidden_size":896`, `"hidden_size":0`), "hidden_size is missing or 0"},
		{"hidden_size missing", qwenConfig(`"hidden_size":896,`, ""), "hidden_size is missing or 0"},
		{"hidden_size negative", qwenConfig(`"hidden_size":896`, `"hidden_size":-896`), "hidden_size is missing or -896"},
		{"hidden_size text", qwenConfig(`"hidden_size":896`, `"hidden_size":"896"`), ": hidden_size: a JSON string where a int belongs"},
		{"hidden_size in capitals", qwenConfig(`"hidden_size"`, `"HIDDEN_SIZE"`), `"HIDDEN_SIZE" must be spelled "hidden_size"`},
		{"hidden_size twice", qwenConfig(`"hidden_act"`, `"hidden_size":1,"hidden_act"`), `"hidden_size" occurs twice`},
		{"layers 10^9", qwenConfig(`"num_hidden_layers":24`, `"num_hidden_layers":1000000000`), "num_hidden_layers is missing or 1000000000"},
		{"layers 10^30", qwenConfig(`"num_hidden_layers":24`, `"num_hidden_layers":1000000000000000000000000000000`), "num_hidden_layers: a JSON number 1"},
		{"kv heads do not divide", qwenConfig(`"num_key_value_heads":2`, `"num_key_value_heads":4`), "14 is not a multiple of num_key_value_heads 4"},
		{"kv heads missing", qwenConfig(`"num_key_value_heads":2,`, ""), "num_key_value_heads is missing"},
		{"heads do not divide", qwenConfig(`"hidden_size":896`, `"hidden_size":900`), "900 is not a multiple of num_attention_heads 14"},
		{"heads 0", qwenConfig(`"num_attention_heads":14`, `"num_attention_heads":0`), "num_attention_heads is missing or 0"},
		{"odd head", qwenConfig(`"hidden_size":896`, `"hidden_size":910`), "head_dim 65 is odd"},
		{"theta NaN", qwenConfig("1000000.0", "NaN"), "invalid character 'N'"},
		{"theta 0", qwenConfig("1000000.0", "0"), "rope_theta 0 is not a positive"},
		{"theta negative", qwenConfig("1000000.0", "-1"), "rope_theta -1"},
		{"theta 1e999", qwenConfig("1000000.0", "1e999"), "rope_theta: a JSON number 1e999"},
		{"eps 0", qwenConfig("1e-06", "0"), "rms_norm_eps 0 is not"},
		{"eps 1", qwenConfig("1e-06", "1"), "rms_norm_eps 1 is not"},
		{"gelu", qwenConfig("silu", "gelu"), `hidden_act "gelu"`},
		{"yarn", qwenConfig(`"hidden_act"`, `"rope_scaling":{"type":"yarn","factor":4.0},"hidden_act"`), `rope type "yarn"`},
		{"llama3 rope", qwenConfig(`"hidden_act"`, `"rope_parameters":{"rope_type":"llama3"},"hidden_act"`), `rope type "llama3"`},
		{"sliding window", qwenConfig(`"use_sliding_window":false`, `"use_sliding_window":true`), "use_sliding_window"},
		{"quantised", qwenConfig(`"hidden_act"`, `"quantization_config":{"bits":4},"hidden_act"`), "only bitsandbytes in 4 bits of nf4"},
		{"llama with bias", qwenConfig("Qwen2For", "LlamaFor", `"qwen2"`, `"llama"`, `"hidden_act"`, `"attention_bias":true,"hidden_act"`), "attention_bias is true"},
		{"mlp bias", qwenConfig(`"hidden_act"`, `"mlp_bias":true,"hidden_act"`), "mlp_bias is true"},
		{"eos outside", qwenConfig("151645", "151936"), "token id 151936 is outside"},
		{"eos text", qwenConfig("151645", `"</s>"`), `"</s>" is neither a token id`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseConfig([]byte(c.doc), "dir/config.json")
			if err == nil || !strings.Contains(err.Error(), c.msg) || !strings.HasPrefix(err.Error(), "dir/config.json: ") {
				t.Errorf("got %v, want %q", err, c.msg)
			}
		})
	}
}

func TestParseGenerationConfig(t *testing.T) {
	const instruct = `{"bos_token_id":151643,"pad_token_id":151643,"do_sample":true,"eos_token_id":[151645,151643],
		"repetition_penalty":1.1,"temperature":0.7,"top_p":0.8,"top_k":20,"transformers_version":"4.37.0"}`
	cases := []struct {
		doc  string
		want GenerationConfig
	}{
		{instruct, GenerationConfig{true, 0.7, 0.8, 20, 1.1, IDs{151645, 151643}, 151643}},
		{`{"eos_token_id":2,"pad_token_id":null}`, GenerationConfig{false, 1, 1, 50, 1, IDs{2}, -1}},
	}
	for _, c := range cases {
		got, err := ParseGenerationConfig([]byte(c.doc), "g")
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Error(diff)
		}
	}
	for doc, msg := range map[string]string{
		`{"temperature":-1}`: "temperature -1", `{"top_p":0}`: "top_p 0", `{"top_p":1.5}`: "top_p 1.5", `{"top_k":-1}`: "top_k -1",
		`{"repetition_penalty":0}`: "repetition_penalty 0", `{"top_k":1.5}`: "top_k", `[]`: "array",
	} {
		if _, err := ParseGenerationConfig([]byte(doc), "g"); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%s: got %v", doc, err)
		}
	}
}
