//go:build amd64 && !purego

package vec

import "golang.org/x/sys/cpu"

//go:generate go run ./asm

var avx2 = kernels{
	variant: AVX2, exp: expAVX2, swiGLU: swiGLUAVX2, swiGLUBack: swiGLUBackAVX2, expSum: expSumAVX2, dot: dotAVX2,
	max: maxAVX2, axpy: axpyAVX2, scale: scaleAVX2, fromBF16: fromBF16AVX2, toBF16: toBF16AVX2,
	dropout: dropoutAVX2,
}

// assembly returns the generated loops that this processor can run.
func assembly() []*kernels {
	if len(supported()) == 0 {
		return nil
	}
	return []*kernels{&avx2}
}

func supported() []string {
	var v []string
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		v = append(v, AVX2)
		if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL {
			v = append(v, AVX512)
		}
	}
	return v
}
