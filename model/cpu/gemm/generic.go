package gemm

import (
	"math"
	"unsafe"

	"qlora/model/cpu/vec"
)

// generic are the kernels in plain Go. Products are rounded before they are added (the explicit conversion forbids
// fusing), so that every kernel and every architecture rounds alike.
var generic = kernels{
	variant:       vec.Generic,
	nr:            8,
	mr:            2,
	f32:           [][]micro{{microGeneric(1, 4)}, {microGeneric(2, 4)}},
	bf16:          [][]micro{{microGeneric(1, 2)}, {microGeneric(2, 2)}},
	copyPanel:     copyPanelGeneric,
	transposeF32:  func(d *byte, ldd uintptr, s *byte, lds uintptr, r, c int) { transposeGeneric(d, ldd, s, lds, r, c, 4) },
	transposeBF16: func(d *byte, ldd uintptr, s *byte, lds uintptr, r, c int) { transposeGeneric(d, ldd, s, lds, r, c, 2) },
}

// element reads element i at p, of size bytes: 4 a float32, 2 a bfloat16.
func element(p unsafe.Pointer, i int, size uintptr) float32 {
	if size == 4 {
		return *(*float32)(unsafe.Add(p, 4*i))
	}
	return math.Float32frombits(uint32(*(*uint16)(unsafe.Add(p, 2*i))) << 16)
}

// microGeneric returns the kernel of 1 or 2 rows over panels of 8 columns stored in size bytes, four columns a pass.
func microGeneric(rows int, size uintptr) micro {
	const nr, quad = 8, 4
	return func(tiles int, a *byte, rs, ks uintptr, b *byte, ps uintptr, k int, y *byte, ldy uintptr, add int) {
		for t := range tiles {
			for half := range nr / quad {
				var s [2][quad]float32
				a0 := unsafe.Add(unsafe.Pointer(a), uintptr(t*rows)*rs)
				a1 := unsafe.Add(a0, uintptr(rows-1)*rs)
				for i := range k {
					p := unsafe.Add(unsafe.Pointer(b), uintptr(i*nr+half*quad)*size)
					b0, b1, b2, b3 := element(p, 0, size), element(p, 1, size), element(p, 2, size), element(p, 3, size)
					x := *(*float32)(unsafe.Add(a0, uintptr(i)*ks))
					s[0][0] += float32(x * b0)
					s[0][1] += float32(x * b1)
					s[0][2] += float32(x * b2)
					s[0][3] += float32(x * b3)
					if rows == 2 {
						x = *(*float32)(unsafe.Add(a1, uintptr(i)*ks))
						s[1][0] += float32(x * b0)
						s[1][1] += float32(x * b1)
						s[1][2] += float32(x * b2)
						s[1][3] += float32(x * b3)
					}
				}
				for r := range rows {
					to := (*[quad]float32)(unsafe.Add(unsafe.Pointer(y), uintptr(t*rows+r)*ldy+uintptr(half*quad*4)))
					for j := range to {
						if add != 0 {
							s[r][j] += to[j]
						}
						to[j] = s[r][j]
					}
				}
			}
		}
	}
}

func copyPanelGeneric(dst, src *byte, lds uintptr, rows int) {
	for r := range rows {
		*(*[8]float32)(unsafe.Add(unsafe.Pointer(dst), r*32)) = *(*[8]float32)(unsafe.Add(unsafe.Pointer(src), uintptr(r)*lds))
	}
}

func transposeGeneric(dst *byte, ldd uintptr, src *byte, lds uintptr, rowBlocks, colBlocks int, size uintptr) {
	for r := range 8 * rowBlocks {
		from := unsafe.Add(unsafe.Pointer(src), uintptr(r)*lds)
		for c := range 8 * colBlocks {
			*(*float32)(unsafe.Add(unsafe.Pointer(dst), uintptr(c)*ldd+uintptr(r)*4)) = element(from, c, size)
		}
	}
}
