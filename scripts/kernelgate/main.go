// Kernelgate reads the machine code of compiled kernels and fails where it breaks a promise that no test on a card
// would notice: registers spilled to local memory, a matrix kernel without tensor-core instructions, a float atomic
// (results would change from run to run), or a device-wide fence inside a pipelined kernel.
//
// Usage:
//
//	kernelgate -cuobjdump PATH object...            check against the rules, print registers and exit 1 on a breach
//	kernelgate -cuobjdump PATH -canaries object...  every kernel named canary_<check> must breach <check>
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	cuobjdump := flag.String("cuobjdump", "cuobjdump", "path of the disassembler")
	canaries := flag.Bool("canaries", false, "prove that the gate can fail: the objects hold planted breaches")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(os.Stdout, *cuobjdump, *canaries, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "kernelgate:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, cuobjdump string, canaries bool, objects []string) error {
	var kernels []kernel
	for _, object := range objects {
		sass, err := dump(cuobjdump, "--dump-sass", object)
		if err != nil {
			return err
		}
		usage, err := dump(cuobjdump, "--dump-resource-usage", object)
		if err != nil {
			return err
		}
		found, err := parse(sass, usage)
		if err != nil {
			return fmt.Errorf("%s: %w", object, err)
		}
		kernels = append(kernels, found...)
	}
	if len(kernels) == 0 {
		return fmt.Errorf("no kernels in %s", strings.Join(objects, ", "))
	}
	if canaries {
		return checkCanaries(w, kernels)
	}
	printTable(w, kernels)
	breaches := check(kernels, rules, allowances)
	for _, b := range breaches {
		fmt.Fprintln(w, b)
	}
	if len(breaches) > 0 {
		return fmt.Errorf("%d breaches in %d kernels", len(breaches), len(kernels))
	}
	fmt.Fprintf(w, "%d kernels pass\n", len(kernels))
	return nil
}

func dump(cuobjdump, what, object string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.Command(cuobjdump, what, object)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s %s: %w: %s", cuobjdump, what, object, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

func checkCanaries(w io.Writer, kernels []kernel) error {
	planted := 0
	for _, k := range kernels {
		name, ok := strings.CutPrefix(k.short(), "canary_")
		if !ok {
			continue
		}
		planted++
		name, _, _ = strings.Cut(name, "_")
		c, ok := checkNamed(name)
		if !ok {
			return fmt.Errorf("canary %s names no check", k.short())
		}
		if c.breach(k) == "" {
			return fmt.Errorf("planted breach of %q in %s (%s) was not seen: the gate cannot fail", name, k.short(), k.arch)
		}
		fmt.Fprintf(w, "canary %-12s %-7s caught: %s\n", name, k.arch, c.breach(k))
	}
	if planted < len(checks) {
		return fmt.Errorf("%d canaries for %d checks", planted, len(checks))
	}
	return nil
}
