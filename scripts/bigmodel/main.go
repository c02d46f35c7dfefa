// Bigmodel writes the folder of a model as large as a real one, in the Hugging Face layout: random weights of a Qwen2.5
// shape in bfloat16, in safetensors shards, with the tokenizer of testdata/. How fast a model is read is measured with it.
//
// Usage: bigmodel -shape qwen2.5-7b -tokenizer testdata/tokenizer/qwen2.5 -o DIR
package main

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"qlora/model/weights"
)

// shardBytes is about what shards on the hub have; pieceBytes is written at a time.
const (
	shardBytes = 4 << 30
	pieceBytes = 8 << 20
)

func main() {
	shape := flag.String("shape", "qwen2.5-7b", strings.Join(weights.Presets(), ", "))
	tokenizer := flag.String("tokenizer", "testdata/tokenizer/qwen2.5", "folder of tokenizer.json.gz and tokenizer_config.json")
	out := flag.String("o", "", "folder to make")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*shape, *tokenizer, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bigmodel:", err)
		os.Exit(1)
	}
}

func run(shape, tokenizer, out string) error {
	m, err := weights.NewRandom(shape, 1)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o777); err != nil {
		return err
	}
	config, err := json.MarshalIndent(configOf(m.Config), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "config.json"), config, 0o666); err != nil {
		return err
	}
	if err := copyTokenizer(tokenizer, out); err != nil {
		return err
	}
	return writeWeights(m, out)
}

// configOf is config.json of a shape.
func configOf(c weights.Config) map[string]any {
	return map[string]any{"architectures": c.Architectures, "model_type": c.ModelType, "hidden_size": c.HiddenSize, "intermediate_size": c.IntermediateSize,
		"num_hidden_layers": c.NumHiddenLayers, "num_attention_heads": c.NumAttentionHeads, "num_key_value_heads": c.NumKeyValueHeads,
		"vocab_size": c.VocabSize, "max_position_embeddings": c.MaxPositionEmbeddings, "rms_norm_eps": c.RMSNormEps, "rope_theta": c.RopeTheta,
		"tie_word_embeddings": c.TieWordEmbeddings, "hidden_act": c.HiddenAct, "torch_dtype": c.DType, "eos_token_id": c.EOSTokenID, "bos_token_id": c.PadTokenID}
}

func copyTokenizer(from, to string) error {
	packed, err := os.Open(filepath.Join(from, "tokenizer.json.gz"))
	if err != nil {
		return err
	}
	defer packed.Close()
	plain, err := gzip.NewReader(packed)
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(to, "tokenizer.json"))
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, plain); err != nil {
		return cmp.Or(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(from, "tokenizer_config.json"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "tokenizer_config.json"), text, 0o666)
}

type entry struct {
	DType   string   `json:"dtype"`
	Shape   []int    `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// writeWeights fills shards in order of the tensors' names, and writes their index.
func writeWeights(m *weights.Model, out string) error {
	var shards [][]*weights.Tensor
	room := int64(0)
	for _, name := range m.Names() {
		t, err := m.Tensor(name)
		if err != nil {
			return err
		}
		if n := bytesOf(t); n > room || len(shards) == 0 {
			shards, room = append(shards, nil), shardBytes
		}
		shards[len(shards)-1] = append(shards[len(shards)-1], t)
		room -= bytesOf(t)
	}
	where, total := map[string]string{}, int64(0)
	for i, shard := range shards {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(shards))
		if err := writeShard(filepath.Join(out, name), shard); err != nil {
			return err
		}
		for _, t := range shard {
			where[t.Name], total = name, total+bytesOf(t)
		}
	}
	index, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": total}, "weight_map": where})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "model.safetensors.index.json"), index, 0o666)
}

func bytesOf(t *weights.Tensor) int64 { return 2 * int64(t.Rows()) * int64(t.RowLen()) }

func writeShard(path string, tensors []*weights.Tensor) (err error) {
	header, at := map[string]entry{}, int64(0)
	for _, t := range tensors {
		header[t.Name] = entry{"BF16", t.Shape, [2]int64{at, at + bytesOf(t)}}
		at += bytesOf(t)
	}
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, file.Close()) }()
	w := bufio.NewWriterSize(file, pieceBytes)
	if err := binary.Write(w, binary.LittleEndian, int64(len(text))); err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	for _, t := range tensors {
		if err := writeTensor(w, t); err != nil {
			return fmt.Errorf("%s: %s: %w", path, t.Name, err)
		}
	}
	return w.Flush()
}

// writeTensor makes pieces of rows side by side, and writes them in order.
func writeTensor(w io.Writer, t *weights.Tensor) error {
	rows := max(1, pieceBytes/(2*t.RowLen()))
	pieces := make([][]byte, runtime.GOMAXPROCS(0))
	errs := make([]error, len(pieces))
	for first := 0; first < t.Rows(); first += rows * len(pieces) {
		var wait sync.WaitGroup
		for i := range pieces {
			row := min(first+i*rows, t.Rows())
			n := min(rows, t.Rows()-row)
			pieces[i] = make([]byte, 2*n*t.RowLen())
			if n > 0 {
				wait.Go(func() { errs[i] = t.ReadRowsRaw(pieces[i], row, n) })
			}
		}
		wait.Wait()
		for i, piece := range pieces {
			if errs[i] != nil {
				return errs[i]
			}
			if _, err := w.Write(piece); err != nil {
				return err
			}
		}
	}
	return nil
}
