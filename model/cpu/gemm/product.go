package gemm

import (
	"fmt"
	"unsafe"
)

// product is y (M,N) (+)= a (M,K) · b (K,N): a and y lie in memory with strides, b comes panel by panel.
type product struct {
	m, n, k int
	a       []float32
	lda     int
	aT      bool // a lies in memory as (K,M)
	y       []float32
	ldy     int
	add     bool

	// panel returns rows k0..k0+kc of b's panel p as (kc, nr) float32, in place or written to s.panel.
	panel func(s *scratch, p, k0, kc int) *byte
}

// run computes the product. The output is cut into tasks of a block of rows times a run of panels.
func (p *product) run(kr *kernels) {
	if p.m == 0 || p.n == 0 {
		return
	}
	panels := ceilDiv(p.n, kr.nr)
	cores := coresFor(p.m * p.n * p.k)
	rows := rowsPerTask(p.m, panels, kr.mr, cores)
	rowTasks := ceilDiv(p.m, rows)
	width := panelsPerTask(panels, rowTasks, cores)
	panelTasks := ceilDiv(panels, width)
	parallel(rowTasks*panelTasks, cores, func(task int, s *scratch) {
		row, panel := task/panelTasks*rows, task%panelTasks*width
		p.block(kr, s, row, min(row+rows, p.m), panel, min(panel+width, panels))
	})
}

// block computes rows i0..i1 of panels p0..p1.
func (p *product) block(kr *kernels, s *scratch, i0, i1, p0, p1 int) {
	for k0 := 0; k0 < p.k; k0 += kBlock {
		kc := min(kBlock, p.k-k0)
		left := leftBlock{a: bytesOf(p.a[i0*p.ldaRow()+k0*p.ldaK():]), rs: uintptr(4 * p.ldaRow()), ks: uintptr(4 * p.ldaK())}
		if p.aT {
			left = copyLeft(s, p.a[k0*p.lda+i0:], p.lda, i1-i0, kc)
		}
		add := p.add || k0 > 0
		for n := p0; n < p1; n++ {
			b := p.panel(s, n, k0, kc)
			column := n * kr.nr
			if column+kr.nr <= p.n {
				left.times(kr, b, kc, i1-i0, bytesOf(p.y[i0*p.ldy+column:]), uintptr(4*p.ldy), add)
				continue
			}
			left.times(kr, b, kc, i1-i0, bytesOf(s.edge[:]), uintptr(4*kr.nr), false)
			for i := i0; i < i1; i++ {
				to := p.y[i*p.ldy+column : i*p.ldy+p.n]
				storeEdge(to, s.edge[(i-i0)*kr.nr:], add)
			}
		}
	}
	if p.k == 0 && !p.add {
		for i := i0; i < i1; i++ {
			clear(p.y[i*p.ldy+p0*kr.nr : i*p.ldy+min(p1*kr.nr, p.n)])
		}
	}
}

func (p *product) ldaRow() int {
	if p.aT {
		return 1
	}
	return p.lda
}

func (p *product) ldaK() int {
	if p.aT {
		return p.lda
	}
	return 1
}

// leftBlock is a block of the left operand; strides in bytes.
type leftBlock struct {
	a      *byte
	rs, ks uintptr
}

// copyLeft brings a (K,M) block into s.left: apart in memory its rows would be one cache line a term.
func copyLeft(s *scratch, a []float32, lda, rows, kc int) leftBlock {
	for k := range kc {
		copy(s.left[k*rows:(k+1)*rows], a[k*lda:])
	}
	return leftBlock{a: bytesOf(s.left[:]), rs: 4, ks: uintptr(4 * rows)}
}

// times multiplies rows of the left block with one float32 panel, in register tiles of mr rows and what is left.
func (l leftBlock) times(kr *kernels, b *byte, kc, rows int, y *byte, ldy uintptr, add bool) {
	tiles, rest := rows/kr.mr, rows%kr.mr
	if tiles > 0 {
		kr.f32[kr.mr-1][0](tiles, l.a, l.rs, l.ks, b, 0, kc, y, ldy, toInt(add))
	}
	if rest > 0 {
		done := uintptr(tiles * kr.mr)
		kr.f32[rest-1][0](1, offset(l.a, done*l.rs), l.rs, l.ks, b, 0, kc, offset(y, done*ldy), ldy, toInt(add))
	}
}

// storeEdge puts the valid part of an edge panel's row in place, rounding as the kernels do.
func storeEdge(to, from []float32, add bool) {
	if !add {
		copy(to, from)
		return
	}
	for j := range to {
		to[j] += from[j]
	}
}

// rowsPerTask cuts m rows into even blocks, few enough panels giving more blocks, so that every core has work.
func rowsPerTask(m, panels, mr, cores int) int {
	blocks := ceilDiv(m, rowBlock)
	if cores > 1 {
		blocks = max(blocks, ceilDiv(4*cores, panels))
	}
	return ceilDiv(ceilDiv(m, blocks), mr) * mr
}

// panelsPerTask makes runs of up to 8 panels, shorter where there would be too few tasks to share evenly.
func panelsPerTask(panels, rowTasks, cores int) int {
	if cores == 1 {
		return panels
	}
	return min(8, max(1, panels*rowTasks/(8*cores)))
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func bytesOf[T float32 | uint16](x []T) *byte { return (*byte)(unsafe.Pointer(unsafe.SliceData(x))) }

func offset(p *byte, n uintptr) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(p), n)) }

// check panics unless x holds a (rows, cols) matrix of row stride ld: a shape that does not fit is a caller's bug, and
// the kernels would write outside.
func check(name string, x []float32, ld, rows, cols int) {
	if rows < 0 || cols < 0 || ld < cols || rows > 0 && cols > 0 && len(x) < (rows-1)*ld+cols {
		panic(fmt.Sprintf("gemm: %s (%d,%d) with row stride %d does not fit %d values", name, rows, cols, ld, len(x)))
	}
}
