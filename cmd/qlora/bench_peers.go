package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qlora/bench"
	"qlora/bench/measure"
	"qlora/model/weights"
)

// benchPeersCmd is `qlora bench peers`.
type benchPeersCmd struct {
	benchDevice
	benchOutput
	Python  string        `name:"python" group:"Peers" default:"python3" placeholder:"FILE" help:"An interpreter that has torch, transformers and peft, and as many as can be had of bitsandbytes, unsloth and liger-kernel."`
	Peers   []string      `name:"peers" group:"Peers" sep:"," help:"Only these: unsloth, unsloth-nf4, peft, peft-nf4, peft-compile, peft-liger."`
	Model   string        `name:"model" group:"Peers" default:"qwen2.5-7b" placeholder:"SHAPE" help:"The shape, with random weights."`
	Tokens  string        `name:"tokenizer" group:"Peers" placeholder:"DIR" help:"Lay tokenizer.json and tokenizer_config.json from here beside the weights: some trainers read them."`
	Weights string        `name:"weights" group:"Peers" placeholder:"DIR" help:"Its folder, as bench weights writes it; by default it is written to --scratch."`
	Cases   []string      `name:"cases" group:"Peers" sep:"," placeholder:"CASE..." help:"Rows x tokens, c where activations are recomputed, instead of each trainer's own: 1x2048,2x2048c."`
	Rank    int           `name:"lora_rank" group:"Peers" default:"8" help:"Rank of the adapter."`
	Steps   int           `name:"steps" group:"Peers" default:"12" help:"Steps that are timed, after three that are not."`
	Budget  time.Duration `name:"budget" group:"Peers" default:"0s" placeholder:"TIME" help:"Time for everything: what does not fit is left out, and named. 0s: no limit."`
	Scratch string        `name:"scratch" group:"Peers" placeholder:"DIR" help:"For weights, logs and compiled code. By default a temporary folder, which is removed."`
}

func (benchPeersCmd) Help() string {
	return `The same training step by ours and by other people's trainers, on one device in one run, each in a process of
its own, on the same random weights: PEFT, PEFT with torch.compile, with Liger's kernels, with bitsandbytes'
NF4, and Unsloth. Only a ratio from one such run counts: machines differ. A trainer that is not installed, or
does not fit, is a row that says so.

Examples
  qlora bench peers --tokenizer testdata/tokenizer/qwen2.5
  qlora bench peers --python venv/bin/python --peers unsloth,unsloth-nf4 --budget 7m
  qlora bench peers --model qwen2.5-1.5b --cases 1x2048,2x2048`
}

func (c *benchPeersCmd) Run(e *env) error {
	if err := c.benchOutput.check(); err != nil {
		return err
	}
	version, err := bench.HasTorch(e.ctx, c.Python)
	if err != nil {
		return usageError{fmt.Errorf("--python %s has no torch to run peers with: %w", c.Python, err)}
	}
	e.logf("python: %s, torch %s", c.Python, version)
	peers, err := c.choose()
	if err != nil {
		return usageError{err}
	}
	src, err := weights.NewRandom(c.Model, randomSeed)
	if err != nil {
		return usageError{fmt.Errorf("--model %s: %w", c.Model, err)}
	}
	if c.Scratch == "" {
		if c.Scratch, err = os.MkdirTemp("", "qlora-peers-"); err != nil {
			return err
		}
		defer os.RemoveAll(c.Scratch)
	} else if err := os.MkdirAll(c.Scratch, 0o777); err != nil {
		return err
	}
	b, done, err := openBench(e, c.benchDevice, measure.Rule{Least: 10, Noise: 0.005, Most: 100, Time: 15 * time.Second})
	if err != nil {
		return err
	}
	defer done()
	o := bench.PeersOptions{Python: c.Python, Name: strings.ToLower(c.Model), Peers: peers, Rank: c.Rank, Steps: c.Steps, Budget: c.Budget, Scratch: c.Scratch, Device: b.Backend.Name(), Load: newProgress(e).loading}
	if o.Model, err = c.weights(e, src); err != nil {
		return err
	}
	if o.Ours, err = c.ours(src, peers); err != nil {
		return err
	}
	f, err := b.Peers(e.ctx, o)
	return c.keep(e, f, err)
}

// choose takes the peers and cases that the flags name.
func (c *benchPeersCmd) choose() ([]bench.Peer, error) {
	var some []bench.Peer
	for _, p := range bench.AllPeers {
		if len(c.Peers) > 0 && !slices.Contains(c.Peers, p.Trainer) {
			continue
		}
		if len(c.Cases) > 0 {
			if slices.ContainsFunc(some, func(s bench.Peer) bool { return s.Trainer == p.Trainer }) {
				continue
			}
			p.Cases = c.Cases
		}
		some = append(some, p)
	}
	for _, name := range c.Peers {
		if !slices.ContainsFunc(some, func(p bench.Peer) bool { return p.Trainer == name }) {
			return nil, fmt.Errorf("--peers %s: choose unsloth, unsloth-nf4, peft, peft-nf4, peft-compile or peft-liger", name)
		}
	}
	for _, text := range c.Cases {
		var rows, tokens int
		if n, err := fmt.Sscanf(strings.TrimSuffix(text, "c"), "%dx%d", &rows, &tokens); err != nil || n != 2 || rows < 1 || tokens < 2 {
			return nil, fmt.Errorf("--cases %s: write ROWSxTOKENS, such as 1x2048, or 2x2048c to recompute activations", text)
		}
	}
	return some, nil
}

// weights is the folder that the peers read.
func (c *benchPeersCmd) weights(e *env, src *weights.Model) (string, error) {
	dir := c.Weights
	if dir == "" {
		dir = filepath.Join(c.Scratch, strings.ToLower(c.Model))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
		return dir, nil
	} else if c.Weights != "" {
		return "", usageError{fmt.Errorf("--weights %s holds no config.json: `qlora bench weights` writes such a folder", c.Weights)}
	}
	files, err := tokenizerFiles(c.Tokens)
	if err != nil {
		return "", err
	}
	e.logf("weights: written to %s", dir)
	shown := newProgress(e)
	defer shown.end()
	return dir, bench.WriteModel(dir, src, files, shown.writing)
}

// ours are trainings of the shapes that the peers run, in NF4 too where they do, without recomputing.
func (c *benchPeersCmd) ours(src *weights.Model, peers []bench.Peer) ([]bench.Training, error) {
	var all []bench.Training
	var seen []string
	for _, p := range peers {
		m, method := benchModel{Rank: c.Rank, Targets: []string{"all-linear"}}, "bf16"
		if strings.HasSuffix(p.Trainer, "-nf4") {
			method = "nf4"
		}
		if err := m.store(method); err != nil {
			return nil, err
		}
		for _, text := range p.Cases {
			text = strings.TrimSuffix(text, "c")
			if slices.Contains(seen, method+text) {
				continue
			}
			seen = append(seen, method+text)
			var rows, tokens int
			if _, err := fmt.Sscanf(text, "%dx%d", &rows, &tokens); err != nil {
				return nil, err
			}
			t, err := m.training(src, strings.ToLower(c.Model))
			if err != nil {
				return nil, err
			}
			t.Tokens, t.Segments = rows*tokens, rows // merged into one row, as sft does
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return nil, usageError{errors.New("there are no cases to run")}
	}
	return all, nil
}
