//go:build cuda

package cuda

/*
#cgo CFLAGS: -I${SRCDIR}/../kernels
#cgo LDFLAGS: -lcuda -ldl -lrt -lpthread -lm
#include <cuda_runtime_api.h>
#include "api.h"

// The stand-in libcuda: 0, or why the driver does not answer.
int qlora_driver_status(void);
const char *qlora_driver_message(void);
*/
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"gorgonia.org/cu"

	"qlora/cuda/nvml"
)

// Unavailable is why no card can be used, and what to do about it.
type Unavailable struct {
	Reason, Fix string
}

func (e *Unavailable) Error() string { return e.Reason + ": " + e.Fix }

// builtFor is the CUDA version of the runtime inside this binary, 1000·major + 10·minor.
const builtFor = int(C.CUDART_VERSION)

// Architectures names what the kernels are compiled for, such as "sm_80 sm_90a".
func Architectures() string { return C.GoString(C.qk_architectures()) }

// Card is what the driver says of a card.
type Card struct {
	Index        int
	Name         string
	Major, Minor int    // compute capability
	Memory       int64  // bytes
	PCI          string // domain:bus:device.function, by which NVML knows it

	Multiprocessors int
}

// Capability is "9.0".
func (c Card) Capability() string { return fmt.Sprintf("%d.%d", c.Major, c.Minor) }

// Usable says whether the kernels of this binary run on the card, and if not, why.
func (c Card) Usable() error {
	if !runsOn(Architectures(), c.Major, c.Minor) {
		return &Unavailable{fmt.Sprintf("%s has compute capability %s, and the kernels are built for %s", c.Name, c.Capability(), Architectures()),
			"build with ARCHS for this card (`make build` on its machine does); cards before 8.0 (Ampere) are not supported"}
	}
	return nil
}

// runsOn says whether machine code for archs runs on a capability: that of the same generation and at most its minor
// number; code for sm_80 brings PTX along that runs on all that came later; "a" is for one capability alone.
func runsOn(archs string, major, minor int) bool {
	for _, arch := range strings.Fields(archs) {
		number, exact := strings.CutSuffix(strings.TrimPrefix(arch, "sm_"), "a")
		var n int
		if _, err := fmt.Sscanf(number, "%d", &n); err != nil {
			continue
		}
		have := 10*major + minor
		switch {
		case exact && n == have, !exact && n/10 == major && n%10 <= minor, arch == "sm_80" && have >= 80:
			return true
		}
	}
	return false
}

// Driver says whether the driver is there and new enough, and its CUDA version.
func Driver() (version int, err error) {
	if status := C.qlora_driver_status(); status != 0 {
		reason := "the NVIDIA driver does not answer: " + C.GoString(C.qlora_driver_message())
		if status == -2 {
			return 0, &Unavailable{reason, "install the NVIDIA driver, in a container start it with the card (docker run --gpus all)"}
		}
		return 0, &Unavailable{reason, "see that nvidia-smi lists a card; CUDA_VISIBLE_DEVICES may hide it; after an update of the driver, restart"}
	}
	if version = cu.Version(); version < builtFor/1000*1000 {
		return version, &Unavailable{fmt.Sprintf("the driver is for CUDA %s, and this binary for %s", versionText(version), versionText(builtFor)),
			"update the NVIDIA driver (580 or newer for CUDA 13)"}
	}
	return version, nil
}

func versionText(v int) string { return fmt.Sprintf("%d.%d", v/1000, v%1000/10) }

// Cards lists the cards that the driver shows to this process.
func Cards() ([]Card, error) {
	if _, err := Driver(); err != nil {
		return nil, err
	}
	n, err := cu.NumDevices()
	if err != nil || n == 0 {
		return nil, &Unavailable{"the driver shows no card", "see that nvidia-smi lists one and CUDA_VISIBLE_DEVICES does not hide it"}
	}
	cards := make([]Card, n)
	for i := range cards {
		if cards[i], err = describe(i); err != nil {
			return nil, fmt.Errorf("cuda: card %d: %w", i, err)
		}
	}
	return cards, nil
}

func describe(index int) (Card, error) {
	id, err := cu.GetDevice(index)
	if err != nil {
		return Card{}, err
	}
	c := Card{Index: index}
	if c.Name, err = id.Name(); err != nil {
		return c, err
	}
	if c.Memory, err = id.TotalMem(); err != nil {
		return c, err
	}
	facts, err := id.Attributes(cu.ComputeCapabilityMajor, cu.ComputeCapabilityMinor, cu.PciDomainID, cu.PciBusID, cu.PciDeviceID, cu.MultiprocessorCount)
	if err != nil {
		return c, err
	}
	c.Major, c.Minor = facts[0], facts[1]
	c.Multiprocessors = facts[5]
	c.PCI = fmt.Sprintf("%08x:%02x:%02x.0", facts[2], facts[3], facts[4])
	return c, nil
}

// device is an open card: its primary context, which the launchers' runtime shares.
type device struct {
	Card
	id     cu.Device
	ctx    cu.CUContext
	before int64 // bytes free on the card before there was a context; 0: unknown
}

func openDevice(index int) (device, error) {
	cards, err := Cards()
	if err != nil {
		return device{}, err
	}
	if index < 0 || index >= len(cards) {
		return device{}, &Unavailable{fmt.Sprintf("there is no card %d", index), fmt.Sprintf("choose 0 to %d", len(cards)-1)}
	}
	d := device{Card: cards[index]}
	if err := d.Usable(); err != nil {
		return device{}, err
	}
	if d.id, err = cu.GetDevice(index); err != nil {
		return device{}, err
	}
	d.before = freeMemory(d.PCI)
	if d.ctx, err = d.id.RetainPrimaryCtx(); err != nil {
		return device{}, fmt.Errorf("cuda: the context of card %d (%s): %w", index, d.Name, err)
	}
	return d, nil
}

// freeMemory is what the driver says is free on a card, whatever this process has there; 0 where it does not say.
func freeMemory(pci string) int64 {
	probe, err := nvml.Open(pci)
	if err != nil {
		return 0
	}
	defer probe.Close()
	return int64(probe.Read().MemoryFree)
}

// do runs f with the card's context current. Contexts belong to threads of the system, so f keeps its own.
func (d device) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cu.SetCurrentContext(d.ctx); err != nil {
		return err
	}
	return f()
}

func (d device) close() error { return d.id.ReleasePrimaryCtx() }

// launched is what a launcher says of its launch, on the thread that made it.
func launched(status C.qk_status) (qkStatus, error) {
	if status == C.QK_OK {
		return launchOK, nil
	}
	return qkStatus(status), errors.New(C.GoString(C.qk_last_error()))
}

// qkStatus is kernels/api.h's qk_status.
type qkStatus int

const (
	launchOK     qkStatus = C.QK_OK
	launchFailed qkStatus = C.QK_LAUNCH_FAILED
)
