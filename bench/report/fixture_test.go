package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"qlora/bench/result"
	"qlora/model/ops/opstest"
)

// The results of these tests are made up, with numbers of the size that cards have.

// samples are n around seconds.
func samples(seconds float64, n int) result.Samples {
	r := rand.New(rand.NewPCG(uint64(seconds*1e9), 1))
	var s result.Samples
	for range n {
		s = append(s, seconds*(1+0.004*r.NormFloat64()))
	}
	return s
}

func environment(card string, memory int64, commit string) result.Environment {
	return result.Environment{Backend: "cuda", Kernels: "sm_80 sm_90a",
		Card: &result.Card{Name: card, ID: "00c0ffee00c0ffee", Capability: "9.0", Driver: "580.159", CUDA: "13.0", Memory: memory, Processors: 132, L2: 50 << 20, SMClockMax: 1980,
			SMClockLimit: 1980, MemClockMax: 3201, MemClock: 3201, PowerLimit: 700, PowerDefault: 700, ECC: true, PCIeGen: 5, PCIeGenMax: 5, PCIeWidth: 16, PCIeWidthMax: 16},
		Host:    result.Host{CPU: "AMD EPYC 9654", Cores: 16, Threads: 16, Memory: 128 << 30, System: "Linux 6.1 x86_64"},
		Program: result.Program{Commit: commit, Go: "go1.26.8", Args: []string{"bench", "step"}}}
}

var watched = result.Watch{Readings: 400, SMClock: result.Range{Min: 1305, Median: 1560, Max: 1980}, MemClock: result.Range{Min: 3201, Median: 3201, Max: 3201},
	Power: result.Range{Min: 90, Median: 640, Max: 702}, TempC: result.Range{Min: 34, Median: 52, Max: 58}, Throttled: map[string]float64{"power cap": 0.62}}

var stepOps = []result.Op{
	{Name: "Linear", Shape: "2048x37888x3584 R16", Phase: "forward", Calls: 28, Seconds: 21.184e-3, FLOPs: 28 * 556e9, Bytes: 28 * 441e6},
	{Name: "Linear", Shape: "2048x3584x18944 R8", Phase: "forward", Calls: 28, Seconds: 10.541e-3, FLOPs: 28 * 278e9, Bytes: 28 * 242e6},
	{Name: "Linear", Shape: "2048x4608x3584 R24", Phase: "forward", Calls: 28, Seconds: 3.296e-3, FLOPs: 28 * 67.6e9, Bytes: 28 * 66e6},
	{Name: "SwiGLU", Shape: "2048x18944 R8", Phase: "forward", Calls: 28, Seconds: 2.794e-3, FLOPs: 28 * 0.8e9, Bytes: 28 * 233e6},
	{Name: "Linear", Shape: "2048x3584x3584 R8", Phase: "forward", Calls: 28, Seconds: 2.378e-3, FLOPs: 28 * 52.6e9, Bytes: 28 * 55e6},
	{Name: "Attention", Shape: "2048x28x128 R8", Phase: "forward", Calls: 28, Seconds: 2.257e-3, FLOPs: 28 * 30e9, Bytes: 28 * 33e6},
	{Name: "RMSNorm", Shape: "2048x3584 R24", Phase: "forward", Calls: 57, Seconds: 1.6e-3, FLOPs: 57 * 0.4e9, Bytes: 57 * 29e6},
	{Name: "Embed", Shape: "2048x3584", Phase: "forward", Calls: 1, Seconds: 19e-6, Bytes: 29e6},
	{Name: "HeadLoss", Shape: "2047x152064x3584", Phase: "head", Calls: 1, Seconds: 10.661e-3, FLOPs: 4.46e12, Bytes: 1.1e9},
	{Name: "LinearBack", Shape: "2048x37888x3584", Phase: "backward", Calls: 28, Seconds: 21.22e-3, FLOPs: 28 * 556e9, Bytes: 28 * 441e6},
	{Name: "SwiGLUBack", Shape: "2048x18944 R16", Phase: "backward", Calls: 28, Seconds: 11.793e-3, FLOPs: 28 * 4.2e9, Bytes: 28 * 388e6},
	{Name: "LinearBack", Shape: "2048x3584x18944", Phase: "backward", Calls: 28, Seconds: 11.137e-3, FLOPs: 28 * 278e9, Bytes: 28 * 242e6},
	{Name: "AttentionBack", Shape: "2048x28x128 R24", Phase: "backward", Calls: 28, Seconds: 8.259e-3, FLOPs: 28 * 75e9, Bytes: 28 * 82e6},
	{Name: "RMSNormBack", Shape: "2048x3584 R24", Phase: "backward", Calls: 56, Seconds: 3.8e-3, FLOPs: 56 * 0.5e9, Bytes: 56 * 59e6},
	{Name: "LoRAGrad", Shape: "2048x15360", Phase: "backward", Calls: 56, Seconds: 2.271e-3, FLOPs: 56 * 1.5e9, Bytes: 56 * 62e6},
	{Name: "AdamW", Shape: "20185088", Phase: "optimizer", Calls: 1, Seconds: 164e-6, FLOPs: 240e6, Bytes: 565e6},
	{Name: "PackLoRA", Shape: "37888x3584 R16", Phase: "optimizer", Calls: 112, Seconds: 907e-6},
	{Name: "GradNorm", Shape: "20185088", Phase: "optimizer", Calls: 1, Seconds: 64e-6, FLOPs: 40e6, Bytes: 81e6},
	{Name: result.Gap, Seconds: 1.271e-3},
}

const gibibyte = 1 << 30

func stepRow(modelName string, tokens int, seconds float64, arena float64) result.Row {
	g := func(v float64) int64 { return int64(v * gibibyte) }
	return result.Row{Name: "step", Params: map[string]string{"model": modelName, "method": "bf16", "rank": "8", "targets": "all-linear", "dropout": "0", "tokens": fmt.Sprint(tokens), "samples": "1", "rows": "1", "labels": "1"},
		Seconds: samples(seconds, 30), MHz: samples(1560, 30), FLOPs: map[string]float64{"qwen2.5-7b": 29.84e9, "qwen2.5-1.5b": 6.7e9}[modelName] * float64(tokens), Tokens: tokens, Labels: tokens - 1, Joules: 640 * seconds,
		Memory: []result.Memory{{Category: "weights", Planned: g(arena * 0.69)}, {Category: "lora", Planned: g(0.15)}, {Category: "gradients", Planned: g(0.08)}, {Category: "optimizer", Planned: g(0.16)},
			{Category: "activations", Planned: g(arena * 0.33)}, {Category: "workspace", Planned: g(0.3)}, {Category: result.MemoryArena, Planned: g(arena)}, {Category: result.MemoryProcess, Measured: g(arena + 0.7)}}}
}

func stepFile(card string, memory int64, commit string, day int, factor float64) *result.File {
	main := stepRow("qwen2.5-7b", 2048, 0.1194*factor, 20.73)
	main.Ops = slices.Clone(stepOps)
	for i := range main.Ops {
		main.Ops[i].Seconds *= factor
	}
	f := &result.File{Schema: result.Schema, Kind: result.Step, Time: time.Date(2026, 11, day, 12, 0, 0, 0, time.UTC), Environment: environment(card, memory, commit), Watch: watched, Roofs: someRoofs(factor),
		Rows: []result.Row{main, stepRow("qwen2.5-7b", 1024, 0.0648*factor, 17.81), stepRow("qwen2.5-7b", 4096, 0.2536*factor, 26.58), stepRow("qwen2.5-1.5b", 2048, 0.0384*factor, 6.07)}}
	f.Path = f.Folder("results") + "/step.json"
	return f
}

func someRoofs(factor float64) []result.Roof {
	return []result.Roof{
		{Name: result.CopyRoof, Unit: "B/s", Row: result.Row{Name: "copy", Seconds: samples(1e-3*factor, 12), Bytes: 4.18e9}, Power: 420},
		{Name: result.ReadRoof, Unit: "B/s", Row: result.Row{Name: "read", Seconds: samples(1e-3*factor, 12), Bytes: 4.4e9}, Power: 400},
		{Name: result.ComputeRoof, Unit: "FLOP/s", Row: result.Row{Name: "compute", Seconds: samples(1e-3, 12), FLOPs: 0.81e12}, Power: 700},
	}
}

// kernelFile times every case of a 7B model at a plausible share of its roof.
func kernelFile(card string, memory int64, commit string, day int, factor float64) *result.File {
	f := &result.File{Schema: result.Schema, Kind: result.Kernels, Time: time.Date(2026, 11, day, 12, 0, 0, 0, time.UTC), Environment: environment(card, memory, commit), Watch: watched, Roofs: someRoofs(factor)}
	for i, c := range opstest.Cases() {
		if c.Size != opstest.Bench || c.Bytes == 0 {
			continue
		}
		for _, cache := range []string{"cold", "hot"} {
			share := 0.55 + 0.3*math.Mod(float64(i)*0.37, 1)
			if cache == "hot" {
				share += 0.06
			}
			s := factor * max(c.FLOPs/0.8e15, c.Bytes/4.2e12) / share
			row := result.Row{Name: c.Name, Params: map[string]string{"cache": cache, "variant": "auto"}, Seconds: samples(s, 20), MHz: samples(1600, 20), FLOPs: c.FLOPs, Bytes: c.Bytes,
				Proof: &result.Proof{Cases: 12, Shape: "two calls to the bit, finite, nothing written outside", Digest: "0123456789abcdef"}}
			if len(c.Products) == 1 {
				row.Yardstick = &result.Yardstick{Library: "cuBLAS 13.1", Seconds: samples(s*1.06, 20)}
			}
			f.Rows = append(f.Rows, row)
		}
	}
	f.Path = f.Folder("results") + "/kernels.json"
	return f
}

// world is a collection: two cards, two commits of one of them, all kinds.
func world(t *testing.T) []*result.File {
	t.Helper()
	const h200, h100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"
	at := func(kind result.Kind, rows ...result.Row) *result.File {
		f := &result.File{Schema: result.Schema, Kind: kind, Time: time.Date(2026, 11, 27, 13, 0, 0, 0, time.UTC), Environment: environment(h200, 150754820096, "89abcde"), Watch: watched, Roofs: someRoofs(1), Rows: rows}
		f.Path = f.Folder("results") + "/" + string(kind) + ".json"
		return f
	}
	decode := func(n string, seconds float64) result.Row {
		return result.Row{Name: "decode", Params: map[string]string{"model": "qwen2.5-7b", "method": "bf16", "sequences": n, "prompt": "512", "new": "64"}, Seconds: samples(seconds, 10), Bytes: 15.2e9, Tokens: 1, Joules: 3}
	}
	job := func(name string, seconds float64) result.Row {
		return result.Row{Name: name, Params: map[string]string{"model": "random-7b", "data": "50", "epochs": "10"}, Seconds: result.Samples{seconds}}
	}
	all := job("job", 21)
	all.Memory = []result.Memory{{Category: result.MemoryProcess, Measured: 19 * gibibyte}}
	peer := func(trainer string, seconds float64, bytes int64) result.Row {
		r := stepRow("qwen2.5-7b", 2048, seconds, 20.73)
		r.Params = map[string]string{"trainer": trainer, "model": "qwen2.5-7b", "rows": "1", "tokens": "2048", "checkpointing": "no", "first": "4.2 s"}
		r.Memory = []result.Memory{{Category: result.MemoryProcess, Measured: bytes}}
		return r
	}
	failed := result.Row{Name: "step", Params: map[string]string{"trainer": "peft-liger", "model": "qwen2.5-7b", "rows": "1", "tokens": "2048", "checkpointing": "no"}, Error: "ModuleNotFoundError: No module named 'liger_kernel'"}
	long := result.Row{Name: "longest row", Params: map[string]string{"model": "qwen2.5-7b", "method": "bf16", "rank": "8", "budget": "23 GiB", "made again": "no"}, Budget: 23 * gibibyte, Tokens: 2560}
	grid := stepRow("qwen2.5-7b", 2048, 1, 20.73)
	grid.Name, grid.Seconds, grid.MHz = "vram", nil, nil
	track := stepFile(h200, 150754820096, "89abcde", 27, 0.98)
	for i := range 60 {
		track.Rows[0].Track = append(track.Rows[0].Track, result.Moment{At: 10 * float64(i+1), Seconds: 0.117 * (1 + 0.0004*float64(min(i, 30))), SMClock: 1600 - float64(min(i, 30)), Power: 690 + float64(i%7), TempC: 40 + 0.6*float64(min(i, 35))})
	}
	return []*result.File{
		stepFile(h200, 150754820096, "1234567", 24, 1.12), stepFile(h200, 150754820096, "4567890", 25, 1.04), stepFile(h100, 85520809984, "4567890", 25, 1.16), kernelFile(h100, 85520809984, "4567890", 25, 1.1),
		kernelFile(h200, 150754820096, "89abcde", 27, 1), track, at(result.VRAM, grid, long), at(result.Decode, decode("1", 3.9e-3), decode("8", 4.6e-3)),
		at(result.Job, job("tokenise", 0.02), job("load", 5.2), job("train", 3.1), job("save", 0.2), job("load again", 5.1), job("answer 8 questions", 2.3), all),
		at(result.Peers, peer("qlora", 0.117, 21*gibibyte), peer("unsloth", 0.133, 22*gibibyte), peer("peft", 0.187, 31*gibibyte), failed),
	}
}
