package data

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// hubIDPattern is org/name.
var hubIDPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// findInCaches returns the folder of a dataset in the cache of a hub: "hf", "ms", or "" for
// the first that has it. The error says where it was looked for and how to get it.
func findInCaches(hub, id string) (string, error) {
	if !hubIDPattern.MatchString(id) || readable(id) {
		return "", errors.New("no such file: give a file (.jsonl, .json, .csv, .parquet, .txt), a folder of them, or a hub's org/name")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	var looked []string
	if hub != "ms" {
		repo := filepath.Join(huggingFaceCache(home), "datasets--"+strings.ReplaceAll(id, "/", "--"))
		dir, err := snapshot(repo)
		if dir != "" || err != nil {
			return dir, err
		}
		looked = append(looked, repo)
	}
	if hub != "hf" {
		for _, dir := range modelScopeFolders(home, id) {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				return dir, nil
			}
			looked = append(looked, dir)
		}
	}
	return "", fmt.Errorf("no such file or folder, and not in the cache of a hub (the network is not used); looked for\n  %s\nget it with one of\n"+
		"  qlora fetch --dataset %[2]s\n  huggingface-cli download --repo-type dataset %[2]s\n  modelscope download --dataset %[2]s", strings.Join(looked, "\n  "), id)
}

// snapshot returns the current snapshot of a folder of huggingface_hub's cache, "" where the
// cache lacks it: refs/main holds the revision, snapshots/<revision> its files.
func snapshot(repo string) (string, error) {
	ref := filepath.Join(repo, "refs", "main")
	text, err := os.ReadFile(ref)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		others, _ := filepath.Glob(filepath.Join(repo, "snapshots", "*"))
		if len(others) > 0 {
			return "", fmt.Errorf("the cache has a snapshot but not %s, which names the current one: give the folder %s", ref, others[0])
		}
		return "", nil
	case err != nil:
		return "", err
	}
	revision := strings.TrimSpace(string(text))
	if !filepath.IsLocal(revision) || strings.ContainsAny(revision, `/\`) {
		return "", fmt.Errorf("%s: %q is no revision", ref, revision)
	}
	dir := filepath.Join(repo, "snapshots", revision)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("%s names a snapshot that is not there: %w", ref, err)
	}
	return dir, nil
}

// huggingFaceCache returns the folder huggingface_hub caches repositories in.
func huggingFaceCache(home string) string {
	for _, place := range [][]string{
		{os.Getenv("HF_HUB_CACHE")}, {os.Getenv("HUGGINGFACE_HUB_CACHE")},
		{os.Getenv("HF_HOME"), "hub"}, {os.Getenv("XDG_CACHE_HOME"), "huggingface", "hub"},
	} {
		if place[0] != "" {
			return filepath.Join(place...)
		}
	}
	return filepath.Join(home, ".cache", "huggingface", "hub")
}

// modelScopeFolders returns the places where versions of modelscope have put a dataset, which
// write ___ for each dot of a name.
func modelScopeFolders(home, id string) []string {
	cache := os.Getenv("MODELSCOPE_CACHE")
	if cache == "" {
		cache = filepath.Join(home, ".cache", "modelscope")
	}
	org, name, _ := strings.Cut(id, "/")
	var folders []string
	for _, base := range []string{filepath.Join("hub", "datasets"), "datasets"} {
		folders = append(folders, filepath.Join(cache, base, org, name))
		if masked := strings.ReplaceAll(name, ".", "___"); masked != name {
			folders = append(folders, filepath.Join(cache, base, org, masked))
		}
	}
	return folders
}
