package weights

import (
	"errors"
	"fmt"
	"strings"

	"qlora/internal/hubcache"
)

// findInCaches returns the folder of a model in the cache of Hugging Face or of
// ModelScope. The error says where it was looked for and how to get the model.
func findInCaches(spec string) (string, error) {
	if !hubcache.IsID(spec) {
		return "", fmt.Errorf("model %q: no such folder or file; give a folder with config.json and safetensors, a .gguf file, or a hub id (org/name)", spec)
	}
	dir, err := hubcache.Find(hubcache.Models, "", spec)
	if missing, ok := errors.AsType[*hubcache.Missing](err); ok {
		return "", fmt.Errorf("model %s: no such folder, and not in the cache of a hub; looked for\n  %s\nget it with one of\n"+
			"  qlora fetch %[1]s\n  huggingface-cli download %[1]s\n  modelscope download --model %[1]s\nor give a folder with config.json and safetensors, or a .gguf file",
			spec, strings.Join(missing.Looked, "\n  "))
	}
	if err != nil {
		return "", fmt.Errorf("model %s: %w", spec, err)
	}
	return dir, nil
}
