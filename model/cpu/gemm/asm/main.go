// Command asm writes the assembly of package gemm: for AVX2 and for AVX-512 the micro-kernels of the matrix product
// and the small routines that bring an operand into panel layout. Run it through go generate in package gemm.
package main

import (
	"github.com/mmcloughlin/avo/build"

	"qlora/model/cpu/internal/asmgen"
)

// tile is the register tile of one width: a kernel computes up to rows x (2 registers) outputs. The accumulators,
// two registers of the panel and the broadcasts must fit the register file: 2*6+4 = 16, 2*12+4 < 32.
type tile struct {
	asmgen.Width
	rows int
}

var tiles = []tile{{asmgen.AVX2, 6}, {asmgen.AVX512, 12}}

func main() { asmgen.Main("gemm", "kernels_amd64", generate) }

func generate(c *build.Context) {
	for _, t := range tiles {
		for _, stored := range []storage{float32Storage, bf16Storage} {
			for rows := 1; rows <= t.rows; rows++ {
				microKernel(c, t, stored, rows, 1)
			}
			for rows, panels := range widePanels {
				if panels > 1 {
					microKernel(c, t, stored, rows, panels)
				}
			}
		}
		copyPanel(c, t)
	}
	transpose(c, float32Storage)
	transpose(c, bf16Storage)
}
