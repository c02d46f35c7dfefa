package cpu_test

import (
	"strings"
	"testing"

	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

// TestTimedCases lays every small case out as a benchmark does, and makes the call.
func TestTimedCases(t *testing.T) {
	var small []opstest.Case
	for _, c := range opstest.Cases() {
		if c.Size == opstest.Small {
			small = append(small, c)
		}
	}
	b := float()
	defer b.Close()
	bench, err := opstest.NewTiming(b, ops.BF16, small)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range small {
		p, err := bench.Prepare(c)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		for range 3 {
			p.Run()
		}
		if _, err := p.Verify(); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}

// TestTimedCasesSeeFaults: what Verify looks at, it sees.
func TestTimedCasesSeeFaults(t *testing.T) {
	for _, c := range []struct {
		fault faulty
		want  string
	}{
		{faulty{}, ""},
		{faulty{scribble: true}, "a write outside"},
		{faulty{unsteady: 1}, "different bits"},
		{faulty{infinite: true}, "not finite"},
	} {
		c.fault.Backend = float()
		p, err := rmsnormCase(t, " T31 ").Prepare(&c.fault, ops.F32)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Verify(); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: got %v, want %q", c.fault, err, c.want)
		}
	}
}

// counting counts how often the workspace is given.
type counting struct {
	ops.Backend
	given int
}

func (c *counting) SetWorkspace(t ops.Tensor, d ops.Dims) {
	c.given++
	c.Backend.SetWorkspace(t, d)
}

// TestTimedNF4: what a card keeps in its workspace, a weight dequantised, is forgotten before every timed call.
func TestTimedNF4(t *testing.T) {
	for w, every := range map[ops.DType]int{ops.BF16: 0, ops.NF4: 1} {
		b := &counting{Backend: float()}
		c := caseOf(t, "LinearBack", "SmolLM2")
		p, err := c.Prepare(b, w)
		if err != nil {
			t.Fatal(err)
		}
		before := b.given
		for range 3 {
			p.Run()
		}
		if got := b.given - before; got != 3*every {
			t.Errorf("%v weights: the workspace was given %d times in 3 calls, want %d", w, got, 3*every)
		}
	}
}
