package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"qlora/internal/fetch"
	"qlora/model/weights"
)

// fetchCmd is `qlora fetch`, the only verb that opens a connection.
type fetchCmd struct {
	Model    string   `name:"model" group:"What" placeholder:"ORG/NAME" help:"A model of the hub. The flag's name may be left out: qlora fetch ORG/NAME."`
	Dataset  string   `name:"dataset" group:"What" placeholder:"ORG/NAME" help:"A dataset of Hugging Face, in place of a model."`
	Hub      string   `name:"hub" group:"What" default:"hf" placeholder:"NAME" help:"hf (Hugging Face) or ms (ModelScope)."`
	Revision string   `name:"revision" group:"What" help:"A branch, tag or commit. By default the main branch."`
	Include  []string `name:"include" group:"What" sep:"none" placeholder:"GLOB..." help:"Fetch the files that match one of these, such as '*q4_k_m.gguf'. By default, of a model, the safetensors and the files that belong to them; of a dataset, all."`
	Exclude  []string `name:"exclude" group:"What" sep:"none" placeholder:"GLOB..." help:"Leave out the files that match one of these."`

	MaxWorkers int `name:"max_workers" group:"How" default:"4" help:"Files fetched at a time."`
}

func (fetchCmd) Help() string {
	return `Files go into the ordinary cache of the hub, where qlora, transformers and modelscope look: HF_HUB_CACHE or HF_HOME,
MODELSCOPE_CACHE. Each is checked against the hash that the hub lists. What was interrupted goes on where it was.
HF_ENDPOINT names a mirror. HF_TOKEN, or the token that huggingface-cli login has kept, is sent to that host
alone. With HF_HUB_OFFLINE=1 nothing is fetched, and what is there is found.

Examples
  qlora fetch Qwen/Qwen2.5-7B-Instruct
  qlora fetch Qwen/Qwen2.5-0.5B-Instruct --hub ms
  HF_ENDPOINT=https://hf-mirror.com qlora fetch Qwen/Qwen2.5-7B-Instruct
  qlora fetch Qwen/Qwen2.5-7B-Instruct-GGUF --include '*q4_k_m*.gguf'
  qlora fetch --dataset tatsu-lab/alpaca`
}

func (c *fetchCmd) Run(e *env) error {
	id := c.Model + c.Dataset
	switch {
	case (c.Model == "") == (c.Dataset == ""):
		return usageError{errors.New("say what is to be fetched: qlora fetch ORG/NAME, or --dataset ORG/NAME")}
	case c.Hub != string(fetch.HuggingFace) && c.Hub != string(fetch.ModelScope):
		return usageError{fmt.Errorf("--hub %s: choose hf or ms", c.Hub)}
	case c.MaxWorkers < 1 || c.MaxWorkers > 64:
		return usageError{fmt.Errorf("--max_workers %d: must be from 1 to 64", c.MaxWorkers)}
	}
	if err := fetch.CheckID(id); err != nil {
		return usageError{err}
	}
	for _, pattern := range slices.Concat(c.Include, c.Exclude) {
		if _, err := path.Match(pattern, ""); err != nil {
			return usageError{fmt.Errorf("%q is no pattern: %w", pattern, err)}
		}
	}
	if fetch.Offline() {
		return c.offline(e, id)
	}
	client, err := fetch.FromEnvironment()
	if err != nil {
		return err
	}
	client.Workers, client.Log = c.MaxWorkers, e.logf
	repo, err := client.List(e.ctx, fetch.Hub(c.Hub), id, c.Dataset != "", c.Revision)
	if err != nil {
		return err
	}
	files, err := c.choose(repo)
	if err != nil {
		return err
	}
	var total int64
	for _, f := range files {
		total += f.Size
	}
	e.logf("%s at %.12s: %d files, %s", id, repo.Commit, len(files), megabytes(total))
	shown := newCounter(e, id, 0, total, megabytes)
	dir, err := client.Get(e.ctx, repo, files, func(p fetch.Progress) {
		shown.before = p.There - p.Came // a rate is of what came
		shown.at(p.There)
	})
	shown.end()
	if errors.Is(err, context.Canceled) {
		e.logf("interrupted at %s of %s: the same command goes on", megabytes(shown.done), megabytes(total))
	}
	if err != nil {
		return err
	}
	c.look(e, dir)
	fmt.Fprintln(e.out, dir)
	return nil
}

// offline finds what is there already.
func (c *fetchCmd) offline(e *env, id string) error {
	if c.Dataset != "" || c.Revision != "" {
		return usageError{errors.New("HF_HUB_OFFLINE forbids the network: unset it to fetch")}
	}
	m, err := weights.Open(id)
	if err != nil {
		return fmt.Errorf("HF_HUB_OFFLINE forbids the network, and %w", err)
	}
	defer m.Close()
	fmt.Fprintln(e.out, m.Dir)
	return nil
}

// look says where a model that came is none that runs here.
func (c *fetchCmd) look(e *env, dir string) {
	if c.Dataset != "" || len(c.Include) > 0 {
		return
	}
	m, err := weights.Open(dir)
	if err != nil {
		e.logf("notice: qlora does not run this model: %v", err)
		return
	}
	m.Close()
}

// companions are the files that belong to a model in safetensors.
var companions = []string{"*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*", "NOTICE*"}

// choose picks the files of a repository.
func (c *fetchCmd) choose(r *fetch.Repo) ([]fetch.File, error) {
	var all []fetch.File
	var names, ggufs []string
	safetensors := false
	for _, f := range r.Files {
		names = append(names, f.Path)
		safetensors = safetensors || strings.HasSuffix(f.Path, ".safetensors")
		if strings.HasSuffix(f.Path, ".gguf") {
			ggufs = append(ggufs, f.Path)
		}
		wanted := matchesAny(c.Include, f.Path)
		if len(c.Include) == 0 {
			wanted = c.Dataset != "" && !strings.HasPrefix(f.Path, ".git") || c.Dataset == "" && !strings.Contains(f.Path, "/") && matchesAny(companions, f.Path)
		}
		if wanted && !matchesAny(c.Exclude, f.Path) {
			all = append(all, f)
		}
	}
	switch {
	case c.Dataset == "" && len(c.Include) == 0 && !safetensors && len(ggufs) > 0:
		return nil, usageError{fmt.Errorf("%s holds .gguf files: say which by --include: %s", r.ID, strings.Join(ggufs, ", "))}
	case c.Dataset == "" && len(c.Include) == 0 && !safetensors:
		return nil, fmt.Errorf("%s holds no safetensors: its files are %s", r.ID, strings.Join(names, ", "))
	case len(all) == 0:
		return nil, usageError{fmt.Errorf("no file of %s matches: its files are %s", r.ID, strings.Join(names, ", "))}
	}
	return all, nil
}

// matchesAny reports whether a pattern is that of a path, or of its last part.
func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		whole, _ := path.Match(p, name)
		last, _ := path.Match(p, path.Base(name))
		return whole || last
	})
}
