package report

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"qlora/bench/result"
	"qlora/bench/stat"
)

// Kernel is a row of kernels with what follows from it.
type Kernel struct {
	Name, Op       string // the name with kernels and storage where they are not the device's own
	Cache, Variant string
	stat.Summary
	FLOPs, Bytes float64 // a second, at the median
	Intensity    float64 // FLOPs a byte
	Roof         float64 // the larger of its shares of the measured roofs; 0 where there are none
	Bound        string  // which roof that is: compute or memory
	Library      string
	Ratio        float64 // the yardstick's median over ours: above 1 we are faster; 0 without one
	Row          result.Row
}

// Kernels are the timed rows of a file, in its order.
func Kernels(f *result.File) []Kernel {
	compute, memory := roofs(f)
	var all []Kernel
	for _, r := range f.Rows {
		op, _, found := strings.Cut(r.Name, "/")
		if !found || len(r.Seconds) == 0 {
			continue
		}
		k := Kernel{Name: r.Name, Op: op, Cache: r.Params["cache"], Variant: r.Params["variant"], Summary: r.Summary(), Row: r}
		if k.Variant != "" && k.Variant != "auto" {
			k.Name += ", kernels of " + k.Variant
		}
		if w := r.Params["method"]; w != "" {
			k.Name += ", weights in " + strings.ToUpper(w)
		}
		k.FLOPs, k.Bytes = r.FLOPs/k.Median, r.Bytes/k.Median
		if r.Bytes > 0 {
			k.Intensity = r.FLOPs / r.Bytes
		}
		k.Roof, k.Bound = nearest(k.FLOPs, k.Bytes, compute, memory)
		if y := r.Yardstick; y != nil && len(y.Seconds) > 0 {
			k.Library, k.Ratio = y.Library, stat.Summarize(y.Seconds).Median/k.Median
		}
		all = append(all, k)
	}
	return all
}

// roofs are a file's measured peaks, FLOPs and bytes a second; 0 where they were not measured.
func roofs(f *result.File) (compute, memory float64) {
	for _, name := range []string{result.CopyRoof, result.ReadRoof} {
		if r, ok := f.Find(name); ok {
			memory = max(memory, r.Rate())
		}
	}
	if r, ok := f.Find(result.ComputeRoof); ok {
		compute = r.Rate()
	}
	return compute, memory
}

// nearest is how near rates come to the roofs, and to which.
func nearest(flops, bytes, compute, memory float64) (part float64, bound string) {
	if memory > 0 {
		part, bound = bytes/memory, "memory"
	}
	if compute > 0 && flops/compute > part {
		part, bound = flops/compute, "compute"
	}
	return part, bound
}

// Step is a row of training steps with what follows from it.
type Step struct {
	stat.Summary
	Model    string
	Tokens   float64 // a second
	Labels   float64 // tokens trained on a second
	FLOPs    float64 // a second
	MFU      float64 // FLOPs over the measured compute roof; 0 without one
	Sheet    float64 // over the card's datasheet; 0 where the card is not known
	Joules   float64 // a token
	Watts    float64
	Arena    int64
	Process  int64
	Profiled float64 // seconds of a step while it was metered
	Row      result.Row
}

// Steps are the timed steps of a file.
func Steps(f *result.File) []Step {
	compute, _ := roofs(f)
	var all []Step
	for _, r := range f.Rows {
		if r.Name != "step" || len(r.Seconds) == 0 {
			continue
		}
		s := Step{Summary: r.Summary(), Model: r.Params["model"], Row: r}
		s.Tokens, s.Labels, s.FLOPs = float64(r.Tokens)/s.Median, float64(r.Labels)/s.Median, r.FLOPs/s.Median
		if compute > 0 {
			s.MFU = s.FLOPs / compute
		}
		if known, ok := CardOf(f.Environment.Card); ok {
			s.Sheet = s.FLOPs / (known.TFLOPs * 1e12)
		}
		if r.Joules > 0 && r.Tokens > 0 {
			s.Joules, s.Watts = r.Joules/float64(r.Tokens), r.Joules/s.Mean
		}
		s.Arena, s.Process = memoryOf(r)
		for _, o := range r.Ops {
			s.Profiled += o.Seconds
		}
		all = append(all, s)
	}
	return all
}

// memoryOf is the arena and the process of a row.
func memoryOf(r result.Row) (arena, process int64) {
	for _, m := range r.Memory {
		switch m.Category {
		case result.MemoryArena:
			arena = m.Planned
		case result.MemoryProcess:
			process = m.Measured
		}
	}
	return arena, process
}

// byOp adds up a step's ops of one name and phase.
func byOp(all []result.Op) []result.Op {
	var sums []result.Op
	at := map[string]int{}
	for _, o := range all {
		key := o.Phase + " " + o.Name
		i, ok := at[key]
		if !ok {
			at[key] = len(sums)
			o.Shape = ""
			sums = append(sums, o)
			continue
		}
		s := &sums[i]
		s.Calls, s.Seconds, s.FLOPs, s.Bytes = s.Calls+o.Calls, s.Seconds+o.Seconds, s.FLOPs+o.FLOPs, s.Bytes+o.Bytes
	}
	return sums
}

// byPhase adds up the seconds of a step by phase, in order, the gaps last.
func byPhase(all []result.Op) []result.Op {
	var sums []result.Op
	for _, o := range all {
		name := cmp.Or(o.Phase, o.Name)
		i := slices.IndexFunc(sums, func(s result.Op) bool { return s.Name == name })
		if i < 0 {
			i = len(sums)
			sums = append(sums, result.Op{Name: name})
		}
		sums[i].Calls += o.Calls
		sums[i].Seconds += o.Seconds
		sums[i].FLOPs += o.FLOPs
		sums[i].Bytes += o.Bytes
	}
	return sums
}

func geomean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += math.Log(x)
	}
	return math.Exp(sum / float64(len(v)))
}
