package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// doctorCmd is `qlora doctor`.
type doctorCmd struct {
	OutputDir string `name:"output_dir" group:"Checks" default:"output" placeholder:"DIR" help:"Where training is to write: its disk is checked."`
	JSON      bool   `name:"json" group:"Report" help:"Print one JSON object."`
}

func (doctorCmd) Help() string {
	return `Exit status 1 means that this machine cannot train at all; what is merely slow is a warning.

Examples
  qlora doctor
  qlora doctor --output_dir /data/output --json`
}

// verdict is the outcome of one check.
type verdict string

const (
	good    verdict = "ok"
	warning verdict = "warning" // works, but slower or smaller than it could
	bad     verdict = "bad"     // training cannot run
)

// finding is what one check found. Fix says what to do unless the verdict is good.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Found   string  `json:"found"`
	Fix     string  `json:"fix,omitempty"`
}

func (c *doctorCmd) Run(e *env) error {
	findings := []finding{checkCPU(), checkKernels(), checkCores(), checkMemory()}
	findings = append(append(findings, checkCUDA()...), checkOutput(c.OutputDir))
	failed := false
	for _, f := range findings {
		failed = failed || f.Verdict == bad
	}
	if c.JSON {
		err := writeJSON(e, struct {
			CanTrain bool      `json:"can_train"`
			Findings []finding `json:"findings"`
		}{!failed, findings})
		if err != nil {
			return err
		}
	} else if err := printFindings(e, findings); err != nil {
		return err
	}
	if failed {
		return fmt.Errorf("training cannot run on this machine: %w", errCheckFailed)
	}
	return nil
}

func printFindings(e *env, findings []finding) error {
	t := newTable(e, "check", "", "found")
	for _, f := range findings {
		if err := t.Append(f.Check, string(f.Verdict), f.Found); err != nil {
			return err
		}
	}
	if err := t.Render(); err != nil {
		return err
	}
	for _, f := range findings {
		if f.Fix != "" {
			fmt.Fprintf(e.out, "%s: %s\n", f.Check, f.Fix)
		}
	}
	return nil
}

// checkCPU names the processor and the features that matter here.
func checkCPU() finding {
	var features string
	for _, f := range []struct {
		name string
		has  bool
	}{{"AVX2", cpu.X86.HasAVX2}, {"FMA", cpu.X86.HasFMA}, {"AVX-512F", cpu.X86.HasAVX512F}, {"AVX-512BW", cpu.X86.HasAVX512BW},
		{"AVX-512VL", cpu.X86.HasAVX512VL}, {"AVX-512BF16", cpu.X86.HasAVX512BF16}} {
		if f.has {
			features += ", " + f.name
		}
	}
	return finding{Check: "processor", Verdict: good, Found: processorName() + features}
}

// checkKernels names the matrix kernels that the processor gets.
func checkKernels() finding {
	f := finding{Check: "kernels", Verdict: good, Found: kernelVariant()}
	if !cpu.X86.HasAVX2 || !cpu.X86.HasFMA {
		f.Verdict = warning
		f.Fix = "the plain Go kernels are many times slower: use a processor with AVX2 and FMA, or a card"
	}
	return f
}

func checkCores() finding {
	n := runtime.GOMAXPROCS(0)
	f := finding{Check: "cores", Verdict: good, Found: fmt.Sprintf("%d used of %d", n, runtime.NumCPU())}
	if n < runtime.NumCPU() {
		f.Verdict, f.Fix = warning, "unset GOMAXPROCS to use all of them"
	}
	return f
}

// leastMemory is what a 135M model needs to train in; comfortMemory what a 0.5B model does.
const (
	leastMemory   = 1 << 30
	comfortMemory = 4 << 30
)

func checkMemory() finding {
	total, free, err := memory()
	f := finding{Check: "memory", Verdict: good, Found: fmt.Sprintf("%s free of %s", gib(free), gib(total))}
	switch {
	case err != nil:
		return finding{"memory", warning, "unknown: " + err.Error(), "see that some GiB are free"}
	case free < leastMemory:
		f.Verdict, f.Fix = bad, "the smallest models need 1 GiB: close other programs"
	case free < comfortMemory:
		f.Verdict, f.Fix = warning, "enough for a model of about 135M parameters; 0.5B needs some 4 GiB"
	}
	return f
}

// leastDisk holds a few checkpoints of a small adapter.
const leastDisk = 1 << 28

// checkOutput looks at the disk of the output folder, or of the nearest folder above it that is there.
func checkOutput(dir string) finding {
	f := finding{Check: "output", Verdict: good}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return finding{"output", bad, err.Error(), "give an absolute path to --output_dir"}
	}
	at := abs
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return finding{"output", bad, at + " is not a folder", "choose another --output_dir"}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) || at == filepath.Dir(at) {
			return finding{"output", bad, err.Error(), "choose another --output_dir"}
		}
		at = filepath.Dir(at)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(at, &disk); err != nil {
		return finding{"output", bad, fmt.Sprintf("%s: %v", at, err), "choose another --output_dir"}
	}
	free := disk.Bavail * uint64(disk.Bsize)
	f.Found = fmt.Sprintf("%s, %s free", abs, gib(free))
	switch {
	case unix.Access(at, unix.W_OK) != nil:
		f.Verdict, f.Fix = bad, at+" is not writable: choose another --output_dir"
	case free < leastDisk:
		f.Verdict, f.Fix = bad, "checkpoints need room: free some of the disk, or choose another --output_dir"
	}
	return f
}

func gib(bytes uint64) string {
	return strconv.FormatFloat(float64(bytes)/(1<<30), 'f', 1, 64) + " GiB"
}
