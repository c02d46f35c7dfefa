// Package export writes what was trained in the forms that other programs read: a merged model or an adapter as a
// folder of the Hugging Face layout, as GGUF, with an Ollama Modelfile; and says which servers take an adapter.
//
// Nothing is replaced: a target that exists is an error. What is written appears whole or not at all.
package export

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"qlora/internal/atomicfile"
	"qlora/internal/nf4"
	"qlora/model/data"
	"qlora/model/lora"
	"qlora/model/tokenizer"
	"qlora/model/weights"
)

// Source is a model with what is added to it, and its language.
type Source struct {
	Model    *weights.Model
	Update   *lora.Update // nil: the model as it is
	Tok      *tokenizer.Tokenizer
	Template data.Template
	Jinja    string // the text of the model's chat template, "" where it has none
	Name     string // of the model, for metadata
	Progress func(done, total int64)

	// Dequantized adds the update to what NF4 makes of the linear layers, on which a QLoRA run was trained, in place of
	// the layers themselves; Double says how their scales were stored there.
	Dequantized, Double bool
}

// tensors lists the parameters in the order of the model, each once.
func (s *Source) tensors() ([]*weights.Tensor, error) {
	c := s.Model.Config
	var all []*weights.Tensor
	changed := map[string]bool{}
	if s.Update != nil {
		for _, name := range s.Update.Names() {
			changed[name+".weight"] = true
		}
	}
	for _, name := range s.Model.Names() {
		parameter := strings.HasSuffix(name, ".weight") || strings.HasSuffix(name, ".bias")
		if !parameter || name == headName && c.TieWordEmbeddings {
			continue
		}
		t, err := s.Model.Tensor(name)
		if err != nil {
			return nil, err
		}
		if changed[name] {
			in, out := s.Update.Shape(strings.TrimSuffix(name, ".weight"))
			if !slices.Equal(t.Shape, []int{out, in}) {
				return nil, fmt.Errorf("%s has shape %v, and the adapter is for [%d %d]", name, t.Shape, out, in)
			}
			delete(changed, name)
		}
		all = append(all, t)
	}
	for name := range changed {
		return nil, fmt.Errorf("the adapter changes %s, which the model does not have", name)
	}
	slices.SortFunc(all, func(a, b *weights.Tensor) int {
		return cmp.Or(cmp.Compare(place(a.Name), place(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

const (
	embedName = "model.embed_tokens.weight"
	normName  = "model.norm.weight"
	headName  = "lm_head.weight"
)

var layerNumber = regexp.MustCompile(`^model\.layers\.(\d+)\.`)

// place orders tensors as data flows: embedding, layers, last norm, head.
func place(name string) int {
	switch name {
	case embedName:
		return -1
	case normName:
		return 1 << 20
	case headName:
		return 1 << 21
	}
	if m := layerNumber.FindStringSubmatch(name); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			return n
		}
	}
	return 1 << 22
}

// changes reports whether the update adds to a tensor.
func (s *Source) changes(name string) bool {
	module, ok := strings.CutSuffix(name, ".weight")
	if s.Update == nil || !ok {
		return false
	}
	return s.Update.Rank(module) > 0
}

// reader returns what fills rows of a tensor, the update added, in float32. It may be called from many goroutines.
func (s *Source) reader(t *weights.Tensor) func(dst []float32, row, n int) error {
	base := t.ReadRowsF32
	if s.Dequantized && linearWeight.MatchString(t.Name) {
		once := sync.OnceValues(func() (*nf4.Tensor, error) { return quantized(t, s.Double, t.ReadRowsF32) })
		base = func(dst []float32, row, n int) error {
			q, err := once()
			if err == nil {
				q.ReadBF16(dst, row*t.RowLen())
			}
			return err
		}
	}
	return func(dst []float32, row, n int) error {
		if err := base(dst, row, n); err != nil {
			return err
		}
		if s.changes(t.Name) {
			s.Update.Add(strings.TrimSuffix(t.Name, ".weight"), dst, row, n)
		}
		return nil
	}
}

// chunkBytes is about how many bytes of float32 are made at a time.
const chunkBytes = 4 << 20

// entry is a tensor as it is written: in type d, under a name, heads of rope rows reordered where rope is not 0.
// Chunks are made on all processors and written in their order.
func (s *Source) entry(ctx context.Context, wrote *tally, name string, t *weights.Tensor, d weights.DType, rope int) weights.Entry {
	return weights.Entry{Name: name, DType: d, Shape: t.Shape, Write: func(w io.Writer) error {
		rows, width, unit := t.Rows(), t.RowLen(), max(rope, 1)
		step := max(unit, chunkBytes/4/max(width, 1)/unit*unit)
		chunks := (rows + step - 1) / step
		read := s.reader(t)
		return ordered(ctx, chunks, func(i int) ([]byte, error) {
			row := i * step
			n := min(step, rows-row)
			return s.chunk(t, d, rope, row, n, read)
		}, func(chunk []byte) error {
			wrote.add(int64(len(chunk)))
			_, err := w.Write(chunk)
			return err
		})
	}}
}

// chunk makes the bytes of rows [row, row+n).
func (s *Source) chunk(t *weights.Tensor, d weights.DType, rope, row, n int, read func(dst []float32, row, n int) error) ([]byte, error) {
	width := t.RowLen()
	size, err := weights.EncodedBytes(d, n*width)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	out := make([]byte, size)
	if t.DType == d && rope == 0 && !s.changes(t.Name) && !s.Dequantized && !d.Blocked() && s.Model.GGUF() == nil {
		return out, t.ReadRowsRaw(out, row, n) // as it is stored
	}
	values := make([]float32, n*width)
	if err := read(values, row, n); err != nil {
		return nil, err
	}
	if rope > 0 {
		if len(t.Shape) == 1 {
			width = 1 // the elements of a bias are the rows of its projection
		}
		values = interleave(values, rope, width)
	}
	if err := weights.Encode(d, out, values); err != nil {
		return nil, fmt.Errorf("%s, from row %d on: %w", t.Name, row, err)
	}
	return out, nil
}

// interleave puts the rows of whole heads of d rows in the order of rope on neighbours: row j·d/2+i of a head becomes
// row 2i+j.
func interleave(values []float32, d, width int) []float32 {
	out := make([]float32, len(values))
	for r := range len(values) / width {
		head, j, i := r/d*d, r%d/(d/2), r%d%(d/2)
		copy(out[(head+2*i+j)*width:][:width], values[r*width:])
	}
	return out
}

// ordered makes n pieces at once on all processors and uses them one by one in order. The first error, or the end of
// ctx, ends it.
func ordered(ctx context.Context, n int, produce func(i int) ([]byte, error), use func([]byte) error) error {
	type piece struct {
		data []byte
		err  error
	}
	stop := make(chan struct{})
	defer close(stop)
	line := make(chan chan piece, runtime.GOMAXPROCS(0))
	go func() {
		defer close(line)
		for i := range n {
			one := make(chan piece, 1)
			select {
			case line <- one:
			case <-stop:
				return
			}
			go func() {
				data, err := produce(i)
				one <- piece{data, err}
			}()
		}
	}()
	for one := range line {
		p := <-one
		if err := cmp.Or(p.err, ctx.Err()); err != nil {
			return err
		}
		if err := use(p.data); err != nil {
			return err
		}
	}
	return nil
}

// tally counts bytes for Progress.
type tally struct {
	done, total int64
	show        func(done, total int64)
}

func (t *tally) add(n int64) {
	if t.done += n; t.show != nil {
		t.show(t.done, t.total)
	}
}

// bytesOf sums what entries will take.
func bytesOf(entries []weights.Entry) (int64, error) {
	var sum int64
	for _, e := range entries {
		n := 1
		for _, d := range e.Shape {
			n *= d
		}
		size, err := weights.EncodedBytes(e.DType, n)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", e.Name, err)
		}
		sum += int64(size)
	}
	return sum, nil
}

// Room refuses a target that exists, and one whose disk does not have room for n bytes.
func Room(path string, n int64) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already, and nothing is replaced: choose another --output_dir, or remove it", path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(filepath.Clean(path))
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	free, err := atomicfile.Free(dir)
	if err != nil {
		return err
	}
	const rest = 64 << 20 // tokenizer, configuration, headers
	if n+rest > free {
		return fmt.Errorf("%s needs %.2f GB, and its disk has %.2f GB free: give an --output_dir on another: %w", path, float64(n+rest)/1e9, float64(free)/1e9, syscall.ENOSPC)
	}
	return nil
}
