// Package result is the files of the harness: what was measured, in raw samples, beside everything it depends on.
//
// A file is one JSON document of one run. Its schema has a number; older ones are read and brought up to date (read.go).
// Files lie in results/<card>/<date>-<commit>/ and are added to, never changed (folder.go).
package result

import (
	"math"
	"strconv"
	"time"

	"qlora/bench/stat"
)

// Schema is the version of the files written here.
//
//	1  lines of JSON, a time a line, in microseconds, without samples and environment: what results/ has from before the harness
//	2  one document: environment, roofs, rows of raw samples in seconds
const Schema = 2

// Kind says what a file measures.
type Kind string

const (
	Kernels Kind = "kernels" // ops, one by one
	Step    Kind = "step"    // an optimizer step
	VRAM    Kind = "vram"    // a grid of memory needs
	Decode  Kind = "decode"  // tokens one by one
	Job     Kind = "job"     // a whole fine-tuning, end to end
	Peers   Kind = "peers"   // steps of other trainers, and ours, in one run
	Quick   Kind = "quick"   // a minute of everything; not kept
)

// File is one run of the harness.
type File struct {
	Schema      int         `json:"schema"`
	Kind        Kind        `json:"kind"`
	Time        time.Time   `json:"time"` // when it began, UTC
	Environment Environment `json:"environment"`
	Watch       Watch       `json:"watch"`
	Roofs       []Roof      `json:"roofs,omitempty"`
	Rows        []Row       `json:"rows"`
	Notes       []string    `json:"notes,omitempty"` // what a reader must know: what was left out, and why

	Path string `json:"-"` // where it was read from
}

// Environment is all that times depend on beside the code.
type Environment struct {
	Backend string   `json:"backend"` // cuda or cpu
	Kernels string   `json:"kernels"` // architectures, or the instruction set of a processor
	Card    *Card    `json:"card,omitempty"`
	Host    Host     `json:"host"`
	Program Program  `json:"program"`
	Missing []string `json:"missing,omitempty"` // what could not be asked
}

// Card is a GPU as its driver and NVML describe it. Zero and empty: not told, and named in Missing.
type Card struct {
	Name          string  `json:"name"`
	ID            string  `json:"id"` // hash of its UUID: tells two cards apart, and not whose they are
	Capability    string  `json:"capability"`
	Driver        string  `json:"driver"`
	CUDA          string  `json:"cuda"` // of the runtime inside the program
	Memory        int64   `json:"memory"`
	Processors    int     `json:"multiprocessors"`
	L2            int64   `json:"l2"`
	SMClockMax    int     `json:"sm_clock_max_mhz"`
	SMClockLimit  int     `json:"sm_clock_limit_mhz"` // asked for by hand, or the default of applications
	MemClockMax   int     `json:"mem_clock_max_mhz"`
	MemClock      int     `json:"mem_clock_mhz"` // under load
	PowerLimit    float64 `json:"power_limit_w"`
	PowerDefault  float64 `json:"power_default_w"`
	ECC           bool    `json:"ecc"`
	MIG           bool    `json:"mig"`
	PCIeGen       int     `json:"pcie_gen"`
	PCIeGenMax    int     `json:"pcie_gen_max"`
	PCIeWidth     int     `json:"pcie_width"`
	PCIeWidthMax  int     `json:"pcie_width_max"`
	SlowdownTempC int     `json:"slowdown_temperature_c"`
}

// Host is the machine around the card, or the processor that computes.
type Host struct {
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Threads int    `json:"threads"` // GOMAXPROCS
	Memory  int64  `json:"memory"`
	System  string `json:"system"` // kernel and architecture
}

// Program is the binary that measured.
type Program struct {
	Commit string   `json:"commit"`
	Dirty  bool     `json:"dirty"` // built from files that differ from the commit
	Go     string   `json:"go"`
	Args   []string `json:"args"`
}

// Watch is what the sensors said during the run, read in the background.
type Watch struct {
	Readings  int                `json:"readings"`
	SMClock   Range              `json:"sm_clock_mhz"`
	MemClock  Range              `json:"mem_clock_mhz"`
	Power     Range              `json:"power_w"`
	TempC     Range              `json:"temperature_c"`
	Throttled map[string]float64 `json:"throttled,omitempty"` // share of the readings, by reason
	Others    []string           `json:"others,omitempty"`    // other processes on the card
}

// Range is the least, the middle and the most of a sensor's readings.
type Range struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// Roof is the most that this device did of one thing, in our own probe of it.
type Roof struct {
	Name  string  `json:"name"` // copy, read, compute
	Unit  string  `json:"unit"` // B/s, FLOP/s
	Row   Row     `json:"row"`
	Power float64 `json:"power_w"` // while it ran
}

// Names of roofs.
const (
	CopyRoof    = "copy"    // bytes read and written, by 16-byte copies
	ReadRoof    = "read"    // bytes read
	ComputeRoof = "compute" // bfloat16 products with float32 sums, operands where no memory limits them
)

// Samples are numbers, written with seven digits.
type Samples []float64

// MarshalJSON writes what is left of a number after rounding to seven digits.
func (s Samples) MarshalJSON() ([]byte, error) {
	b := []byte{'['}
	for i, v := range s {
		if i > 0 {
			b = append(b, ',')
		}
		if math.IsInf(v, 0) || math.IsNaN(v) {
			v = 0
		}
		b = strconv.AppendFloat(b, v, 'g', 7, 64)
	}
	return append(b, ']'), nil
}

// Row is one thing that was timed.
type Row struct {
	Name   string            `json:"name"`
	Params map[string]string `json:"params,omitempty"` // what sets it apart from other rows of the name

	Seconds Samples        `json:"seconds,omitempty"`
	MHz     Samples        `json:"mhz,omitempty"` // of the multiprocessors in each sample; absent where not known
	Cap     string         `json:"cap,omitempty"` // the limit that ended the sampling before the noise was low
	Void    map[string]int `json:"void,omitempty"`

	FLOPs  float64 `json:"flops,omitempty"` // of a sample
	Bytes  float64 `json:"bytes,omitempty"`
	Tokens int     `json:"tokens,omitempty"`
	Labels int     `json:"labels,omitempty"` // tokens trained on
	Joules float64 `json:"joules,omitempty"` // mean of a sample

	Yardstick *Yardstick `json:"yardstick,omitempty"`
	Proof     *Proof     `json:"proof,omitempty"`
	Ops       []Op       `json:"ops,omitempty"`
	Memory    []Memory   `json:"memory,omitempty"`
	Budget    int64      `json:"budget,omitempty"`     // bytes
	KeepsLess []string   `json:"keeps_less,omitempty"` // what is made again or lies in the host's memory, to fit
	Track     []Moment   `json:"track,omitempty"`      // of a long run
	Error     string     `json:"error,omitempty"`      // why there is no time
}

// Yardstick is a library of the vendor at the same work, its samples taken in turn with ours.
type Yardstick struct {
	Library string  `json:"library"` // cuBLAS 13.1
	Seconds Samples `json:"seconds"`
}

// Proof is why the kernel that was timed is believed to be right.
type Proof struct {
	Cases  int    `json:"cases"`  // of the op, held to the float64 oracle before
	Shape  string `json:"shape"`  // what was checked on the shape that was timed
	Digest string `json:"digest"` // of its output
}

// Op is a part of a step.
type Op struct {
	Name    string  `json:"name"`
	Shape   string  `json:"shape,omitempty"`
	Phase   string  `json:"phase"`
	Calls   float64 `json:"calls"` // of a step
	Seconds float64 `json:"seconds"`
	FLOPs   float64 `json:"flops,omitempty"`
	Bytes   float64 `json:"bytes,omitempty"`
}

// Gap is the name of the time between ops: copies, fills, waits for the host.
const Gap = "between ops"

// Memory is a category of a run's memory, in bytes. Measured is 0 where it cannot be told apart.
type Memory struct {
	Category string `json:"category"`
	Planned  int64  `json:"planned"`
	Measured int64  `json:"measured,omitempty"`
}

// Names of memory beside the plan's categories.
const (
	MemoryArena   = "arena"   // the block all buffers lie in, which share places
	MemoryProcess = "process" // all that the process holds on the device
	MemoryHost    = "host"    // pinned in the host's memory
)

// Moment is a stretch of a long run.
type Moment struct {
	At      float64 `json:"at"` // seconds since the start
	Seconds float64 `json:"seconds"`
	SMClock float64 `json:"sm_clock_mhz"`
	Power   float64 `json:"power_w"`
	TempC   float64 `json:"temperature_c"`
}

// Summary is that of the row's seconds; it needs samples.
func (r Row) Summary() stat.Summary { return stat.Summarize(r.Seconds) }

// Key names the row among those of all files.
func (r Row) Key() string {
	if len(r.Params) == 0 {
		return r.Name
	}
	return r.Name + " " + paramsText(r.Params)
}

// Find returns the roof of a name, and whether it was measured.
func (f *File) Find(roof string) (Roof, bool) {
	for _, r := range f.Roofs {
		if r.Name == roof {
			return r, true
		}
	}
	return Roof{}, false
}

// Rate is what the roof came to at its median: bytes or FLOPs a second.
func (r Roof) Rate() float64 {
	if len(r.Row.Seconds) == 0 {
		return 0
	}
	return max(r.Row.FLOPs, r.Row.Bytes) / r.Row.Summary().Median
}
