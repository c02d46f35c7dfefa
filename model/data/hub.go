package data

import (
	"errors"
	"fmt"
	"strings"

	"qlora/internal/hubcache"
)

// findInCaches returns the folder of a dataset in the cache of a hub: "hf", "ms", or "" for
// the first that has it. The error says where it was looked for and how to get it.
func findInCaches(hub, id string) (string, error) {
	if !hubcache.IsID(id) || readable(id) {
		return "", errors.New("no such file: give a file (.jsonl, .json, .csv, .parquet, .txt), a folder of them, or a hub's org/name")
	}
	dir, err := hubcache.Find(hubcache.Datasets, hub, id)
	if missing, ok := errors.AsType[*hubcache.Missing](err); ok {
		return "", fmt.Errorf("no such file or folder, and not in the cache of a hub (the network is not used); looked for\n  %s\nget it with one of\n"+
			"  qlora fetch --dataset %[2]s\n  huggingface-cli download --repo-type dataset %[2]s\n  modelscope download --dataset %[2]s", strings.Join(missing.Looked, "\n  "), id)
	}
	return dir, err
}
