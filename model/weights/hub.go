package weights

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// hubIDPattern is org/name; the hubs allow letters, digits, dots, dashes and
// underscores, and no name that starts with a dot.
var hubIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// findInCaches returns the folder of a model in the cache of Hugging Face or of
// ModelScope. The error says where it was looked for and how to get the model.
func findInCaches(spec string) (string, error) {
	if !hubIDPattern.MatchString(spec) {
		return "", fmt.Errorf("model %q: no such folder or file; give a folder with config.json and safetensors, a .gguf file, or a hub id (org/name)", spec)
	}
	var looked []string
	for _, find := range []func(id string) (dir string, err error){findHuggingFace, findModelScope} {
		dir, err := find(spec)
		var missing notCached
		switch {
		case err == nil:
			return dir, nil
		case !errors.As(err, &missing):
			return "", fmt.Errorf("model %s: %w", spec, err)
		}
		looked = append(looked, missing...)
	}
	return "", fmt.Errorf("model %s: no such folder, and not in the cache of a hub; looked for\n  %s\nget it with one of\n"+
		"  qlora fetch %[1]s\n  huggingface-cli download %[1]s\n  modelscope download --model %[1]s\nor give a folder with config.json and safetensors, or a .gguf file",
		spec, strings.Join(looked, "\n  "))
}

// notCached lists the places in which a model was not found.
type notCached []string

func (n notCached) Error() string { return "not in " + strings.Join(n, ", ") }

// findHuggingFace looks in the cache of huggingface_hub: refs/main of the model's
// folder holds the revision, snapshots/<revision> its files.
func findHuggingFace(id string) (string, error) {
	cache, err := huggingFaceCache()
	if err != nil {
		return "", err
	}
	repo := filepath.Join(cache, "models--"+strings.ReplaceAll(id, "/", "--"))
	ref := filepath.Join(repo, "refs", "main")
	data, err := os.ReadFile(ref)
	if errors.Is(err, fs.ErrNotExist) {
		snapshots, _ := filepath.Glob(filepath.Join(repo, "snapshots", "*"))
		if len(snapshots) > 0 {
			return "", fmt.Errorf("the cache has a snapshot but not %s, which names the current one: give the folder %s", ref, snapshots[0])
		}
		return "", notCached{repo}
	}
	if err != nil {
		return "", err
	}
	revision := strings.TrimSpace(string(data))
	if err := checkBaseName(revision); err != nil {
		return "", fmt.Errorf("%s: %w", ref, err)
	}
	dir := filepath.Join(repo, "snapshots", revision)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%s names a snapshot that is not there: %w", ref, err)
	}
	return dir, nil
}

// huggingFaceCache returns the folder huggingface_hub caches models in.
func huggingFaceCache() (string, error) {
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"} {
		if dir := os.Getenv(name); dir != "" {
			return dir, nil
		}
	}
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return filepath.Join(dir, "hub"), nil
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "huggingface", "hub"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".cache", "huggingface", "hub"), nil
}

// findModelScope looks in the cache of modelscope, whose newer versions put models
// below hub/models and older ones below hub, with ___ for each dot of a name.
func findModelScope(id string) (string, error) {
	cache := os.Getenv("MODELSCOPE_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, ".cache", "modelscope")
	}
	org, name, _ := strings.Cut(id, "/")
	var looked notCached
	for _, base := range []string{"hub/models", "hub", "models", "."} {
		for _, folder := range []string{name, strings.ReplaceAll(name, ".", "___")} {
			dir := filepath.Join(cache, filepath.FromSlash(base), org, folder)
			if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
				return dir, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		looked = append(looked, filepath.Join(cache, filepath.FromSlash(base), org, name))
	}
	return "", looked
}
