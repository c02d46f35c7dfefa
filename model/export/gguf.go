package export

import (
	"context"
	"fmt"
	"strings"

	"qlora/internal/atomicfile"
	"qlora/model/lora"
	"qlora/model/weights"
)

// fileTypes are llama.cpp's numbers of what a file is mostly made of.
var fileTypes = map[weights.DType]uint32{weights.F32: 0, weights.F16: 1, weights.Q4_0: 2, weights.Q8_0: 7, weights.BF16: 32}

// Quants are the types that GGUF writes matrices in, by the names of --quant.
var Quants = map[string]weights.DType{"f16": weights.F16, "bf16": weights.BF16, "q8_0": weights.Q8_0, "q4_0": weights.Q4_0, "f32": weights.F32}

// GGUF writes the model as a .gguf file: matrices in type d, but for the embedding and the head of a q4_0 file, which are
// q8_0; norms and biases in float32; rows of q and k of a llama in the order of rope on neighbours. A matrix whose rows
// are no whole blocks is written in f16.
func (s *Source) GGUF(ctx context.Context, path string, d weights.DType) error {
	if _, ok := fileTypes[d]; !ok {
		return fmt.Errorf("export: no GGUF is written in %s", d)
	}
	tensors, err := s.tensors()
	if err != nil {
		return err
	}
	meta, err := s.ggufMeta(d)
	if err != nil {
		return err
	}
	wrote := &tally{show: s.Progress}
	var entries []weights.Entry
	for _, t := range tensors {
		name, ok := weights.GGUFName(t.Name)
		if !ok {
			return fmt.Errorf("%s has no name in GGUF", t.Name)
		}
		entries = append(entries, s.entry(ctx, wrote, name, t, stored(t, d), s.ropeUnit(t.Name)))
	}
	if wrote.total, err = bytesOf(entries); err != nil {
		return err
	}
	if err := Room(path, wrote.total); err != nil {
		return err
	}
	return weights.WriteGGUF(path, meta, entries)
}

// stored is the type a tensor is written in.
func stored(t *weights.Tensor, d weights.DType) weights.DType {
	if len(t.Shape) < 2 {
		return weights.F32
	}
	if d == weights.Q4_0 && (t.Name == embedName || t.Name == headName) {
		d = weights.Q8_0
	}
	if _, err := weights.EncodedBytes(d, t.RowLen()); err != nil {
		return weights.F16
	}
	return d
}

// ropeUnit is the head size of a tensor whose rows a llama file stores in another order, else 0.
func (s *Source) ropeUnit(name string) int {
	if s.Model.Config.ModelType == "llama" && (strings.Contains(name, ".q_proj.") || strings.Contains(name, ".k_proj.")) {
		return s.Model.Config.HeadDim
	}
	return 0
}

// ggufMeta is the metadata of a model, as llama.cpp's converter writes it.
func (s *Source) ggufMeta(d weights.DType) ([]weights.GGUFValue, error) {
	c := s.Model.Config
	arch := c.ModelType
	meta := []weights.GGUFValue{
		{Key: "general.architecture", Value: arch}, {Key: "general.type", Value: "model"}, {Key: "general.name", Value: s.Name},
		{Key: "general.file_type", Value: fileTypes[d]}, {Key: "general.quantization_version", Value: uint32(2)},
	}
	if id := s.Model.HubID; id != "" && s.Update == nil {
		meta = append(meta, weights.GGUFValue{Key: "general.source.huggingface.repository", Value: id})
	}
	for _, n := range []struct {
		key   string
		value int
	}{
		{"block_count", c.NumHiddenLayers}, {"context_length", c.MaxPositionEmbeddings}, {"embedding_length", c.HiddenSize},
		{"feed_forward_length", c.IntermediateSize}, {"attention.head_count", c.NumAttentionHeads}, {"attention.head_count_kv", c.NumKeyValueHeads},
		{"attention.key_length", c.HeadDim}, {"attention.value_length", c.HeadDim}, {"rope.dimension_count", c.HeadDim}, {"vocab_size", c.VocabSize},
	} {
		meta = append(meta, weights.GGUFValue{Key: arch + "." + n.key, Value: uint32(n.value)})
	}
	meta = append(meta, weights.GGUFValue{Key: arch + ".rope.freq_base", Value: float32(c.RopeTheta)},
		weights.GGUFValue{Key: arch + ".attention.layer_norm_rms_epsilon", Value: float32(c.RMSNormEps)})
	tok, err := s.tokenizerMeta()
	return append(meta, tok...), err
}

// tokenizerMeta is the part of the metadata that is the tokenizer's. There is a token for every row of the embedding.
func (s *Source) tokenizerMeta() ([]weights.GGUFValue, error) {
	v, err := s.Tok.Vocab()
	if err != nil {
		return nil, err
	}
	v = v.PadTo(s.Model.Config.VocabSize)
	meta := []weights.GGUFValue{
		{Key: "tokenizer.ggml.model", Value: "gpt2"}, {Key: "tokenizer.ggml.pre", Value: v.Pre}, {Key: "tokenizer.ggml.tokens", Value: v.Tokens},
		{Key: "tokenizer.ggml.token_type", Value: v.Types}, {Key: "tokenizer.ggml.merges", Value: v.Merges},
	}
	c := s.Model.Config
	eos := int(v.EOS)
	if eos < 0 && len(c.EOSTokenID) > 0 {
		eos = c.EOSTokenID[0]
	}
	for _, role := range []struct {
		key       string
		id, other int
	}{{"bos", int(v.BOS), c.BOSTokenID}, {"eos", eos, -1}, {"padding", int(v.Pad), c.PadTokenID}} {
		id := role.id
		if id < 0 {
			id = role.other
		}
		if id >= 0 {
			meta = append(meta, weights.GGUFValue{Key: "tokenizer.ggml." + role.key + "_token_id", Value: uint32(id)})
		}
	}
	meta = append(meta, weights.GGUFValue{Key: "tokenizer.ggml.add_bos_token", Value: false})
	if s.Jinja != "" {
		meta = append(meta, weights.GGUFValue{Key: "tokenizer.chat_template", Value: s.Jinja})
	}
	return meta, nil
}

// AdapterGGUF writes the update as a llama.cpp adapter in float32. Its reader scales by alpha over the rank of each
// tensor, so with unequal ranks or scales no one alpha is right for all: the scales are put into B, all ranks made one,
// and alpha is that rank.
func (s *Source) AdapterGGUF(path string) error {
	one, err := s.Update.Adapter(s.Name, lora.Base{})
	if err != nil {
		return err
	}
	arch, rank := s.Model.Config.ModelType, one.Set.Config.R
	meta := []weights.GGUFValue{
		{Key: "general.architecture", Value: arch}, {Key: "general.type", Value: "adapter"}, {Key: "general.name", Value: s.Name},
		{Key: "general.file_type", Value: fileTypes[weights.F32]}, {Key: "general.quantization_version", Value: uint32(2)},
		{Key: "adapter.type", Value: "lora"}, {Key: "adapter.lora.alpha", Value: float32(rank)},
	}
	var entries []weights.Entry
	one.Set.Named(func(name string, rows, cols, offset int) {
		module, factor := splitFactor(name)
		ggufName, ok := weights.GGUFName(module + ".weight")
		if !ok {
			err = fmt.Errorf("%s has no name in GGUF", module)
		}
		values := one.Params[offset : offset+rows*cols]
		if unit := s.ropeUnit(module + ".weight"); unit > 0 && factor == "b" {
			values = interleave(values, unit, cols)
		}
		e := weights.F32Entry(ggufName+".lora_"+factor, []int{rows, cols}, values)
		entries = append(entries, e)
	})
	if err != nil {
		return err
	}
	if err := Room(path, 4*int64(len(one.Params))); err != nil {
		return err
	}
	return weights.WriteGGUF(path, meta, entries)
}

// splitFactor takes PEFT's name of a factor apart: base_model.model.X.lora_A.weight is X and a.
func splitFactor(name string) (module, factor string) {
	name = strings.TrimPrefix(name, "base_model.model.")
	if module, ok := strings.CutSuffix(name, ".lora_A.weight"); ok {
		return module, "a"
	}
	return strings.TrimSuffix(name, ".lora_B.weight"), "b"
}

// Adapter writes the update as one PEFT adapter of one rank and a scale of 1, which every server reads alike.
func (s *Source) Adapter(path string, base lora.Base) error {
	one, err := s.Update.Adapter(s.Name, base)
	if err != nil {
		return err
	}
	if err := Room(path, 4*int64(len(one.Params))); err != nil {
		return err
	}
	return atomicfile.WriteDir(path, func(dir string) error { return one.Set.Save(dir, one.Params, base) })
}
