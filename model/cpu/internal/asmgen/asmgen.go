// Package asmgen is what the assembly generators of the CPU backend share: the two vector widths that a kernel is
// written for once, and the way a generated file reaches the disk. It is built on avo
// (https://github.com/mmcloughlin/avo).
package asmgen

import (
	"bytes"
	"fmt"
	"log"
	"os"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
	"github.com/mmcloughlin/avo/reg"
)

// Width is one vector register file: how wide a register is and the registers, by number.
type Width struct {
	Name  string // AVX2 or AVX512, the suffix of a function's name
	Bytes int    // bytes in a register
	Regs  []reg.VecPhysical
}

// AVX2 is 16 registers of 8 float32, AVX512 is 32 registers of 16.
var (
	AVX2 = Width{"AVX2", 32, []reg.VecPhysical{
		reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7,
		reg.Y8, reg.Y9, reg.Y10, reg.Y11, reg.Y12, reg.Y13, reg.Y14, reg.Y15,
	}}
	AVX512 = Width{"AVX512", 64, []reg.VecPhysical{
		reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7,
		reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12, reg.Z13, reg.Z14, reg.Z15,
		reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23,
		reg.Z24, reg.Z25, reg.Z26, reg.Z27, reg.Z28, reg.Z29, reg.Z30, reg.Z31,
	}}
)

// Lanes is the number of float32 in a register.
func (w Width) Lanes() int { return w.Bytes / 4 }

// Zero clears register r.
func (w Width) Zero(c *build.Context, r reg.VecPhysical) {
	if w.Bytes == 64 {
		c.VPXORD(r, r, r) // VXORPS of 64 bytes asks for AVX512DQ
		return
	}
	c.VXORPS(r, r, r)
}

// Ptr loads the pointer or integer argument name into a fresh register.
func Ptr(c *build.Context, name string) reg.GPVirtual {
	r := c.GP64()
	c.Load(c.Param(name), r)
	return r
}

// At is the memory at base + disp.
func At(base reg.Register, disp int) operand.Mem { return operand.Mem{Base: base, Disp: disp} }

// generate runs gen and returns the assembly file and its Go declarations, for package pkg.
func generate(pkg string, gen func(*build.Context)) (asm, stubs []byte, err error) {
	c := build.NewContext()
	c.ConstraintExpr("amd64,!purego")
	gen(c)
	f, err := c.Result()
	if err != nil {
		return nil, nil, err
	}
	if err := pass.Compile.Execute(f); err != nil {
		return nil, nil, err
	}
	cfg := printer.Config{Name: "avo", Pkg: pkg}
	if asm, err = printer.NewGoAsm(cfg).Print(f); err != nil {
		return nil, nil, err
	}
	stubs, err = printer.NewStubs(cfg).Print(f)
	return asm, stubs, err
}

// Main writes name.s and name.go of package pkg into the current folder, which under go generate is the package's.
func Main(pkg, name string, gen func(*build.Context)) {
	files, err := files(pkg, name, gen)
	if err != nil {
		log.Fatal(err)
	}
	for file, text := range files {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// Stale says which of name.s and name.go differs from what gen makes now, or returns nil.
func Stale(pkg, name string, gen func(*build.Context)) error {
	files, err := files(pkg, name, gen)
	if err != nil {
		return err
	}
	for file, want := range files {
		got, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s is not what its generator makes: run go generate in package %s", file, pkg)
		}
	}
	return nil
}

// files are the generated texts by file name.
func files(pkg, name string, gen func(*build.Context)) (map[string][]byte, error) {
	asm, stubs, err := generate(pkg, gen)
	return map[string][]byte{name + ".s": asm, name + ".go": stubs}, err
}
