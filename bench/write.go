package bench

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"qlora/internal/atomicfile"
	"qlora/model/weights"
)

// shardBytes is the size of a weights file, as Hugging Face cuts them.
const shardBytes = 5e9

// WriteModel writes random weights as a Hugging Face folder: what other trainers read, and what a job loads as it would
// load a real model. tokenizer are files to lie beside, by name.
func WriteModel(dir string, src *weights.Model, tokenizer map[string][]byte, progress func(done, total int64)) error {
	if !src.Random {
		return errors.New("bench: only random weights are written")
	}
	var entries []weights.Entry
	total, done := int64(0), int64(0)
	for _, name := range src.Names() {
		t, err := src.Tensor(name)
		if err != nil {
			return err
		}
		total += 2 * int64(t.Rows()) * int64(t.RowLen())
		entries = append(entries, weights.Entry{Name: name, DType: t.DType, Shape: t.Shape, Write: func(w io.Writer) error {
			return writeRows(w, t, func(n int) {
				if done += int64(n); progress != nil {
					progress(done, total)
				}
			})
		}})
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := weights.WriteModel(dir, weights.PTMetadata, entries, shardBytes); err != nil {
		return err
	}
	config, err := json.MarshalIndent(configOf(src.Config), "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"config.json": append(config, '\n')}
	maps.Copy(files, tokenizer)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := atomicfile.WriteBytes(filepath.Join(dir, name), files[name]); err != nil {
			return err
		}
	}
	return nil
}

// chunkBytes of a tensor are made together.
const chunkBytes = 32 << 20

// writeRows writes a tensor, whose numbers all processors make, in order.
func writeRows(w io.Writer, t *weights.Tensor, wrote func(n int)) error {
	width := 2 * t.RowLen()
	rows := max(chunkBytes/width, 1)
	buffer := make([]byte, rows*width)
	for row := 0; row < t.Rows(); row += rows {
		n := min(rows, t.Rows()-row)
		part := buffer[:n*width]
		pieces := min(runtime.GOMAXPROCS(0), n)
		errs := make([]error, pieces)
		var all sync.WaitGroup
		for i := range pieces {
			lo, hi := i*n/pieces, (i+1)*n/pieces
			all.Go(func() { errs[i] = t.ReadRowsRaw(part[lo*width:hi*width], row+lo, hi-lo) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		wrote(len(part))
	}
	return nil
}

// configOf is config.json as transformers reads it.
func configOf(c weights.Config) map[string]any {
	m := map[string]any{"architectures": c.Architectures, "model_type": c.ModelType, "hidden_size": c.HiddenSize, "intermediate_size": c.IntermediateSize,
		"num_hidden_layers": c.NumHiddenLayers, "num_attention_heads": c.NumAttentionHeads, "num_key_value_heads": c.NumKeyValueHeads,
		"vocab_size": c.VocabSize, "max_position_embeddings": c.MaxPositionEmbeddings, "rms_norm_eps": c.RMSNormEps, "rope_theta": c.RopeTheta,
		"tie_word_embeddings": c.TieWordEmbeddings, "hidden_act": c.HiddenAct, "torch_dtype": c.DType, "use_cache": true, "use_sliding_window": false,
		"initializer_range": 0.02, "attention_dropout": 0.0, "eos_token_id": c.EOSTokenID}
	for name, id := range map[string]int{"bos_token_id": c.BOSTokenID, "pad_token_id": c.PadTokenID} {
		if id >= 0 {
			m[name] = id
		}
	}
	return m
}
