package result

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// WriteGoBench writes the rows in Go's benchmark format, a line a sample, which benchstat and its kin read.
func WriteGoBench(w io.Writer, files []*File) error {
	b := bufio.NewWriter(w)
	for _, f := range files {
		e := f.Environment
		for _, kv := range [][2]string{{"pkg", "qlora/bench"}, {"device", e.Device()}, {"backend", e.Backend}, {"kernels", e.Kernels},
			{"commit", e.Program.Commit}, {"cpu", e.Host.CPU}, {"kind", string(f.Kind)}} {
			if kv[1] != "" {
				fmt.Fprintf(b, "%s: %s\n", kv[0], kv[1])
			}
		}
		for _, r := range f.Rows {
			r.goBench(b)
		}
	}
	return b.Flush()
}

// goBench writes BenchmarkName/param=value 1 ns/op and what else a sample came to.
func (r Row) goBench(w io.Writer) {
	name := goName(r.Name)
	name = "Benchmark" + strings.ToUpper(name[:1]) + name[1:]
	for _, p := range slices.Sorted(maps.Keys(r.Params)) {
		name += "/" + p + "=" + goName(r.Params[p])
	}
	for _, s := range r.Seconds {
		fmt.Fprintf(w, "%s 1 %.7g ns/op", name, s*1e9)
		for _, m := range []struct {
			amount float64
			unit   string
		}{{r.FLOPs / s, "FLOP/s"}, {r.Bytes / s, "B/s"}, {float64(r.Tokens) / s, "tokens/s"}, {r.Joules, "J/op"}} {
			if m.amount > 0 {
				fmt.Fprintf(w, " %.7g %s", m.amount, m.unit)
			}
		}
		fmt.Fprintln(w)
	}
}

// goName is a name without the spaces that separate fields.
func goName(s string) string { return strings.Join(strings.Fields(s), "_") }
