//go:build cuda

package nvml

import (
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
)

func TestThrottle(t *testing.T) {
	for _, c := range []struct {
		bits       uint64
		want, void []string
	}{
		{0, nil, nil},
		{nvml.ClocksEventReasonGpuIdle, nil, nil},
		{nvml.ClocksEventReasonSwPowerCap, []string{"power cap"}, nil},
		{nvml.ClocksEventReasonSwPowerCap | nvml.ClocksThrottleReasonHwThermalSlowdown, []string{"power cap", "heat (hardware)"}, []string{"heat (hardware)"}},
		{nvml.ClocksThrottleReasonHwThermalSlowdown | nvml.ClocksThrottleReasonHwSlowdown, []string{"hardware slowdown", "heat (hardware)"}, []string{"hardware slowdown", "heat (hardware)"}},
		{1 << 20, []string{"reason 0x100000"}, nil},
	} {
		if got, void := throttle(c.bits); !slices.Equal(got, c.want) || !slices.Equal(void, c.void) {
			t.Errorf("throttle(%#x) = %q, %q; want %q, %q", c.bits, got, void, c.want, c.void)
		}
	}
}

// told is a query that is answered.
func told[T any](v T) func() (T, nvml.Return) {
	return func() (T, nvml.Return) { return v, nvml.SUCCESS }
}

// untold is one that is not, as in many containers.
func untold[T any]() (none T, r nvml.Return) { return none, nvml.ERROR_NOT_SUPPORTED }

func clock(sm, memory uint32) func(nvml.ClockType) (uint32, nvml.Return) {
	return func(which nvml.ClockType) (uint32, nvml.Return) {
		return map[nvml.ClockType]uint32{nvml.CLOCK_SM: sm, nvml.CLOCK_MEM: memory}[which], nvml.SUCCESS
	}
}

func TestProbe(t *testing.T) {
	card := &mock.Device{
		GetNameFunc: told("NVIDIA H200"), GetUUIDFunc: told("GPU-1"), GetMemoryInfoFunc: told(nvml.Memory{Total: 150, Free: 100, Used: 50}),
		GetEnforcedPowerLimitFunc: told(uint32(700_000)), GetPowerManagementDefaultLimitFunc: untold[uint32],
		GetMaxClockInfoFunc: clock(1980, 3201), GetClockInfoFunc: clock(1500, 3201),
		GetCurrPcieLinkGenerationFunc: told(1), GetMaxPcieLinkGenerationFunc: told(5), GetCurrPcieLinkWidthFunc: told(16), GetMaxPcieLinkWidthFunc: told(16),
		GetCudaComputeCapabilityFunc:     func() (int, int, nvml.Return) { return 9, 0, nvml.SUCCESS },
		GetEccModeFunc:                   func() (nvml.EnableState, nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, 0, nvml.SUCCESS },
		GetMigModeFunc:                   func() (int, int, nvml.Return) { return 0, 0, nvml.SUCCESS },
		GetTemperatureFunc:               func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 44, nvml.SUCCESS },
		GetPowerUsageFunc:                told(uint32(123_500)),
		GetTotalEnergyConsumptionFunc:    told(uint64(9_000)),
		GetUtilizationRatesFunc:          told(nvml.Utilization{Gpu: 97}),
		GetCurrentClocksEventReasonsFunc: told(uint64(nvml.ClocksEventReasonSwPowerCap)),
		GetApplicationsClockFunc:         clock(1755, 3201),
		GetTemperatureThresholdFunc:      func(nvml.TemperatureThresholds) (uint32, nvml.Return) { return 92, nvml.SUCCESS },
		GetComputeRunningProcessesFunc:   told([]nvml.ProcessInfo{{Pid: 7, UsedGpuMemory: 1 << 30}, {Pid: 8, UsedGpuMemory: 1<<64 - 1}}),
		GetTotalEccErrorsFunc:            func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 2, nvml.SUCCESS },
	}
	lib := &mock.Interface{
		InitFunc: func() nvml.Return { return nvml.SUCCESS }, ShutdownFunc: func() nvml.Return { return nvml.SUCCESS },
		SystemGetDriverVersionFunc: told("580.1"),
		DeviceGetHandleByPciBusIdFunc: func(pci string) (nvml.Device, nvml.Return) {
			if pci != "00000000:3b:00.0" {
				return nil, nvml.ERROR_NOT_FOUND
			}
			return card, nvml.SUCCESS
		},
	}
	if _, err := open(lib, "00000000:00:00.0"); err == nil || len(lib.ShutdownCalls()) != 1 {
		t.Errorf("a card that is not there: %v, closed %d times", err, len(lib.ShutdownCalls()))
	}
	p, err := open(lib, "00000000:3b:00.0")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Facts().String(), "NVIDIA H200, driver 580.1, 700 W, SM clock up to 1980 MHz, ECC on, PCIe 5.0 x16, not told: default power limit (ERROR_NOT_SUPPORTED)"; got != want {
		t.Errorf("facts: %s\nwant:  %s", got, want)
	}
	facts := p.Facts()
	if len(facts.ID) != 16 || strings.Contains(facts.ID, "GPU-1") || facts.SMClockLimit != 1755 || facts.SlowdownTempC != 92 {
		t.Errorf("facts: %+v", facts)
	}
	if all, ok := p.Processes(); !ok || !slices.Equal(all, []Process{{7, 1 << 30}, {8, 0}}) {
		t.Errorf("processes: %v, %v", all, ok)
	}
	now := p.Read()
	if now.PowerW != 123.5 || now.EnergyJ != 9 || now.SMClock != 1500 || now.TemperatureC != 44 || now.ECCErrors != 2 || now.Utilization != 97 ||
		!slices.Equal(now.Throttle, []string{"power cap"}) || now.MemoryFree != 100 || len(now.Missing) != 0 {
		t.Errorf("reading: %+v", now)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
