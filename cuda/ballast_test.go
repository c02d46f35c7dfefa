//go:build cuda

package cuda_test

import (
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
)

var leaveFlag = flag.Int64("leave", 0, "TestCardBallast: bytes of the card to leave free until standard input ends; 0: the test makes a small one")

// grain is what the driver hands out memory in.
const grain = 2 << 20

// TestCardBallast takes all of the card's memory but -leave bytes and holds it until standard input ends, so that
// another process has a smaller card: scripts/gpu-check.sh runs budgets in what is left. It prints what is free on a line of
// its own.
func TestCardBallast(t *testing.T) {
	b := open(t)
	defer b.Close()
	free, _, err := b.MemInfo()
	if err != nil {
		t.Fatal(err)
	}
	leave := *leaveFlag
	if leave == 0 {
		leave = free - 1<<30
	}
	for piece := int64(64 << 30); piece >= grain; {
		if free, _, err = b.MemInfo(); err != nil {
			t.Fatal(err)
		}
		if free-leave < piece {
			piece /= 2
			continue
		}
		if _, err := b.NewArena(piece); err != nil {
			piece /= 2
		}
	}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	if free, _, err = b.MemInfo(); err != nil {
		t.Fatal(err)
	}
	if free < leave || free >= leave+2*grain {
		t.Fatalf("%d bytes are free, and %d should be", free, leave)
	}
	fmt.Printf("ballast: %d bytes are free\n", free)
	if *leaveFlag > 0 {
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCardMemory holds the driver's own account of the card to an arena's size: nothing else is taken.
func TestCardMemory(t *testing.T) {
	b := open(t)
	defer b.Close()
	before, _, err := b.MemInfo()
	if err != nil {
		t.Fatal(err)
	}
	const size = 3<<30 + 4096
	if _, err := b.NewArena(size); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	after, _, err := b.MemInfo()
	if err != nil {
		t.Fatal(err)
	}
	if taken := before - after; taken < size || taken > size+grain {
		t.Errorf("an arena of %d bytes takes %d of the card", size, taken)
	}
}
