package report

import (
	"cmp"
	"slices"

	"qlora/bench/result"
)

// budget24 is what a process may hold on a card of 24 GB: such a card offers about 23.5 GiB before the context.
const budget24 = 23 << 30

// latest is what a page shows in detail: the newest of each kind, of one device.
type latest struct {
	device                                string
	kernels, stepFile, vram, decode, jobs *result.File
	peers                                 *result.File
	step                                  *result.Row // with its ops
	history                               []*result.File
}

// newestOf picks the device of the newest file that is complete as a document, a card's before a processor's, and its
// newest results.
func newestOf(files []*result.File) latest {
	var l latest
	rank := func(f *result.File) int {
		n := 0
		if f.Schema == result.Schema {
			n += 2
		}
		if f.Environment.Card != nil {
			n++
		}
		return n
	}
	best := -1
	for _, f := range files {
		if r := rank(f); r >= best && f.Environment.Device() != "" && (f.Schema == result.Schema || f.Kind == result.Step || f.Kind == result.Kernels) {
			best, l.device = r, f.Environment.Device()
		}
	}
	for _, f := range files {
		if f.Environment.Device() != l.device {
			continue
		}
		l.history = append(l.history, f)
		switch {
		case f.Kind == result.Kernels && supersedes(f, l.kernels):
			l.kernels = f
		case f.Kind == result.VRAM:
			l.vram = f
		case f.Kind == result.Decode:
			l.decode = f
		case f.Kind == result.Job:
			l.jobs = f
		case f.Kind == result.Peers:
			l.peers = f
		case f.Kind == result.Step && len(Steps(f)) > 0 && supersedes(f, l.stepFile):
			l.stepFile = f
		}
	}
	if l.stepFile != nil {
		for i, r := range l.stepFile.Rows {
			if len(r.Ops) > 0 && l.step == nil {
				l.step = &l.stepFile.Rows[i]
			}
		}
	}
	return l
}

// supersedes says that f is shown in place of an older file: it is not a few rows beside many.
func supersedes(f, old *result.File) bool {
	return old == nil || f.Schema > old.Schema || f.Schema == old.Schema && len(f.Rows) >= len(old.Rows)/2
}

// Stack is the memory of a run in parts that lie in its arena side by side, and what the process holds beside it.
type Stack struct {
	Name   string
	Parts  []Part
	Budget int64
}

// Part is a piece of a stack.
type Part struct {
	Name   string
	GiB    float64
	Colour int
}

// Total is the height of the stack.
func (s Stack) Total() float64 {
	sum := 0.0
	for _, p := range s.Parts {
		sum += p.GiB
	}
	return sum
}

// memoryNames are the parts in order, as they are stacked and coloured.
var memoryNames = []string{"weights", "adapter and optimizer", "activations", "workspace and input", "beside the arena"}

var memoryParts = map[string]int{"weights": 0, "lora": 1, "gradients": 1, "optimizer": 1, "activations": 2, "kv cache": 2, "workspace": 3, "input, output": 3}

// memoryStacks are those of a file's steps. Categories share places in the arena; what they add up to beyond it is taken
// from the activations, which are what makes room for others.
func memoryStacks(f *result.File) []Stack {
	var all []Stack
	if f == nil {
		return nil
	}
	for _, r := range f.Rows {
		arena, process := memoryOf(r)
		if r.Name != "step" && r.Name != "vram" || arena == 0 {
			continue
		}
		var bytes [5]int64
		sum := int64(0)
		for _, m := range r.Memory {
			if i, ok := memoryParts[m.Category]; ok {
				bytes[i] += m.Planned
				sum += m.Planned
			}
		}
		bytes[2] -= min(max(sum-arena, 0), bytes[2])
		bytes[4] = max(process-arena, 0)
		s := Stack{Name: model(cmp.Or(r.Params["model"], r.Params["run"])) + ", " + method(r) + ", " + shapeText(r), Budget: r.Budget}
		for i, b := range bytes {
			if b > 0 {
				s.Parts = append(s.Parts, Part{memoryNames[i], float64(b) / (1 << 30), i})
			}
		}
		if len(s.Parts) == 0 { // schema 1 tells the arena alone
			s.Parts = []Part{{"arena", float64(arena) / (1 << 30), 2}}
		}
		all = append(all, s)
	}
	return slices.Clip(all)
}
