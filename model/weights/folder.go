package weights

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Folder holds a model, an adapter or a checkpoint that somebody else may have
// made. Its files are opened through an os.Root: no name and no link leads out of
// it. The root of a snapshot in the Hugging Face cache is the cache's folder of that
// model, as its files are links into ../../blobs.
type Folder struct {
	dir    string // as the user knows it
	root   *os.Root
	prefix string // of dir in root
	hubID  string // of a snapshot in the cache; else empty
}

// OpenFolder opens the folder at dir.
func OpenFolder(dir string) (*Folder, error) {
	top, prefix, hubID := dir, ".", ""
	if abs, err := filepath.Abs(dir); err == nil {
		snapshots := filepath.Dir(abs)
		repo := filepath.Dir(snapshots)
		if name, ok := strings.CutPrefix(filepath.Base(repo), "models--"); ok && filepath.Base(snapshots) == "snapshots" {
			top, prefix = repo, filepath.Join("snapshots", filepath.Base(abs))
			hubID = strings.Replace(name, "--", "/", 1)
		}
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	return &Folder{dir: dir, root: root, prefix: prefix, hubID: hubID}, nil
}

// Path is where a file of the folder lies, as the user knows it.
func (f *Folder) Path(name string) string { return filepath.Join(f.dir, name) }

// Close closes the folder. Files opened from it stay open.
func (f *Folder) Close() error { return f.root.Close() }

// has reports whether name exists, be it as a link that may not be followed:
// opening it then says so.
func (f *Folder) has(name string) bool {
	_, err := f.root.Lstat(filepath.Join(f.prefix, name))
	return err == nil
}

// Open opens a regular file of the folder by its plain name.
func (f *Folder) Open(name string) (*os.File, error) {
	if err := checkBaseName(name); err != nil {
		return nil, fmt.Errorf("%s: %w", f.dir, err)
	}
	inRoot := filepath.Join(f.prefix, name)
	info, err := f.root.Stat(inRoot) // before opening, which would wait on a pipe
	if err != nil {
		return nil, f.explain(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", f.Path(name))
	}
	file, err := f.root.Open(inRoot)
	if err != nil {
		return nil, f.explain(name, err)
	}
	return file, nil
}

func (f *Folder) explain(name string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s: %w (links out of a model's folder are not followed: copy the file into it)", f.Path(name), path.Err)
	}
	if path != nil {
		err = path.Err
	}
	return fmt.Errorf("%s: %w", f.Path(name), err)
}

// ReadFile reads a whole file of at most limit bytes.
func (f *Folder) ReadFile(name string, limit int64) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", f.Path(name), err)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("%s: more than the limit of %d bytes", f.Path(name), limit)
	}
	return data, nil
}

// OpenSafetensors opens a safetensors file and checks its header.
func (f *Folder) OpenSafetensors(name string) (*File, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	return openSafetensors(file, f.Path(name))
}

// notAModel explains what the folder lacks, naming the files that come near.
func (f *Folder) notAModel() error {
	dir, err := f.root.Open(f.prefix)
	if err != nil {
		return f.explain(".", err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(10_000)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", f.dir, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	for _, name := range names {
		switch filepath.Ext(name) {
		case ".gguf":
			return fmt.Errorf("%s: no model in safetensors files, but a GGUF: give its path, %s", f.dir, f.Path(name))
		case ".bin", ".pt", ".pth", ".pkl", ".ckpt":
			return fmt.Errorf("%s: only safetensors and GGUF are read, and %s may be a pickle, which can run code: convert it with transformers' save_pretrained(safe_serialization=True)", f.dir, name)
		}
	}
	if slices.Contains(names, "adapter_config.json") {
		return fmt.Errorf("%s: an adapter, not a model: give it as --adapters", f.dir)
	}
	return fmt.Errorf("%s: not a model's folder: it needs config.json and model.safetensors or %s", f.dir, indexName)
}
