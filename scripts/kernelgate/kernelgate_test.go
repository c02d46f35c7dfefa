package main

import (
	"strings"
	"testing"
)

const sass = `
Fatbin elf code:
================
arch = sm_90a
		Function : _Z18linear_sm90_kernelILi5ELb0ELi1EEv16linear_sm90_maps
	.headerflags	@"EF_CUDA_SM90"
        /*0080*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
		Function : _Z18linear_sm80_kernelILb0EEv14linear_problem
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0090*/                   ATOMG.E.ADD.F32.FTZ.RN.STRONG.GPU PT, R5, desc[UR4][R2.64], R5 ;
arch = sm_80
		Function : _Z18linear_sm90_kernelILi5ELb0ELi1EEv16linear_sm90_maps
        /*0000*/                   EXIT ;
		Function : _Z18linear_sm80_kernelILb0EEv14linear_problem
        /*0080*/                   RED.E.ADD.STRONG.GPU [R2.64], R5 ;
`

const usage = `
arch = sm_90a
 Function _Z18linear_sm90_kernelILi5ELb0ELi1EEv16linear_sm90_maps:
  REG:168 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:540
 Function _Z18linear_sm80_kernelILb0EEv14linear_problem:
  REG:255 STACK:8 SHARED:0 LOCAL:4 CONSTANT[0]:540
arch = sm_80
 Function _Z18linear_sm90_kernelILi5ELb0ELi1EEv16linear_sm90_maps:
  REG:4 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:540
`

func TestParse(t *testing.T) {
	kernels, err := parse(sass, usage)
	if err != nil {
		t.Fatal(err)
	}
	if len(kernels) != 4 {
		t.Fatalf("%d kernels, want 4", len(kernels))
	}
	k := kernels[1]
	if k.short() != "linear_sm80_kernelLb0E" || k.arch != "sm_90a" || k.registers != 255 || k.stack != 8 || k.local != 4 {
		t.Errorf("kernel %s %s: %d registers, %d stack, %d local", k.short(), k.arch, k.registers, k.stack, k.local)
	}
	if _, err := parse(sass, usage+" Function _Z4lost:\n"); err == nil {
		t.Error("a function without code was accepted")
	}
}

// Each check against instructions that must and must not trip it; the integer reduction is allowed.
func TestChecks(t *testing.T) {
	for _, c := range []struct {
		check, code string
		breach      bool
	}{
		{"local", "STL.64 [R1+0x8], R4 ;", true},
		{"local", "STS.64 [R1+0x8], R4 ;", false},
		{"floatatomic", "REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4 ;", true},
		{"floatatomic", "RED.E.ADD.BF16_V2.RN [R2], R4 ;", true},
		{"floatatomic", "UTMAREDG.2D.ADD [UR8], [UR4] ;", true},
		{"floatatomic", "ATOMS.CAST.SPIN R5, [R0], R4, R5 ;", true},
		{"floatatomic", "REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R5 ;", false},
		{"floatatomic", "SYNCS.ARRIVE.TRANS64.RED.A1T0 RZ, [UR4], R5 ;", false},
		{"fence", "MEMBAR.ALL.GPU ;", true},
		{"fence", "MEMBAR.ALL.CTA ;", false},
		{"hgmma", "HGMMA.64x224x16.F32.BF16 R24, gdesc[UR4] ;", false},
		{"hgmma", "HMMA.16816.F32.BF16 R4, R8, R2, R4 ;", true},
		{"hmma", "HMMA.16816.F32.BF16 R4, R8, R2, R4 ;", false},
		{"hmma", "FFMA R4, R8, R2, R4 ;", true},
	} {
		check, ok := checkNamed(c.check)
		if !ok {
			t.Fatalf("no check %q", c.check)
		}
		if got := check.breach(kernel{code: c.code}); (got != "") != c.breach {
			t.Errorf("%s on %q: breach %q, want %v", c.check, c.code, got, c.breach)
		}
	}
}

func TestRules(t *testing.T) {
	kernels, err := parse(sass, usage)
	if err != nil {
		t.Fatal(err)
	}
	some := []rule{
		{"", everyArch, []string{"local", "floatatomic"}},
		{"linear_sm80_kernel", everyArch, []string{"hmma"}},
		{"linear_sm90_kernel", hopper, []string{"hgmma", "fence"}},
		{"attention_kernel", hopper, []string{"hgmma"}},
	}
	got := check(kernels, some, nil)
	want := []string{"linear_sm80_kernelLb0E (sm_90a) floatatomic", "linear_sm80_kernelLb0E (sm_80) hmma", `no kernel named "attention_kernel"`}
	if len(got) != len(want) {
		t.Fatalf("breaches:\n%s", strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("breach %q does not name %q", got[i], want[i])
		}
	}
	for _, r := range rules {
		for _, name := range r.checks {
			if _, ok := checkNamed(name); !ok {
				t.Errorf("rule %q asks for unknown check %q", r.kernel, name)
			}
		}
	}
}

// An allowance covers a kernel of its name and architecture that keeps no more than it says, and nothing else; one that
// nothing needs is a breach.
func TestAllowances(t *testing.T) {
	spills := func(name, arch string, stack int) kernel {
		return kernel{name: name, arch: arch, stack: stack, code: "STL [R1], R4 ;"}
	}
	kernels := []kernel{spills("_Z8a_kernelv", "sm_90a", 8), spills("_Z8a_kernelv", "sm_80", 8), spills("_Z8b_kernelv", "sm_90a", 24), {name: "_Z8c_kernelv", arch: "sm_90a"}}
	all := []rule{{"", everyArch, []string{"local"}}}
	if n := len(check(kernels, all, nil)); n != 3 {
		t.Errorf("%d breaches without allowances, want 3", n)
	}
	got := check(kernels, all, []allowance{{"a_kernelv", "sm_90a", 8, ""}, {"b_kernelv", "sm_90a", 16, ""}, {"c_kernelv", "sm_90a", 8, ""}, {"d_kernelv", "sm_120a", 8, ""}})
	for _, want := range []string{"a_kernelv (sm_80)", "b_kernelv (sm_90a)", "b_kernelv (sm_90a) no longer", "c_kernelv (sm_90a) no longer"} {
		found := false
		for _, line := range got {
			found = found || strings.Contains(line, want)
		}
		if !found {
			t.Errorf("no breach of %q in %q", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("%d breaches, want 4: %q", len(got), got)
	}
}
