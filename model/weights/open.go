// Package weights reads and writes model files: safetensors (single and sharded),
// GGUF, config.json, and finds models in the caches of the Hugging Face and
// ModelScope hubs. Model files are treated as hostile: whatever a file declares is
// checked against its size before it is believed, no name in it leads outside the
// model's folder, and nothing in it is run. Files are read with ReadAt, never
// mapped: a file that shrinks while it is open gives an error, not a signal.
package weights

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qlora/internal/strictjson"
)

// maxSidecar bounds what ReadFile reads; a tokenizer.json of 150k tokens has 11 MB.
const maxSidecar = 256 << 20

// A Model is an opened model: its shape and its tensors under their Hugging Face
// names. Tensors are checked against the shape when they are asked for, by the
// code that knows what it wants. All methods but Close may be called from many
// goroutines.
type Model struct {
	Config     Config
	Generation *GenerationConfig // nil when the model has none
	Dir        string            // the folder the model lies in
	File       string            // the .gguf file; empty for a folder
	HubID      string            // org/name on the hub; empty when unknown
	Random     bool              // its weights are random numbers: NewRandom made it
	Quantized  bool              // bitsandbytes has quantised some of its weights: their type is NF4

	tensors map[string]*Tensor
	folder  *Folder // nil for a .gguf file
	gguf    *GGUF   // nil for a folder
	closers []io.Closer
}

// Open opens the model that spec names: a folder in the Hugging Face layout, a
// .gguf file, or a hub id (org/name) that lies in the local cache of Hugging Face
// or ModelScope. Nothing is downloaded. The error of a spec that is none of these
// says where it was looked for and how to get the model.
func Open(spec string) (*Model, error) {
	info, err := os.Stat(spec)
	switch {
	case err == nil && info.IsDir():
		return openFolder(spec, "")
	case err == nil && strings.EqualFold(filepath.Ext(spec), ".gguf"):
		return openGGUFModel(spec)
	case err == nil:
		return nil, fmt.Errorf("%s: neither a folder nor a .gguf file; a model is one of them, or a hub id (org/name)", spec)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	dir, err := findInCaches(spec)
	if err != nil {
		return nil, err
	}
	return openFolder(dir, spec)
}

// openFolder opens a model in the Hugging Face layout.
func openFolder(dir, hubID string) (*Model, error) {
	folder, err := OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	m := &Model{Dir: dir, HubID: cmp.Or(hubID, folder.hubID), folder: folder, closers: []io.Closer{folder}}
	if err := m.load(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Model) load() error {
	if !m.folder.has("config.json") {
		return m.folder.notAModel()
	}
	data, err := m.folder.ReadFile("config.json", maxConfig)
	if err != nil {
		return err
	}
	if m.Config, err = ParseConfig(data, m.folder.Path("config.json")); err != nil {
		return err
	}
	if m.folder.has("generation_config.json") {
		data, err := m.folder.ReadFile("generation_config.json", maxConfig)
		if err != nil {
			return err
		}
		g, err := ParseGenerationConfig(data, m.folder.Path("generation_config.json"))
		if err != nil {
			return err
		}
		m.Generation = &g
	}
	switch {
	case m.folder.has("model.safetensors"):
		f, err := m.openShard("model.safetensors")
		if err != nil {
			return err
		}
		m.tensors = f.tensors.byName()
	case m.folder.has(indexName):
		if err := m.loadShards(); err != nil {
			return err
		}
	default:
		return m.folder.notAModel()
	}
	m.Quantized, err = joinQuantized(m.tensors)
	return err
}

func (m *Model) openShard(name string) (*File, error) {
	file, err := m.folder.OpenSafetensors(name)
	if err != nil {
		return nil, err
	}
	m.closers = append(m.closers, file)
	return file, nil
}

// indexName is the file that says which shard holds which tensor.
const indexName = "model.safetensors.index.json"

// A placed is a line of indexName: a tensor and the shard that holds it.
type placed struct{ tensor, shard string }

// maxIndex bounds the size of indexName; a 72B model has 0.1 MB.
const maxIndex = 64 << 20

// parseIndex reads the weight_map of an index, and sorts it by tensor.
func parseIndex(data []byte, name string) ([]placed, error) {
	var all []placed
	top, err := strictjson.Parse(data, maxIndex)
	if err == nil {
		err = top.Each(func(key []byte, v strictjson.Value) (err error) {
			if string(key) == "weight_map" {
				all, err = parseWeightMap(v)
			}
			return err
		})
	}
	if err == nil && len(all) == 0 {
		err = errors.New("weight_map is missing or empty")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

// minPlaced is the length of the shortest line of a weight_map, with its comma.
const minPlaced = len(`"":".safetensors",`)

func parseWeightMap(v strictjson.Value) ([]placed, error) {
	o, err := v.Object()
	if err != nil {
		return nil, err
	}
	all := make([]placed, 0, min(o.Len(), len(v.Raw)/minPlaced+1)) // where there are more, some are no such lines
	shard := ""                                                    // the last one: tensors of one stand together
	err = o.Each(func(key []byte, v strictjson.Value) error {
		if v.Raw[0] != '"' {
			return v.Fault("weight_map of %q: %.20s is not a file's name", key, v.Raw)
		}
		if file := v.Raw[1 : len(v.Raw)-1]; string(file) != shard {
			shard = string(file)
		}
		if err := checkBaseName(shard); err != nil {
			return v.Fault("weight_map of %q: %s", key, err)
		}
		if !strings.HasSuffix(shard, ".safetensors") {
			return v.Fault("weight_map of %q: %q is not a .safetensors file", key, shard)
		}
		all = append(all, placed{string(key), shard})
		return nil
	})
	slices.SortFunc(all, func(a, b placed) int { return strings.Compare(a.tensor, b.tensor) })
	return all, err
}

// loadShards opens the shards of the index, and holds that it and they list the
// same tensors.
func (m *Model) loadShards() error {
	data, err := m.folder.ReadFile(indexName, maxIndex)
	if err != nil {
		return err
	}
	index, err := parseIndex(data, m.folder.Path(indexName))
	if err != nil {
		return err
	}
	shards := make([]string, len(index))
	for i, p := range index {
		shards[i] = p.shard
	}
	slices.Sort(shards)
	m.tensors = make(map[string]*Tensor, len(index))
	for _, shard := range slices.Compact(shards) {
		f, err := m.openShard(shard)
		if err != nil {
			return err
		}
		for _, t := range f.tensors {
			i, ok := slices.BinarySearchFunc(index, t.Name, func(p placed, name string) int { return strings.Compare(p.tensor, name) })
			if !ok || index[i].shard != shard {
				return fmt.Errorf("%s: holds tensor %q, which %s does not place there", f.name, t.Name, indexName)
			}
			m.tensors[t.Name] = t
		}
	}
	for _, p := range index {
		if m.tensors[p.tensor] == nil {
			return fmt.Errorf("%s: tensor %q is not in %s, where weight_map places it", m.folder.Path(indexName), p.tensor, p.shard)
		}
	}
	return nil
}

// Names returns the names of the tensors, sorted.
func (m *Model) Names() []string { return slices.Sorted(maps.Keys(m.tensors)) }

// Tensor returns the tensor with a Hugging Face name, such as
// model.layers.0.self_attn.q_proj.weight.
func (m *Model) Tensor(name string) (*Tensor, error) {
	if t, ok := m.tensors[name]; ok {
		return t, nil
	}
	where := m.File
	if where == "" {
		where = m.Dir
	}
	return nil, fmt.Errorf("%s: the model has no tensor %q", where, name)
}

// GGUF returns the .gguf file the model was opened from, with its tokenizer; nil
// for a folder.
func (m *Model) GGUF() *GGUF { return m.gguf }

// ReadFile reads a file that lies beside the weights, such as tokenizer.json.
// When there is none the error is fs.ErrNotExist.
func (m *Model) ReadFile(name string) ([]byte, error) {
	if m.Random {
		return nil, fmt.Errorf("%s: random weights have no %s beside them: %w", m.HubID, name, os.ErrNotExist)
	}
	if m.folder == nil {
		return nil, fmt.Errorf("%s: a .gguf file has no %s beside it: %w", m.File, name, os.ErrNotExist)
	}
	return m.folder.ReadFile(name, maxSidecar)
}

// Close closes the files of the model; its tensors cannot be read afterwards.
func (m *Model) Close() error {
	var errs []error
	for _, c := range m.closers {
		errs = append(errs, c.Close())
	}
	m.closers = nil
	return errors.Join(errs...)
}

// checkBaseName refuses every name that is not a plain file name of its folder.
func checkBaseName(name string) error {
	if !filepath.IsLocal(name) || strings.ContainsAny(name, "/\\:\x00") || name == "." {
		return fmt.Errorf("%q is not a plain file name", name)
	}
	return nil
}
