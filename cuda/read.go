//go:build cuda

package cuda

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"

	"qlora/internal/bfloat16"
	"qlora/model/ops"
)

// readers is how many goroutines read a block: one alone copies from the page cache at less than the rate of the bus.
const readers = 8

// readRows reads n rows as bfloat16, in pieces side by side.
func readRows(dst []byte, from *ops.Source, row, n int) error {
	pieces := min(readers, runtime.GOMAXPROCS(0), n)
	errs := make([]error, pieces)
	rowBytes := from.Cols * int(ops.BF16.Size())
	var done sync.WaitGroup
	for i := range pieces {
		lo, hi := n*i/pieces, n*(i+1)/pieces
		done.Go(func() { errs[i] = readPiece(dst[lo*rowBytes:hi*rowBytes], from, row+lo, hi-lo) })
	}
	done.Wait()
	return errors.Join(errs...)
}

// readCodes reads the codes of a part in NF4, likewise.
func readCodes(dst []byte, from *ops.NF4Source, at int) error {
	pieces := min(readers, runtime.GOMAXPROCS(0))
	errs := make([]error, pieces)
	var done sync.WaitGroup
	for i := range pieces {
		lo, hi := len(dst)*i/pieces, len(dst)*(i+1)/pieces
		done.Go(func() { errs[i] = from.ReadCodes(dst[lo:hi], at+lo) })
	}
	done.Wait()
	return errors.Join(errs...)
}

// floats are for rows that are not bfloat16.
var floats = sync.Pool{New: func() any { return new([]float32) }}

func readPiece(dst []byte, from *ops.Source, row, n int) error {
	if from.ReadBF16 != nil {
		return from.ReadBF16(dst, row, n)
	}
	buffer := floats.Get().(*[]float32)
	defer floats.Put(buffer)
	step := max(1, (1<<18)/from.Cols)
	for at := 0; at < n; at += step {
		count := min(step, n-at)
		if cap(*buffer) < count*from.Cols {
			*buffer = make([]float32, count*from.Cols)
		}
		values := (*buffer)[:count*from.Cols]
		if err := from.ReadF32(values, row+at, count); err != nil {
			return err
		}
		to := dst[2*at*from.Cols:]
		for i, v := range values {
			binary.LittleEndian.PutUint16(to[2*i:], bfloat16.Bits(v))
		}
	}
	return nil
}
