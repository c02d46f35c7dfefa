package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// namedCheck is one property of a kernel's machine code.
type namedCheck struct {
	name  string
	match *regexp.Regexp // an instruction that breaks it, or with need one that must be there
	need  bool
	why   string
}

var checks = []namedCheck{
	{name: "local", match: regexp.MustCompile(`\b(LDL|STL)\b`),
		why: "registers spill to, or an array lives in, local memory"},
	// A compare-and-swap loop can hide a float add, a shared-memory one too (ATOMS.CAST.SPIN); bulk reductions are adds in L2.
	{name: "floatatomic", match: regexp.MustCompile(`\b(RED|REDG|ATOM|ATOMG|ATOMS)\.\S*(F16|F32|F64|BF16|CAS)|\bUBLKRED|\bUTMAREDG`),
		why: "a float atomic: sums would depend on the order of arrival"},
	{name: "fence", match: regexp.MustCompile(`\bMEMBAR\.\S*\.(GPU|SYS)`),
		why: "a device-wide fence stalls the pipeline (an arrive with .release.cluster compiles to one)"},
	{name: "hgmma", match: regexp.MustCompile(`\bHGMMA\.64x\d+x16\.F32\.BF16`), need: true,
		why: "no warpgroup matrix instruction"},
	{name: "hmma", match: regexp.MustCompile(`\bHMMA\.16816\.F32\.BF16`), need: true,
		why: "no tensor-core instruction"},
}

func checkNamed(name string) (namedCheck, bool) {
	for _, c := range checks {
		if c.name == name {
			return c, true
		}
	}
	return namedCheck{}, false
}

// breach says how k breaks the property, or "".
func (c namedCheck) breach(k kernel) string {
	line := c.match.FindString(k.code)
	switch {
	case c.need && line == "":
		return c.why
	case !c.need && line != "":
		return fmt.Sprintf("%s: %s", c.why, line)
	}
	return ""
}

// rule asks for checks of every kernel whose name contains one string. A rule that finds no kernel is itself a breach,
// so that renaming a kernel does not take it out of the gate.
type rule struct {
	kernel string
	arch   func(string) bool
	checks []string
}

func everyArch(string) bool          { return true }
func hopper(arch string) bool        { return arch == "sm_90a" }
func (r rule) matches(k kernel) bool { return r.arch(k.arch) && strings.Contains(k.name, r.kernel) }

var rules = []rule{
	{"", everyArch, []string{"local", "floatatomic"}},
	{"linear_sm80_kernel", everyArch, []string{"hmma"}},
	{"linear_sm90_kernel", hopper, []string{"hgmma", "fence"}},
	{"head_product_kernel", everyArch, []string{"hmma"}},
	{"head_sm90_kernel", hopper, []string{"hgmma", "fence"}},
	{"attention_fwd_sm80_kernel", everyArch, []string{"hmma"}},
	{"attention_dq_sm80_kernel", everyArch, []string{"hmma"}},
	{"attention_dkv_sm80_kernel", everyArch, []string{"hmma"}},
	{"attention_fwd_sm90_kernel", hopper, []string{"hgmma", "fence"}},
	{"attention_dq_sm90_kernel", hopper, []string{"hgmma", "fence"}},
	{"attention_dkv_sm90_kernel", hopper, []string{"hgmma", "fence"}},
	{"probe_products_sm80_kernel", everyArch, []string{"hmma"}},
	{"probe_products_sm90_kernel", hopper, []string{"hgmma"}},
}

// allowance lets one kernel on one architecture keep so many bytes in local memory. It must be needed.
type allowance struct {
	kernel, arch string
	stack        int
	why          string
}

var allowances = []allowance{
	{"swiglu_bwd_kernelLi8E", "sm_120a", 56, "ranks above 32 alone"},
	{"sample_kernel14sample_problem", "sm_120a", 16, "one block a sequence and token, beside the products of the whole model"},
}

func (a allowance) covers(k kernel) bool {
	return a.kernel == k.short() && a.arch == k.arch && k.stack <= a.stack
}

// check returns one line for each breach.
func check(kernels []kernel, rules []rule, allowed []allowance) []string {
	var breaches []string
	for _, r := range rules {
		found, archSeen := 0, false
		for _, k := range kernels {
			archSeen = archSeen || r.arch(k.arch)
			if !r.matches(k) {
				continue
			}
			found++
			for _, name := range r.checks {
				c, ok := checkNamed(name)
				if !ok {
					panic("kernelgate: rule names unknown check " + name)
				}
				if name == "local" && slices.ContainsFunc(allowed, func(a allowance) bool { return a.covers(k) }) {
					continue
				}
				if b := c.breach(k); b != "" {
					breaches = append(breaches, fmt.Sprintf("BREACH %s (%s) %s: %s", k.short(), k.arch, name, b))
				}
			}
		}
		if found == 0 && archSeen {
			breaches = append(breaches, fmt.Sprintf("BREACH no kernel named %q: renamed or lost", r.kernel))
		}
	}
	local, _ := checkNamed("local")
	for _, a := range allowed {
		compiled := slices.ContainsFunc(kernels, func(k kernel) bool { return k.arch == a.arch })
		needed := slices.ContainsFunc(kernels, func(k kernel) bool { return a.covers(k) && local.breach(k) != "" })
		if compiled && !needed {
			breaches = append(breaches, fmt.Sprintf("BREACH %s (%s) no longer needs %d bytes of local memory: take its allowance away", a.kernel, a.arch, a.stack))
		}
	}
	return breaches
}
