package main

import (
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// kernel is one function of one architecture's image.
type kernel struct {
	name, arch              string
	registers, stack, local int // of the resource report; bytes for the last two
	code                    string
}

var (
	archLine     = regexp.MustCompile(`^arch = (sm_\w+)`)
	codeName     = regexp.MustCompile(`^\s*Function : (\S+)`)
	usageName    = regexp.MustCompile(`^\s*Function (\S+):$`)
	usageNumbers = regexp.MustCompile(`REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)`)
	mangled      = regexp.MustCompile(`[a-z][a-z0-9]*(_[a-z0-9]+)*_kernel|canary_[a-z_]+`)
)

// short is the kernel's own name with its template arguments still mangled behind it.
func (k kernel) short() string {
	at := mangled.FindStringIndex(k.name)
	if at == nil {
		return k.name
	}
	args, _, _ := strings.Cut(k.name[at[1]:], "Ev")
	return k.name[at[0]:at[1]] + strings.TrimPrefix(args, "I")
}

// parse joins the disassembly and the resource report that cuobjdump prints for one object.
func parse(sass, usage string) ([]kernel, error) {
	type id struct{ arch, name string }
	index := map[id]int{}
	var kernels []kernel
	arch, current := "", -1
	var code strings.Builder
	flush := func() {
		if current >= 0 {
			kernels[current].code = code.String()
		}
		code.Reset()
		current = -1
	}
	for line := range strings.Lines(sass) {
		if m := archLine.FindStringSubmatch(line); m != nil {
			flush()
			arch = m[1]
		} else if m := codeName.FindStringSubmatch(line); m != nil {
			flush()
			current = len(kernels)
			index[id{arch, m[1]}] = current
			kernels = append(kernels, kernel{name: m[1], arch: arch})
		} else if current >= 0 {
			code.WriteString(line)
		}
	}
	flush()

	current = -1
	for line := range strings.Lines(usage) {
		line = strings.TrimRight(line, "\n")
		if m := archLine.FindStringSubmatch(line); m != nil {
			arch = m[1]
		} else if m := usageName.FindStringSubmatch(line); m != nil {
			i, ok := index[id{arch, m[1]}]
			if !ok {
				return nil, fmt.Errorf("resource report names %s (%s), the disassembly does not", m[1], arch)
			}
			current = i
		} else if m := usageNumbers.FindStringSubmatch(line); m != nil && current >= 0 {
			k := &kernels[current]
			for i, to := range []*int{&k.registers, &k.stack, &k.local} {
				n, err := strconv.Atoi(m[i+1])
				if err != nil {
					return nil, fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
				}
				*to = n
			}
			current = -1
		}
	}
	return kernels, nil
}

func printTable(w io.Writer, kernels []kernel) {
	sorted := append([]kernel(nil), kernels...)
	sort.SliceStable(sorted, func(i, j int) bool {
		if sorted[i].arch != sorted[j].arch {
			return sorted[i].arch < sorted[j].arch
		}
		return sorted[i].short() < sorted[j].short()
	})
	fmt.Fprintf(w, "%-8s %9s %6s %6s %6s %6s  %s\n", "arch", "registers", "stack", "local", "HGMMA", "HMMA", "kernel")
	for _, k := range sorted {
		if strings.Contains(k.name, "_sm90_") && !hopper(k.arch) {
			continue // compiled there as an empty body
		}
		fmt.Fprintf(w, "%-8s %9d %6d %6d %6d %6d  %s\n", k.arch, k.registers, k.stack, k.local,
			strings.Count(k.code, "HGMMA."), strings.Count(k.code, " HMMA."), k.short())
	}
}
