// Package fakecard is the probe of a card that is not there: the processor's, with the facts and sensors of a card made
// up. The harness is tested with it where there is no card; nothing of it is in the program.
package fakecard

import (
	"sync"
	"time"

	"qlora/bench/measure"
	"qlora/bench/result"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// Card is a probe. Its fields may be set before use.
type Card struct {
	*measure.Host
	Facts   result.Card
	Missing []string
	Beside  []string // other processes
	Held    int64    // memory of the process
	Watts   float64
	// Sensor changes a reading before it is given out; nil changes nothing. n counts the readings.
	Sensor func(n int, r *measure.Reading)
	// Slow is how often a yardstick makes the case's own call: 2 is a library half as fast.
	Slow int
	// Run is what a yardstick calls.
	Run func()

	mu    sync.Mutex
	n     int
	begun time.Time
}

// New is a probe of a backend on the processor that says it is an H200.
func New(b ops.Backend) *Card {
	return &Card{Host: measure.NewHost(b), Watts: 600, Held: 1 << 30, begun: time.Now(), Facts: result.Card{Name: "NVIDIA H200", ID: "00c0ffee00c0ffee", Capability: "9.0",
		Driver: "580.1", CUDA: "13.0", Memory: 150 << 30, Processors: 132, L2: 50 << 20, SMClockMax: 1980, SMClockLimit: 1980, MemClockMax: 3201, MemClock: 3201,
		PowerLimit: 700, PowerDefault: 700, ECC: true, PCIeGen: 5, PCIeGenMax: 5, PCIeWidth: 16, PCIeWidthMax: 16, SlowdownTempC: 92}}
}

// Card gives the facts.
func (c *Card) Card() (*result.Card, []string) {
	facts := c.Facts
	return &facts, c.Missing
}

// Sense makes a reading up.
func (c *Card) Sense() (measure.Reading, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	r := measure.Reading{At: now, SMClock: 1500, MemClock: 3201, Power: c.Watts, TempC: 50, Energy: 1e6 + c.Watts*now.Sub(c.begun).Seconds(), Throttled: []string{"power cap"}}
	if c.Sensor != nil {
		c.Sensor(c.n, &r)
	}
	c.n++
	return r, true
}

// Others gives the processes beside.
func (c *Card) Others() []string { return c.Beside }

// Memory is Held.
func (c *Card) Memory() (int64, bool) { return c.Held, true }

// Yardstick is a library that makes Run Slow times, for cases of one product.
func (c *Card) Yardstick(k opstest.Case) (string, func(), error) {
	if c.Run == nil || len(k.Products) != 1 {
		return c.Host.Yardstick(k)
	}
	return "cuFAKE 1.0", func() {
		for range c.Slow {
			c.Run()
		}
	}, nil
}
