//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"qlora/model/ops"
)

func TestLaunches(t *testing.T) {
	var l launches
	if got := l.list(); len(got) != 0 {
		t.Errorf("before any launch: %q", got)
	}
	x := ops.Tensor{Name: "x", DType: ops.BF16, Shape: []int{2048, 3584}, Buf: &arena{}}
	l.add("Embed", []ops.Tensor{x, {}})
	if got, want := l.list(), []string{"Embed x (2048,3584) bfloat16"}; !slices.Equal(got, want) {
		t.Errorf("one launch: %q, want %q", got, want)
	}
	for i := range kept + 5 {
		l.add(fmt.Sprintf("op%d", i), nil)
	}
	got := l.list()
	if len(got) != kept || got[0] != "op5" || got[kept-1] != fmt.Sprintf("op%d", kept+4) {
		t.Errorf("of %d launches these are left: %q", kept+6, got)
	}
	if many := slices.Repeat([]ops.Tensor{x}, shown+3); func() int { l.add("wide", many); return strings.Count(l.list()[kept-1], "x (") }() != shown {
		t.Errorf("a launch of many tensors shows as %q", l.list()[kept-1])
	}
}

func TestDeviceError(t *testing.T) {
	cause := errors.New("an illegal memory access was encountered")
	late := &DeviceError{Op: "Sync", Cause: cause, Launches: []string{"Linear y (1,8) bfloat16"}}
	exact := &DeviceError{Op: "Linear", Exact: true, Cause: cause}
	for _, c := range []struct {
		err  error
		want []string
	}{
		{late, []string{"showed in Sync: an illegal memory access", "--sync_ops", "Xid", "\n  Linear y (1,8) bfloat16"}},
		{exact, []string{"failed in Linear: an illegal memory access"}},
	} {
		for _, w := range c.want {
			if !strings.Contains(c.err.Error(), w) {
				t.Errorf("%q lacks %q", c.err, w)
			}
		}
	}
	if !errors.Is(late, cause) {
		t.Error("the cause is lost")
	}
}

// TestFinal shows that after a fault nothing more is asked of the card, and Sync says so each time.
func TestFinal(t *testing.T) {
	fault := &DeviceError{Op: "Sync", Cause: errors.New("gone")}
	b := &Backend{fault: fault} // without a device: a call would panic
	tensor := ops.Tensor{Name: "t", DType: ops.U8, Shape: []int{4}, Buf: &arena{bytes: 4}}
	for range 2 {
		if err := b.Sync(); err != error(fault) {
			t.Fatalf("Sync: %v", err)
		}
	}
	if _, err := b.NewArena(1); err != error(fault) {
		t.Errorf("NewArena: %v", err)
	}
	if err := b.Write(tensor, make([]byte, 4)); err != error(fault) {
		t.Errorf("Write: %v", err)
	}
	if err := b.Read(make([]byte, 4), tensor); err != error(fault) {
		t.Errorf("Read: %v", err)
	}
	b.Zero(tensor)
	b.GradNorm(ops.Tensor{}, ops.Tensor{})
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestRunsOn(t *testing.T) {
	for _, c := range []struct {
		archs        string
		major, minor int
		want         bool
	}{
		{"sm_80 sm_90a", 9, 0, true},
		{"sm_80 sm_90a", 8, 0, true},
		{"sm_80 sm_90a", 8, 9, true},  // the code of 8.0
		{"sm_80 sm_90a", 12, 0, true}, // its PTX
		{"sm_80 sm_90a", 7, 5, false},
		{"sm_90a", 9, 0, true},
		{"sm_90a", 8, 9, false},
		{"sm_90a", 10, 0, false},
		{"sm_89", 8, 6, false},
		{"sm_86", 8, 9, true},
		{"sm_120a", 12, 0, true},
		{"", 9, 0, false},
	} {
		if got := runsOn(c.archs, c.major, c.minor); got != c.want {
			t.Errorf("kernels for %q on %d.%d: %v, want %v", c.archs, c.major, c.minor, got, c.want)
		}
	}
}

func TestDistinct(t *testing.T) {
	for _, c := range []struct{ in, want []int32 }{
		{nil, nil},
		{[]int32{5}, []int32{5}},
		{[]int32{7, 3, 7, 0, 3}, []int32{0, 3, 7}},
	} {
		if got := distinct(c.in); !slices.Equal(got, c.want) {
			t.Errorf("distinct(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}
