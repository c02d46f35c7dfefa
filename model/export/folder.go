package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"qlora/internal/atomicfile"
	"qlora/model/weights"
)

// sidecars are the files of a model's folder that belong to it whatever its weights are.
var sidecars = []string{
	"generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
	"added_tokens.json", "chat_template.jinja", "LICENSE",
}

// torchNames are the types of a folder by torch's names.
var torchNames = map[weights.DType]string{weights.BF16: "bfloat16", weights.F16: "float16", weights.F32: "float32"}

// Folder writes a model's folder in the Hugging Face layout: safetensors of at most maxShard bytes each in type d, the
// sum W + Σ w·s·B·A made in float32 and rounded once; config.json; generation and tokenizer files. Those of a folder are
// copied, those of a .gguf file made.
func (s *Source) Folder(ctx context.Context, path string, d weights.DType, maxShard int64) error {
	if torchNames[d] == "" {
		return fmt.Errorf("export: a model's folder is not written in %s: choose bfloat16, float16 or float32", d)
	}
	tensors, err := s.tensors()
	if err != nil {
		return err
	}
	wrote := &tally{show: s.Progress}
	var entries []weights.Entry
	for _, t := range tensors {
		entries = append(entries, s.entry(ctx, wrote, t.Name, t, d, 0))
	}
	if wrote.total, err = bytesOf(entries); err != nil {
		return err
	}
	if err := Room(path, wrote.total); err != nil {
		return err
	}
	files, err := s.sidecars(d)
	if err != nil {
		return err
	}
	return writeFolder(path, files, entries, maxShard)
}

// writeFolder writes weights and the files beside them.
func writeFolder(path string, files map[string][]byte, entries []weights.Entry, maxShard int64) error {
	return atomicfile.WriteDir(path, func(dir string) error {
		for name, text := range files {
			if err := atomicfile.WriteBytes(filepath.Join(dir, name), text); err != nil {
				return err
			}
		}
		return weights.WriteModel(dir, weights.PTMetadata, entries, maxShard)
	})
}

// sidecars are the files beside the weights, by name.
func (s *Source) sidecars(d weights.DType) (map[string][]byte, error) {
	if s.Model.GGUF() != nil {
		return s.madeSidecars(d)
	}
	files := map[string][]byte{}
	for _, name := range sidecars {
		text, err := s.Model.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = text
	}
	config, err := s.Model.ReadFile("config.json")
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	delete(fields, "quantization_config") // what is written is not quantised
	name, _ := json.Marshal(torchNames[d])
	for _, key := range []string{"torch_dtype", "dtype"} {
		if _, ok := fields[key]; ok {
			fields[key] = name
		}
	}
	if fields["dtype"] == nil {
		fields["torch_dtype"] = name // read by every version of transformers
	}
	files["config.json"], err = indented(fields)
	return files, err
}

// madeSidecars makes them of the metadata of a .gguf file.
func (s *Source) madeSidecars(d weights.DType) (map[string][]byte, error) {
	c := s.Model.Config
	if c.ModelType == "llama" && c.AttentionBias {
		return nil, fmt.Errorf("%s: a llama with biases on q, k and v has no form in the Hugging Face layout, whose attention_bias takes in o_proj", s.Model.File)
	}
	config := map[string]any{
		"architectures": c.Architectures, "model_type": c.ModelType, "hidden_size": c.HiddenSize, "intermediate_size": c.IntermediateSize,
		"num_hidden_layers": c.NumHiddenLayers, "num_attention_heads": c.NumAttentionHeads, "num_key_value_heads": c.NumKeyValueHeads,
		"vocab_size": c.VocabSize, "max_position_embeddings": c.MaxPositionEmbeddings, "rms_norm_eps": c.RMSNormEps, "rope_theta": c.RopeTheta,
		"tie_word_embeddings": c.TieWordEmbeddings, "hidden_act": c.HiddenAct, "torch_dtype": torchNames[d], "use_cache": true,
	}
	if c.HeadDim != c.HiddenSize/c.NumAttentionHeads {
		config["head_dim"] = c.HeadDim
	}
	if c.ModelType == "qwen2" {
		config["use_sliding_window"] = false
	}
	generation := map[string]any{}
	named := map[string]any{ // tokens by their role in tokenizer_config.json
		"clean_up_tokenization_spaces": false, "model_max_length": c.MaxPositionEmbeddings, "tokenizer_class": "PreTrainedTokenizerFast",
	}
	for _, role := range []struct {
		name string
		id   int
	}{{"bos", c.BOSTokenID}, {"pad", c.PadTokenID}, {"eos", int(s.Tok.EOS())}} {
		if text, ok := s.Tok.Token(int32(role.id)); ok {
			named[role.name+"_token"], generation[role.name+"_token_id"] = text, role.id
			config[role.name+"_token_id"] = role.id
		}
	}
	if len(c.EOSTokenID) > 0 {
		config["eos_token_id"], generation["eos_token_id"] = c.EOSTokenID, c.EOSTokenID
	}
	if s.Jinja != "" {
		named["chat_template"] = s.Jinja
	}
	tok, err := s.Tok.MarshalJSON()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"tokenizer.json": tok}
	for name, fields := range map[string]any{"config.json": config, "generation_config.json": generation, "tokenizer_config.json": named} {
		if files[name], err = indented(fields); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// indented writes JSON as transformers does: keys sorted, two spaces.
func indented(fields any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(fields)
	return out.Bytes(), err
}

// withField is a JSON object with one field more.
func withField(object []byte, name string, value any) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, err
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	fields[name] = text
	return indented(fields)
}
