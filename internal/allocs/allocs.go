// Package allocs holds parsers of files we did not write to memory in proportion to their input.
package allocs

import (
	"runtime"
	"testing"
)

// Parsing may allocate, garbage counted, factor bytes for each byte of input and base more, whatever the input
// declares. What comes near is an object of empty names, through encoding/json into a map: 33 bytes a byte.
const (
	factor = 40
	base   = 1 << 20
)

// Bound calls parse, which reads input bytes, and fails the test if it allocates too much.
func Bound(t testing.TB, input int, parse func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	parse()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > uint64(factor*input+base) {
		t.Errorf("%d bytes allocated for %d bytes of input, more than %d for each and %d", got, input, factor, base)
	}
}
