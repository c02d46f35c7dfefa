// Package allocs holds parsers of files we did not write to memory in proportion to their input.
package allocs

import (
	"runtime"
	"testing"
)

// Parsing may allocate, garbage counted, factor bytes for each byte of input and base more, whatever the input
// declares.
const (
	factor = 4
	base   = 1 << 20
)

// Bound calls parse, which reads input bytes, and fails the test if it allocates too much.
func Bound(t testing.TB, input int, parse func()) {
	t.Helper()
	Within(t, factor*input+base, parse)
}

// Within is Bound for what needs another bound, in bytes.
func Within(t testing.TB, bytes int, parse func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	parse()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > uint64(bytes) {
		t.Errorf("%d bytes allocated, more than the %d that the input may take", got, bytes)
	}
}
