//go:build amd64 && !purego

package gemm

import (
	"slices"

	"qlora/model/cpu/vec"
)

//go:generate go run ./asm

// assembly returns the generated kernels that this processor can run, worst first.
func assembly() []*kernels {
	return slices.DeleteFunc([]*kernels{&avx2, &avx512}, func(k *kernels) bool {
		return !slices.Contains(vec.Variants(), k.variant)
	})
}

var avx2 = kernels{
	variant: vec.AVX2,
	nr:      16,
	mr:      6,
	f32: [][]micro{
		{micro1x1F32AVX2, nil, nil, micro1x4F32AVX2},
		{micro2x1F32AVX2, micro2x2F32AVX2},
		{micro3x1F32AVX2, micro3x2F32AVX2},
		{micro4x1F32AVX2},
		{micro5x1F32AVX2},
		{micro6x1F32AVX2},
	},
	bf16: [][]micro{
		{micro1x1BF16AVX2, nil, nil, micro1x4BF16AVX2},
		{micro2x1BF16AVX2, micro2x2BF16AVX2},
		{micro3x1BF16AVX2, micro3x2BF16AVX2},
		{micro4x1BF16AVX2},
		{micro5x1BF16AVX2},
		{micro6x1BF16AVX2},
	},
	copyPanel:     copyPanelAVX2,
	transposeF32:  transposeF32,
	transposeBF16: transposeBF16,
}

var avx512 = kernels{
	variant: vec.AVX512,
	nr:      32,
	mr:      12,
	f32: [][]micro{
		{micro1x1F32AVX512, nil, nil, micro1x4F32AVX512},
		{micro2x1F32AVX512, micro2x2F32AVX512},
		{micro3x1F32AVX512, micro3x2F32AVX512},
		{micro4x1F32AVX512},
		{micro5x1F32AVX512},
		{micro6x1F32AVX512},
		{micro7x1F32AVX512},
		{micro8x1F32AVX512},
		{micro9x1F32AVX512},
		{micro10x1F32AVX512},
		{micro11x1F32AVX512},
		{micro12x1F32AVX512},
	},
	bf16: [][]micro{
		{micro1x1BF16AVX512, nil, nil, micro1x4BF16AVX512},
		{micro2x1BF16AVX512, micro2x2BF16AVX512},
		{micro3x1BF16AVX512, micro3x2BF16AVX512},
		{micro4x1BF16AVX512},
		{micro5x1BF16AVX512},
		{micro6x1BF16AVX512},
		{micro7x1BF16AVX512},
		{micro8x1BF16AVX512},
		{micro9x1BF16AVX512},
		{micro10x1BF16AVX512},
		{micro11x1BF16AVX512},
		{micro12x1BF16AVX512},
	},
	copyPanel:     copyPanelAVX512,
	transposeF32:  transposeF32,
	transposeBF16: transposeBF16,
}
