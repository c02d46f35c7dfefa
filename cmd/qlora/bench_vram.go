package main

import (
	"fmt"
	"strings"
	"time"

	"qlora/bench"
	"qlora/bench/measure"
	"qlora/model/lora"
)

// benchVRAMCmd is `qlora bench vram`.
type benchVRAMCmd struct {
	benchDevice
	benchOutput
	Models  []string `name:"models" group:"Grid" sep:"none" help:"Shapes or models. By default qwen2.5-0.5b, 1.5b, 3b, 7b and 14b."`
	Tokens  []int    `name:"tokens" group:"Grid" default:"1024,2048,4096,8192" help:"Tokens of a row."`
	Ranks   []int    `name:"lora_rank" group:"Grid" default:"8" help:"Ranks of the adapter."`
	Budgets []string `name:"budgets" group:"Grid" sep:"none" default:"8GiB,12GiB,16GiB,23GiB,31GiB,79GiB" help:"What a process may hold; 23GiB is what a 24 GB card really offers."`
	Methods []string `name:"methods" group:"Grid" default:"bf16,nf4" help:"Storage of the linear layers: bf16, nf4 or f32."`
	Measure bool     `name:"measure" group:"Grid" help:"Also run two steps of each that the device has room for, ask what the process holds, and how far each category was written."`
}

func (benchVRAMCmd) Help() string {
	return `Lays out the memory of every training run of a grid, to the byte, and says how long a row each budget holds
at most. With --measure the device runs them, and what the process held stands beside the plan. "qlora plan"
says of one run what it keeps less of within a budget, and what that costs.

Examples
  qlora bench vram
  qlora bench vram --models qwen2.5-7b --tokens 2048 --lora_rank 8 64 --budgets 23GiB --measure`
}

func (c *benchVRAMCmd) Run(e *env) error {
	if err := c.benchOutput.check(); err != nil {
		return err
	}
	o := bench.VRAMOptions{Measure: c.Measure}
	for _, text := range c.Budgets {
		for one := range strings.SplitSeq(text, ",") {
			bytes, err := parseSize(one)
			if err != nil {
				return usageError{fmt.Errorf("--budgets: %w", err)}
			}
			o.Budgets = append(o.Budgets, bytes)
		}
	}
	b, done, err := openBench(e, c.benchDevice, measure.Rule{Least: 10, Noise: 0.005, Most: 10, Time: time.Second})
	if err != nil {
		return err
	}
	defer done()
	models := c.Models
	if len(models) == 0 {
		models = []string{"qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b"}
	}
	for _, model := range models {
		m := benchModel{Model: model, Targets: []string{lora.AllLinear}}
		src, name, err := m.open(b.Backend.Name())
		if err != nil {
			return err
		}
		defer src.Close()
		for _, method := range c.Methods {
			if err := m.store(method); err != nil {
				return usageError{fmt.Errorf("--methods: %w", err)}
			}
			for _, m.Rank = range c.Ranks {
				for _, tokens := range c.Tokens {
					t, err := m.training(src, name)
					if err != nil {
						return err
					}
					t.Tokens = tokens
					o.Trainings = append(o.Trainings, t)
				}
			}
		}
	}
	f, err := b.VRAM(e.ctx, o)
	return c.keep(e, f, err)
}
