package vec

import (
	"fmt"
	"os"
	"sync"
)

// The instruction sets that kernels exist for, worst first.
const (
	Generic = "generic" // plain Go
	AVX2    = "avx2"    // AVX2 and FMA
	AVX512  = "avx512"  // AVX-512 F, BW, DQ and VL
)

// Variant names the instruction set that the kernels of this process use: the best that the processor has, or the one
// that the environment variable QLORA_CPU asks for (avx512, avx2 or generic). It is fixed for the life of the process.
// A value of QLORA_CPU that the processor lacks is reported by VariantError and otherwise has no effect.
func Variant() string {
	v, _ := chosen()
	return v
}

// VariantError says what is wrong with QLORA_CPU, or is nil.
func VariantError() error {
	_, err := chosen()
	return err
}

// Variants lists what this processor can run, worst first.
func Variants() []string { return append([]string{Generic}, supported()...) }

var chosen = sync.OnceValues(func() (string, error) {
	return choose(Variants(), os.Getenv("QLORA_CPU"))
})

// choose returns the wanted one of the usable variants, or the best when wanted is empty or not usable.
func choose(usable []string, wanted string) (string, error) {
	best := usable[len(usable)-1]
	if wanted == "" {
		return best, nil
	}
	for _, v := range usable {
		if v == wanted {
			return v, nil
		}
	}
	return best, fmt.Errorf("QLORA_CPU=%q: this processor runs %v; using %s", wanted, usable, best)
}
