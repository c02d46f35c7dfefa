// Package measure times work on a device: when to stop, what to throw away, and what the sensors said meanwhile.
//
// A device is an [ops.Backend] and a [Probe] of it. The probe of a card is cuda.Probe; that of the processor is [Host].
package measure

import (
	"time"

	"qlora/bench/result"
	"qlora/model/ops/opstest"
)

// Probe is what measuring needs of a device beside its backend. But for Sense, its methods are called from the
// backend's goroutine.
type Probe interface {
	Clock

	// Flush enqueues the writing of more memory than the device's caches hold.
	Flush()
	// Loads are works that reach the device's roofs. done, which may be nil, gives back the memory they take.
	Loads() (loads []Load, done func() error, err error)
	// Yardstick is a library of the vendor at the products or the attention of a case. run is nil, and the error says why,
	// where there is none.
	Yardstick(c opstest.Case) (library string, run func(), err error)

	// Card describes a card, and names what it could not ask; nil for a processor.
	Card() (card *result.Card, missing []string)
	// Sense reads the sensors; ok is false where there are none. Any goroutine may call it.
	Sense() (r Reading, ok bool)
	// Others names other processes on the device.
	Others() []string
	// Memory is what this process holds on the device in bytes; ok is false where it cannot be told.
	Memory() (bytes int64, ok bool)

	Close() error
}

// Mark is a moment on the device.
type Mark int

// Clock tells the time of the device, not of the host that runs ahead of it.
type Clock interface {
	// Mark enqueues a mark behind all the backend was asked for before.
	Mark() (Mark, error)
	// Seconds is the time between two marks, once the backend's Sync has returned.
	Seconds(from, to Mark) (float64, error)
	// Forget ends the use of all marks made so far.
	Forget()
}

// Load is a work of known size.
type Load struct {
	Name, Unit   string
	Run          func()
	FLOPs, Bytes float64 // of one run
}

// Reading is what the sensors say at a moment. Zero: not told.
type Reading struct {
	At        time.Time
	SMClock   float64 // MHz
	MemClock  float64
	Power     float64 // W
	TempC     float64
	Energy    float64 // J since some moment: differences count
	Throttled []string
	Void      []string // those of Throttled that make a time worthless: heat, faults of the power supply
}
