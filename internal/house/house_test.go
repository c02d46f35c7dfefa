package house

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "qlora"

// mayImport is the direction of imports: a package, and what of ours it may import. A key or an
// edge ending in /... takes in the packages below it; the first key that matches counts. A package
// always may import what lies below its own folder.
var mayImport = []struct {
	pkg   string
	edges string
}{
	{"cmd/qlora", "..."},
	{"bench/...", "bench/... model/train model/infer model/plan model/ops/opstest " + modelEdges},
	{"cuda/sizes", "model/ops internal/..."},
	{"cuda/...", "model/ops internal/..."},
	{"model/cpu/...", "model/ops model/cpu/... internal/..."},
	{"model/ops/opstest", "model/ops internal/..."},
	{"model/ops", "internal/..."},
	{"model/memory", "internal/..."},
	{"model/weights/weightstest", "model/weights"},
	{"model/weights", "internal/..."},
	{"model/tokenizer", "internal/..."},
	{"model/data", "internal/..."},
	{"model/qwen2", "model/ops model/memory model/weights internal/..."},
	{"model/lora", "model/ops model/memory model/weights internal/..."},
	{"model/train", modelEdges},
	{"model/infer", modelEdges},
	{"model/eval", modelEdges + " model/infer"},
	{"model/export", modelEdges},
	{"model/plan", modelEdges},
	{"internal/...", "internal/..."},
	{"scripts/demo", "model/eval"}, // the form of its reports
	{"scripts/bnb/...", "model/weights internal/..."},
	{"scripts/bigmodel", "model/weights"},
	{"scripts/...", ""},
}

const modelEdges = "model/qwen2 model/lora model/memory model/ops model/data model/tokenizer model/weights internal/..."

// testsMayImport adds what the tests of a package may import besides.
var testsMayImport = []struct {
	pkg   string
	edges string
}{
	{"model/...", "model/... internal/... cuda/sizes"}, // whatever runs without a card
	{"bench/...", "model/cpu cuda/sizes"},
	{"cuda/...", "model/..."}, // a whole model against the processor
	{"scripts/...", "internal/..."},
}

// mayUseUnsafe and mayUseNetwork are the packages, or files, that may import unsafe and net or
// net/http.
var (
	mayUseUnsafe = []string{
		"model/cpu/arena.go", // typed views of the arena
		"model/cpu/gemm/...", // kernels take addresses, as assembly does
		"model/cpu/vec/...",
		"cuda/...", // C
	}
	mayUseNetwork = []string{"internal/fetch/..."}
)

// matches reports whether a path from the module's root is that of a pattern.
func matches(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "..."); ok {
		return path+"/" == prefix || strings.HasPrefix(path, prefix)
	}
	return pattern == path
}

func anyMatches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, path) })
}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath                         string
	Dir                                string
	GoFiles, CgoFiles, IgnoredGoFiles  []string
	TestGoFiles, XTestGoFiles          []string
	Imports, TestImports, XTestImports []string
}

// path is the package's folder from the module's root.
func (p pkg) path() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// packages lists the packages of the module as they are built with tags.
func packages(t *testing.T, tags string) []pkg {
	t.Helper()
	list := exec.Command("go", "list", "-e", "-json", "-tags", tags, "./...")
	list.Dir = root(t)
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list names no package")
	}
	return all
}

// root is the module's folder.
func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// breach returns what is wrong with an import of one of our packages by another: "" for nothing.
func breach(from, to string, test bool) string {
	if matches(from+"/...", to) || from == to {
		return ""
	}
	for _, rule := range mayImport {
		if !matches(rule.pkg, from) {
			continue
		}
		edges := strings.Fields(rule.edges)
		for _, more := range testsMayImport {
			if test && matches(more.pkg, from) {
				edges = append(edges, strings.Fields(more.edges)...)
			}
		}
		if anyMatches(edges, to) {
			return ""
		}
		return from + " may not import " + to
	}
	return from + " is not in the table of imports: add a row for it"
}

func TestImportDirection(t *testing.T) {
	for _, tags := range []string{"", "cuda"} {
		for _, p := range packages(t, tags) {
			for i, imports := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
				for _, to := range imports {
					ours, ok := strings.CutPrefix(to, module+"/")
					if !ok {
						continue
					}
					if why := breach(p.path(), ours, i > 0); why != "" {
						t.Errorf("tags %q: %s", tags, why)
					}
				}
			}
		}
	}
}

// TestBreach shows that the table can say no.
func TestBreach(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test, ok bool
	}{
		{"cmd/qlora", "model/train", false, true},
		{"model/qwen2", "model/ops", false, true},
		{"model/qwen2", "model/cpu", false, false},
		{"model/qwen2", "model/cpu", true, true},
		{"model/ops", "cuda", false, false},
		{"model/train", "cuda", false, false},
		{"model/train", "cuda", true, false},
		{"model/train", "model/infer", false, false},
		{"bench/measure", "bench/stat", false, true},
		{"bench", "model/cpu", false, false},
		{"bench", "model/cpu", true, true},
		{"bench/report", "cuda/nvml", false, false},
		{"model/train", "bench/stat", false, false},
		{"model/cpu", "model/cpu/gemm", false, true},
		{"model/cpu/gemm", "model/data", false, false},
		{"model/cpu/gemm", "model/cpu/vec", false, true},
		{"internal/strictjson", "model/ops", false, false},
		{"model/new", "model/ops", false, false},
		{"model/data", "cmd/qlora", true, false},
	} {
		if got := breach(c.from, c.to, c.test); (got == "") != c.ok {
			t.Errorf("%s -> %s (test %v): %q", c.from, c.to, c.test, got)
		}
	}
}

// TestBackendNamed holds that one file of cmd/qlora names a backend.
func TestBackendNamed(t *testing.T) {
	backend := regexp.MustCompile(`"` + module + `/(model/cpu|cuda)(/[^"]*)?"`)
	eachFile(t, "cmd", ".go", func(path string, text []byte) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(filepath.Base(path), "backend") {
			return
		}
		if m := backend.Find(text); m != nil {
			t.Errorf("%s imports %s: only backend.go names a backend", path, m)
		}
	})
}

// importing matches an import of a package in any form; the parser would refuse files under
// construction, and comments do not look like this.
func importing(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^\s*(import\s+)?(\w+\s+|\.\s+)?"` + regexp.QuoteMeta(name) + `"\s*(//.*)?$`)
}

func TestUnsafe(t *testing.T) {
	unsafe, linkname := importing("unsafe"), regexp.MustCompile(`(?m)^//go:linkname`)
	eachFile(t, ".", ".go", func(path string, text []byte) {
		switch {
		case matches("scripts/...", path) || anyMatches(mayUseUnsafe, path):
		case unsafe.Match(text):
			t.Errorf("%s imports unsafe, which only %s may", path, strings.Join(mayUseUnsafe, ", "))
		case linkname.Match(text):
			t.Errorf("%s uses go:linkname", path)
		}
	})
}

func TestNetwork(t *testing.T) {
	network := []*regexp.Regexp{importing("net"), importing("net/http"), importing("net/rpc"), importing("net/smtp")}
	eachFile(t, ".", ".go", func(path string, text []byte) {
		for _, n := range network {
			if n.Match(text) && !anyMatches(mayUseNetwork, filepath.ToSlash(filepath.Dir(path))) {
				t.Errorf("%s imports the network (%s)", path, strings.TrimSpace(string(n.Find(text))))
			}
		}
	})
}

// TestImporting shows that the patterns above find what they look for.
func TestImporting(t *testing.T) {
	for text, want := range map[string]bool{
		"import \"unsafe\"\n":                  true,
		"import (\n\t\"fmt\"\n\t\"unsafe\"\n)": true,
		"import (\n\tu \"unsafe\" // why\n)":   true,
		"import _ \"unsafe\"\n":                true,
		"// \"unsafe\"\n":                      false,
		"x := \"unsafe\"\n":                    false,
	} {
		if importing("unsafe").MatchString(text) != want {
			t.Errorf("%q: found %v, want %v", text, !want, want)
		}
	}
}

// kernelCall matches what device code must not do: end the process or print.
var kernelCall = regexp.MustCompile(`\b(exit|_Exit|abort|printf|fprintf|puts|assert)\s*\(`)

// comment matches comments and string literals of C, which may say exit().
var comment = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*|"(\\.|[^"\\\n])*"`)

func TestKernels(t *testing.T) {
	for _, ext := range []string{".cu", ".cuh", ".h", ".c"} {
		eachFile(t, "kernels", ext, func(path string, text []byte) {
			if matches("kernels/test/...", path) {
				return
			}
			if m := kernelCall.Find(comment.ReplaceAll(text, nil)); m != nil {
				t.Errorf("%s calls %s...): return a status instead", path, m)
			}
		})
	}
	eachFile(t, "kernels", ".go", func(path string, _ []byte) {
		t.Errorf("%s: kernels hold no Go", path)
	})
	for text, want := range map[string]bool{
		"  exit(1);": true, "printf(\"%d\", x);": true, "assert (x)": true,
		"/* never exit() */ return 0;": false, "// printf(x)": false, "static_assert(x, \"y\");": false, "s = \"exit(1)\";": false,
	} {
		if got := kernelCall.MatchString(comment.ReplaceAllString(text, "")); got != want {
			t.Errorf("%q: found %v, want %v", text, got, want)
		}
	}
}

// TestDocsNameTests holds that every test a page names exists.
func TestDocsNameTests(t *testing.T) {
	name, declared := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w*`), regexp.MustCompile(`(?m)^func ((Test|Fuzz)\w+)\(`)
	exists := map[string]bool{}
	eachFile(t, ".", ".go", func(_ string, text []byte) {
		for _, m := range declared.FindAllSubmatch(text, -1) {
			exists[string(m[1])] = true
		}
	})
	named := 0
	eachFile(t, "docs", ".md", func(path string, text []byte) {
		for _, m := range name.FindAllString(string(text), -1) {
			if named++; !exists[m] {
				t.Errorf("%s names %s, which is no test", path, m)
			}
		}
	})
	if named == 0 {
		t.Error("no page names a test")
	}
}

// eachFile visits the files below dir with a name ending in ext, by their path from the root, and
// leaves out what is not ours to check: hidden folders, build outputs, test data.
func eachFile(t *testing.T, dir, ext string, visit func(path string, text []byte)) {
	t.Helper()
	top := root(t)
	found := 0
	err := filepath.WalkDir(filepath.Join(top, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		if d.IsDir() && rel != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "build", "bin", "output"}, d.Name())) {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() || filepath.Ext(path) != ext {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found++
		visit(filepath.ToSlash(rel), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 && ext == ".go" && dir != "kernels" {
		t.Fatalf("no %s file below %s: nothing was checked", ext, dir)
	}
}
