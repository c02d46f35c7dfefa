//go:build cuda

// Package nvml asks NVIDIA's management library about a card: what it is, and how it is doing while a benchmark runs.
//
// The library comes with the driver and is opened when asked for. What a card or a container does not tell is listed in
// Missing and left at zero: a figure is never made up.
package nvml

import (
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Facts are what does not change while a program runs.
type Facts struct {
	Name          string   `json:"name"`
	UUID          string   `json:"uuid"`
	Driver        string   `json:"driver"`
	Capability    string   `json:"capability"`      // "9.0"
	MemoryTotal   uint64   `json:"memory_total"`    // bytes
	PowerLimitW   float64  `json:"power_limit_w"`   // in force
	PowerDefaultW float64  `json:"power_default_w"` // of the card as it is sold
	SMClockMax    uint32   `json:"sm_clock_max_mhz"`
	MemClockMax   uint32   `json:"mem_clock_max_mhz"`
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
		UUID:          ask(&a, "uuid", d.GetUUID),
		Driver:        ask(&a, "driver", p.lib.SystemGetDriverVersion),
		MemoryTotal:   ask(&a, "memory", d.GetMemoryInfo).Total,
		PowerLimitW:   float64(ask(&a, "power limit", d.GetEnforcedPowerLimit)) * milli,
		PowerDefaultW: float64(ask(&a, "default power limit", d.GetPowerManagementDefaultLimit)) * milli,
		SMClockMax:    ask(&a, "largest SM clock", func() (uint32, nvml.Return) { return d.GetMaxClockInfo(nvml.CLOCK_SM) }),
		MemClockMax:   ask(&a, "largest memory clock", func() (uint32, nvml.Return) { return d.GetMaxClockInfo(nvml.CLOCK_MEM) }),
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
	var a asker
	d := p.device
	memory := ask(&a, "memory", d.GetMemoryInfo)
	reading := Reading{
		MemoryFree:   memory.Free,
		MemoryUsed:   memory.Used,
		SMClock:      ask(&a, "SM clock", func() (uint32, nvml.Return) { return d.GetClockInfo(nvml.CLOCK_SM) }),
		MemClock:     ask(&a, "memory clock", func() (uint32, nvml.Return) { return d.GetClockInfo(nvml.CLOCK_MEM) }),
		TemperatureC: ask(&a, "temperature", func() (uint32, nvml.Return) { return d.GetTemperature(nvml.TEMPERATURE_GPU) }),
		PowerW:       float64(ask(&a, "power", d.GetPowerUsage)) * milli,
		EnergyJ:      float64(ask(&a, "energy", d.GetTotalEnergyConsumption)) * milli,
		Utilization:  ask(&a, "utilization", d.GetUtilizationRates).Gpu,
		Throttle:     throttle(ask(&a, "throttle reasons", d.GetCurrentClocksEventReasons)),
		ECCErrors: ask(&a, "ECC errors", func() (uint64, nvml.Return) {
			return d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
		}),
	}
	reading.Missing = a.missing
	return reading
}

// reasons are the bits of NVML's clock event reasons, in words. A clock that someone set is no throttle, but what it
// limits is; an idle card is neither.
var reasons = []struct {
	bit  uint64
	name string
}{
	{nvml.ClocksEventReasonApplicationsClocksSetting, "clocks set by hand"},
	{nvml.ClocksEventReasonSwPowerCap, "power cap"},
	{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown"},
	{nvml.ClocksEventReasonSyncBoost, "sync boost"},
	{nvml.ClocksEventReasonSwThermalSlowdown, "heat (driver)"},
	{nvml.ClocksThrottleReasonHwThermalSlowdown, "heat (hardware)"},
	{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"},
	{nvml.ClocksEventReasonDisplayClockSetting, "display"},
	{nvml.ClocksEventReasonBoardLimit, "board limit"},
	{nvml.ClocksEventReasonReliability, "reliability"},
}

func throttle(bits uint64) []string {
	var names []string
	for _, r := range reasons {
		if bits&r.bit != 0 {
			names = append(names, r.name)
			bits &^= r.bit
		}
	}
	if bits &^= nvml.ClocksEventReasonGpuIdle; bits != 0 {
		names = append(names, fmt.Sprintf("reason %#x", bits))
	}
	return names
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
