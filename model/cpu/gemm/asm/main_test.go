package main

import (
	"testing"

	"qlora/model/cpu/internal/asmgen"
)

// TestCommittedAssembly holds that the committed files are what the generator makes.
func TestCommittedAssembly(t *testing.T) {
	if err := asmgen.Stale("gemm", "../kernels_amd64", generate); err != nil {
		t.Fatal(err)
	}
}
