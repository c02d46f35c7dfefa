// Package hubcache finds what the Python libraries of the hubs, or `qlora fetch`, have put into their caches. Nothing is
// downloaded.
//
//	Hugging Face   models--org--name/refs/main holds the revision, snapshots/REVISION its files
//	ModelScope     hub/models/org/name, or another folder before it in older versions; ___ may stand for each dot of a name
package hubcache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A Kind is of models or of datasets.
type Kind struct {
	prefix string   // of a folder in Hugging Face's cache
	bases  []string // before org/name in ModelScope's
	marker string   // a file that such a folder of ModelScope's has; "." for none
}

// The kinds of repositories.
var (
	Models   = Kind{"models--", []string{"hub/models", "hub", "models", "."}, "config.json"}
	Datasets = Kind{"datasets--", []string{"hub/datasets", "datasets"}, "."}
)

// The hubs, as Find takes them.
const (
	HuggingFace = "hf"
	ModelScope  = "ms"
)

// idPattern is org/name; the hubs allow letters, digits, dots, dashes and underscores, and no name that starts with a dot.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// IsID reports whether a text has the form of a hub's id, org/name.
func IsID(text string) bool { return idPattern.MatchString(text) }

// Missing is a repository that is in no cache, and the places that were looked at.
type Missing struct{ Looked []string }

func (m *Missing) Error() string { return "not in " + strings.Join(m.Looked, ", ") }

// Find returns the folder of a repository in the cache of a hub, or with hub "" of the first that has it. The error is
// *Missing where none has.
func Find(k Kind, hub, id string) (string, error) {
	missing := &Missing{}
	for _, in := range []struct {
		hub  string
		find func(Kind, string) (dir string, looked []string, err error)
	}{{HuggingFace, findHuggingFace}, {ModelScope, findModelScope}} {
		if hub != "" && hub != in.hub {
			continue
		}
		dir, looked, err := in.find(k, id)
		if dir != "" || err != nil {
			return dir, err
		}
		missing.Looked = append(missing.Looked, looked...)
	}
	return "", missing
}

// HuggingFaceDir returns the folder huggingface_hub caches repositories in.
func HuggingFaceDir() (string, error) {
	for _, place := range [][]string{
		{os.Getenv("HF_HUB_CACHE")}, {os.Getenv("HUGGINGFACE_HUB_CACHE")},
		{os.Getenv("HF_HOME"), "hub"}, {os.Getenv("XDG_CACHE_HOME"), "huggingface", "hub"},
	} {
		if place[0] != "" {
			return filepath.Join(place...), nil
		}
	}
	return inHome("huggingface", "hub")
}

// ModelScopeDir returns the folder modelscope caches in.
func ModelScopeDir() (string, error) {
	if dir := os.Getenv("MODELSCOPE_CACHE"); dir != "" {
		return dir, nil
	}
	return inHome("modelscope")
}

func inHome(parts ...string) (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(slices.Concat([]string{home, ".cache"}, parts)...), nil
}

// HuggingFaceRepo is the folder of a repository in a cache of Hugging Face.
func HuggingFaceRepo(k Kind, cache, id string) string {
	return filepath.Join(cache, k.prefix+strings.ReplaceAll(id, "/", "--"))
}

// ModelScopeRepo is the folder that modelscope downloads a repository to.
func ModelScopeRepo(k Kind, cache, id string) string {
	org, name, _ := strings.Cut(id, "/")
	return filepath.Join(cache, filepath.FromSlash(k.bases[0]), org, strings.ReplaceAll(name, ".", "___"))
}

func findHuggingFace(k Kind, id string) (dir string, looked []string, err error) {
	cache, err := HuggingFaceDir()
	if err != nil {
		return "", nil, err
	}
	repo := HuggingFaceRepo(k, cache, id)
	ref := filepath.Join(repo, "refs", "main")
	text, err := os.ReadFile(ref)
	if errors.Is(err, fs.ErrNotExist) {
		others, _ := filepath.Glob(filepath.Join(repo, "snapshots", "*"))
		if len(others) > 0 {
			return "", nil, fmt.Errorf("the cache has a snapshot but not %s, which names the current one: give the folder %s", ref, others[0])
		}
		return "", []string{repo}, nil
	}
	if err != nil {
		return "", nil, err
	}
	revision := strings.TrimSpace(string(text))
	if !filepath.IsLocal(revision) || strings.ContainsAny(revision, "/\\:\x00") || revision == "." {
		return "", nil, fmt.Errorf("%s: %.80q is no revision", ref, revision)
	}
	dir = filepath.Join(repo, "snapshots", revision)
	if _, err := os.Stat(dir); err != nil {
		return "", nil, fmt.Errorf("%s names a snapshot that is not there: %w", ref, err)
	}
	return dir, nil, nil
}

func findModelScope(k Kind, id string) (dir string, looked []string, err error) {
	cache, err := ModelScopeDir()
	if err != nil {
		return "", nil, err
	}
	org, name, _ := strings.Cut(id, "/")
	for _, base := range k.bases {
		for _, folder := range slices.Compact([]string{name, strings.ReplaceAll(name, ".", "___")}) {
			dir := filepath.Join(cache, filepath.FromSlash(base), org, folder)
			info, err := os.Stat(filepath.Join(dir, k.marker))
			if err == nil && (k.marker != "." || info.IsDir()) {
				return dir, nil, nil
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", nil, err
			}
		}
		looked = append(looked, filepath.Join(cache, filepath.FromSlash(base), org, name))
	}
	return "", looked, nil
}
