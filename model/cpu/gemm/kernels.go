package gemm

import (
	"slices"

	"qlora/model/cpu/vec"
)

// micro computes, for each of tiles blocks of its own number of rows, over its own number of panels
//
//	y[row][column] (+)= Σ_k a[row][k]·b[k][column]
//
// where a is at row*rs + k*ks, a panel's row k of nr columns follows row k-1, panels are ps apart, y is at
// row*ldy + column, and every stride counts bytes. An output is one chain of multiply-adds over k from zero; then,
// if add is not 0, the old y is added. tiles and k are at least 1. From tile to tile a and y move on by the rows.
type micro func(tiles int, a *byte, rs, ks uintptr, b *byte, ps uintptr, k int, y *byte, ldy uintptr, add int)

// kernels is one variant of what the products are made of.
type kernels struct {
	variant string
	nr      int // columns of a panel
	mr      int // rows of the largest register tile

	// f32[rows-1][panels-1] and bf16 likewise; nil where there is none. One panel: every rows up to mr.
	f32, bf16 [][]micro

	copyPanel                   func(dst, src *byte, lds uintptr, rows int)
	transposeF32, transposeBF16 func(dst *byte, ldd uintptr, src *byte, lds uintptr, rowBlocks, colBlocks int)
}

// variants are the kernels that this processor can run, worst first.
var variants = append([]*kernels{&generic}, assembly()...)

// current is what Pack and the plain products use. Only tests change it.
var current = variants[slices.IndexFunc(variants, func(k *kernels) bool { return k.variant == vec.Variant() })]

// wide returns the kernel of the given rows that takes most panels at once, at most panels, and how many it takes.
func wide(byRows [][]micro, rows, panels int) (micro, int) {
	byPanels := byRows[rows-1]
	for n := min(panels, len(byPanels)); n > 1; n-- {
		if byPanels[n-1] != nil {
			return byPanels[n-1], n
		}
	}
	return byPanels[0], 1
}
