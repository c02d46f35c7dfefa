//go:build cuda

// Package nvml asks NVIDIA's management library about a card: what it is, and how it is doing while a benchmark runs.
//
// The library comes with the driver and is opened when asked for. What a card or a container does not tell is listed in
// Missing and left at zero: a figure is never made up.
package nvml

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Facts are what does not change while a program runs.
type Facts struct {
	Name          string   `json:"name"`
	ID            string   `json:"id"` // a hash of the UUID, which tells cards apart and belongs in no file
	Driver        string   `json:"driver"`
	Capability    string   `json:"capability"`      // "9.0"
	MemoryTotal   uint64   `json:"memory_total"`    // bytes
	PowerLimitW   float64  `json:"power_limit_w"`   // in force
	PowerDefaultW float64  `json:"power_default_w"` // of the card as it is sold
	SMClockMax    uint32   `json:"sm_clock_max_mhz"`
	SMClockLimit  uint32   `json:"sm_clock_limit_mhz"` // of applications: the default, or what someone set
	MemClockMax   uint32   `json:"mem_clock_max_mhz"`
	SlowdownTempC uint32   `json:"slowdown_temperature_c"` // at which the card slows down by itself
	ECC           bool     `json:"ecc"`
	MIG           bool     `json:"mig"`
	PCIeGen       int      `json:"pcie_gen"` // of the link now: idle cards lower it
	PCIeGenMax    int      `json:"pcie_gen_max"`
	PCIeWidth     int      `json:"pcie_width"`
	PCIeWidthMax  int      `json:"pcie_width_max"`
	Missing       []string `json:"missing,omitempty"`
}

// Reading is the state of a moment.
type Reading struct {
	MemoryFree   uint64   `json:"memory_free"` // bytes
	MemoryUsed   uint64   `json:"memory_used"`
	SMClock      uint32   `json:"sm_clock_mhz"`
	MemClock     uint32   `json:"mem_clock_mhz"`
	TemperatureC uint32   `json:"temperature_c"`
	PowerW       float64  `json:"power_w"`
	EnergyJ      float64  `json:"energy_j"` // since the driver was loaded: differences count
	Utilization  uint32   `json:"utilization_percent"`
	Throttle     []string `json:"throttle,omitempty"` // why clocks are below the most that was asked for
	Void         []string `json:"void,omitempty"`     // those of Throttle under which a time says nothing of the card: heat, faults of its power
	ECCErrors    uint64   `json:"ecc_errors"`         // uncorrected, since the driver was loaded
	Missing      []string `json:"missing,omitempty"`
}

// Probe watches one card.
type Probe struct {
	lib    nvml.Interface
	device nvml.Device
}

// Open opens the library and the card at a PCI address (domain:bus:device.function), as cuda.Card has it: its own order
// of cards is not CUDA's.
func Open(pci string) (*Probe, error) { return open(nvml.New(), pci) }

func open(lib nvml.Interface, pci string) (*Probe, error) {
	if r := lib.Init(); r != nvml.SUCCESS {
		return nil, fmt.Errorf("nvml: the library does not open (it comes with the driver; containers need the capability \"utility\"): %v", r)
	}
	device, r := lib.DeviceGetHandleByPciBusId(pci)
	if r != nvml.SUCCESS {
		_ = lib.Shutdown()
		return nil, fmt.Errorf("nvml: the card at %s: %v", pci, r)
	}
	return &Probe{lib, device}, nil
}

// Close lets go of the library.
func (p *Probe) Close() error {
	if r := p.lib.Shutdown(); r != nvml.SUCCESS {
		return fmt.Errorf("nvml: %v", r)
	}
	return nil
}

// asker collects the names of what was not told.
type asker struct{ missing []string }

// ask returns what a query told, and notes its name where it told nothing.
func ask[T any](a *asker, name string, query func() (T, nvml.Return)) T {
	v, r := query()
	if r != nvml.SUCCESS {
		a.missing = append(a.missing, fmt.Sprintf("%s (%v)", name, r))
		var none T
		return none
	}
	return v
}

const milli = 1e-3

// Facts asks what the card is.
func (p *Probe) Facts() Facts {
	var a asker
	d := p.device
	f := Facts{
		Name:          ask(&a, "name", d.GetName),
		ID:            hashed(ask(&a, "uuid", d.GetUUID)),
		Driver:        ask(&a, "driver", p.lib.SystemGetDriverVersion),
		MemoryTotal:   ask(&a, "memory", d.GetMemoryInfo).Total,
		PowerLimitW:   float64(ask(&a, "power limit", d.GetEnforcedPowerLimit)) * milli,
		PowerDefaultW: float64(ask(&a, "default power limit", d.GetPowerManagementDefaultLimit)) * milli,
		SMClockMax:    ask(&a, "largest SM clock", func() (uint32, nvml.Return) { return d.GetMaxClockInfo(nvml.CLOCK_SM) }),
		SMClockLimit:  ask(&a, "SM clock of applications", func() (uint32, nvml.Return) { return d.GetApplicationsClock(nvml.CLOCK_SM) }),
		MemClockMax:   ask(&a, "largest memory clock", func() (uint32, nvml.Return) { return d.GetMaxClockInfo(nvml.CLOCK_MEM) }),
		SlowdownTempC: ask(&a, "slowdown temperature", func() (uint32, nvml.Return) { return d.GetTemperatureThreshold(nvml.TEMPERATURE_THRESHOLD_SLOWDOWN) }),
		PCIeGen:       ask(&a, "PCIe generation", d.GetCurrPcieLinkGeneration),
		PCIeGenMax:    ask(&a, "largest PCIe generation", d.GetMaxPcieLinkGeneration),
		PCIeWidth:     ask(&a, "PCIe width", d.GetCurrPcieLinkWidth),
		PCIeWidthMax:  ask(&a, "largest PCIe width", d.GetMaxPcieLinkWidth),
	}
	f.Capability = ask(&a, "capability", func() (string, nvml.Return) {
		major, minor, r := d.GetCudaComputeCapability()
		return fmt.Sprintf("%d.%d", major, minor), r
	})
	f.ECC = ask(&a, "ECC", func() (bool, nvml.Return) {
		now, _, r := d.GetEccMode()
		return now == nvml.FEATURE_ENABLED, r
	})
	f.MIG = ask(&a, "MIG", func() (bool, nvml.Return) {
		now, _, r := d.GetMigMode()
		return now == nvml.DEVICE_MIG_ENABLE, r
	})
	f.Missing = a.missing
	return f
}

// Read asks how the card is doing now.
func (p *Probe) Read() Reading {
	a, reading := p.pulse()
	d := p.device
	memory := ask(&a, "memory", d.GetMemoryInfo)
	reading.MemoryFree, reading.MemoryUsed = memory.Free, memory.Used
	reading.Utilization = ask(&a, "utilization", d.GetUtilizationRates).Gpu
	reading.ECCErrors = ask(&a, "ECC errors", func() (uint64, nvml.Return) {
		return d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	})
	reading.Missing = a.missing
	return reading
}

// Pulse asks for what changes under a benchmark alone: clocks, power, energy, heat, and what throttles. Each question to the
// driver takes its time.
func (p *Probe) Pulse() Reading {
	a, reading := p.pulse()
	reading.Missing = a.missing
	return reading
}

func (p *Probe) pulse() (a asker, r Reading) {
	d := p.device
	r = Reading{
		SMClock:      ask(&a, "SM clock", func() (uint32, nvml.Return) { return d.GetClockInfo(nvml.CLOCK_SM) }),
		MemClock:     ask(&a, "memory clock", func() (uint32, nvml.Return) { return d.GetClockInfo(nvml.CLOCK_MEM) }),
		TemperatureC: ask(&a, "temperature", func() (uint32, nvml.Return) { return d.GetTemperature(nvml.TEMPERATURE_GPU) }),
		PowerW:       float64(ask(&a, "power", d.GetPowerUsage)) * milli,
		EnergyJ:      float64(ask(&a, "energy", d.GetTotalEnergyConsumption)) * milli,
	}
	r.Throttle, r.Void = throttle(ask(&a, "throttle reasons", d.GetCurrentClocksEventReasons))
	return a, r
}

// reasons are the bits of NVML's clock event reasons, in words. A clock that someone set is no throttle, but what it
// limits is; an idle card is neither. The power cap is how a card runs that does much: what it does under it is its speed.
var reasons = []struct {
	bit  uint64
	name string
	void bool
}{
	{nvml.ClocksEventReasonApplicationsClocksSetting, "clocks set by hand", false},
	{nvml.ClocksEventReasonSwPowerCap, "power cap", false},
	{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown", true},
	{nvml.ClocksEventReasonSyncBoost, "sync boost", false},
	{nvml.ClocksEventReasonSwThermalSlowdown, "heat (driver)", true},
	{nvml.ClocksThrottleReasonHwThermalSlowdown, "heat (hardware)", true},
	{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "power brake", true},
	{nvml.ClocksEventReasonDisplayClockSetting, "display", false},
	{nvml.ClocksEventReasonBoardLimit, "board limit", true},
	{nvml.ClocksEventReasonReliability, "reliability", true},
}

func throttle(bits uint64) (names, void []string) {
	for _, r := range reasons {
		if bits&r.bit != 0 {
			names = append(names, r.name)
			bits &^= r.bit
			if r.void {
				void = append(void, r.name)
			}
		}
	}
	if bits &^= nvml.ClocksEventReasonGpuIdle; bits != 0 {
		names = append(names, fmt.Sprintf("reason %#x", bits))
	}
	return names, void
}

func hashed(uuid string) string {
	if uuid == "" {
		return ""
	}
	return fmt.Sprintf("%.8x", sha256.Sum256([]byte(uuid)))
}

// Process is a program on the card.
type Process struct {
	PID   int
	Bytes int64 // it holds there; 0 where it is not told
}

// Processes lists the programs that compute on the card. ok is false where NVML does not say. In a container numbers may
// be those of the machine around it.
func (p *Probe) Processes() (all []Process, ok bool) {
	list, r := p.device.GetComputeRunningProcesses()
	if r != nvml.SUCCESS {
		return nil, false
	}
	for _, one := range list {
		q := Process{PID: int(one.Pid)}
		if one.UsedGpuMemory < 1<<50 { // all bits set where it cannot be told
			q.Bytes = int64(one.UsedGpuMemory)
		}
		all = append(all, q)
	}
	return all, true
}

// String is the facts in a line: "NVIDIA H200, driver 580.82, 700 W, 1980 MHz, ECC on, PCIe 5.0 x16".
func (f Facts) String() string {
	ecc := "off"
	if f.ECC {
		ecc = "on"
	}
	parts := []string{f.Name, "driver " + f.Driver, fmt.Sprintf("%.0f W", f.PowerLimitW), fmt.Sprintf("SM clock up to %d MHz", f.SMClockMax),
		"ECC " + ecc, fmt.Sprintf("PCIe %d.0 x%d", f.PCIeGenMax, f.PCIeWidth)}
	if len(f.Missing) > 0 {
		parts = append(parts, "not told: "+strings.Join(f.Missing, ", "))
	}
	return strings.Join(parts, ", ")
}
