//go:build cuda

package cuda_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"qlora/cuda"
	"qlora/model/ops"
	"qlora/model/ops/opstest"
)

var (
	repeatsFlag = flag.Int("repeats", 20, "how often TestCardRepeats runs a small case; a large one less often")
	digestsFlag = flag.String("digests", "", "a file for the digest of every case, to compare processes by")
)

// watched is a backend that remembers its first arena, in which a case is laid out.
type watched struct {
	*cuda.Backend
	arena ops.Buffer
}

func (w *watched) NewArena(bytes int64) (ops.Buffer, error) {
	a, err := w.Backend.NewArena(bytes)
	if w.arena == nil {
		w.arena = a
	}
	return a, err
}

// all views the arena as bytes.
func (w *watched) all() ops.Tensor {
	return ops.Tensor{Name: "arena", DType: ops.U8, Shape: []int{int(w.arena.Bytes())}, Buf: w.arena}
}

func (w *watched) image() ([]byte, error) {
	raw := make([]byte, w.arena.Bytes())
	return raw, w.Read(raw, w.all())
}

// TestCardRepeats runs every case again and again on the same memory, beside traffic that takes the memory's time, and
// demands the same bits everywhere in the arena.
func TestCardRepeats(t *testing.T) {
	stop := load(t)
	defer stop()
	var digests bytes.Buffer
	o := options()
	for _, c := range opstest.Cases() {
		if !takes(o, c) {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			sum, err := repeat(t, c)
			if err != nil {
				t.Error(err)
			}
			fmt.Fprintf(&digests, "%x  %s\n", sum, c.Name)
		})
	}
	if *digestsFlag != "" {
		if err := os.WriteFile(*digestsFlag, digests.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

func takes(o opstest.Options, c opstest.Case) bool {
	return c.Size == opstest.Small && c.Multiple()%o.Multiple == 0 && (c.HeadSize() == 0 || slices.Contains(o.HeadSizes, c.HeadSize()))
}

// repeat runs c and returns the digest of the arena after it.
func repeat(t *testing.T, c opstest.Case) (sum [sha256.Size]byte, err error) {
	w := &watched{Backend: open(t)}
	defer func() {
		if closing := w.Close(); err == nil {
			err = closing
		}
	}()
	p, err := c.Prepare(w, ops.BF16)
	if err != nil {
		return sum, err
	}
	before, err := w.image()
	if err != nil {
		return sum, err
	}
	var first []byte
	times := min(*repeatsFlag, max(3, *repeatsFlag<<20/len(before)))
	for i := range times {
		if err := w.Write(w.all(), before); err != nil {
			return sum, err
		}
		p.Forget()
		p.Run()
		if err := w.Sync(); err != nil {
			return sum, err
		}
		after, err := w.image()
		if err != nil {
			return sum, err
		}
		if first == nil {
			first = after
		}
		if !bytes.Equal(after, first) {
			return sum, fmt.Errorf("run %d of %d differs from the first", i, times)
		}
	}
	return sha256.Sum256(first), nil
}

// load keeps the card's memory busy from a stream of its own until stop is called.
func load(t *testing.T) (stop func()) {
	b := open(t)
	arena, err := b.NewArena(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	whole := ops.Tensor{Name: "load", DType: ops.U8, Shape: []int{1 << 30}, Buf: arena}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
			}
			b.Zero(whole)
			if err := b.Sync(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
