//go:build cuda

package yardstick

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAbsent: without cuBLAS or cuDNN there is an error that says where it was looked for, and one of a library that is
// none of it.
func TestAbsent(t *testing.T) {
	for variable, one := range map[string]struct {
		name string
		open func() error
	}{
		"CUBLAS": {"libcublas.so", func() error { _, err := OpenBLAS(); return err }},
		"CUDNN":  {"libcudnn.so", func() error { _, err := OpenDNN(0); return err }},
	} {
		t.Setenv(variable, filepath.Join(t.TempDir(), one.name+".99"))
		if err := one.open(); err == nil || !strings.Contains(err.Error(), one.name+" is not there (tried "+one.name+".99") || !strings.Contains(err.Error(), variable+"=PATH") {
			t.Errorf("%s: %v", variable, err)
		}
		t.Setenv(variable, "libc.so.6")
		if err := one.open(); err == nil || !strings.Contains(err.Error(), "lacks an entry point") {
			t.Errorf("%s: %v", variable, err)
		}
	}
}

func TestPlaces(t *testing.T) {
	root := t.TempDir()
	lib := filepath.Join(root, "python3.12", "site-packages", "nvidia", "cu13", "lib")
	if err := os.MkdirAll(lib, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(lib, "libx.so.13"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	kept := pythons
	defer func() { pythons = kept }()
	pythons = []string{filepath.Join(root, "python3*", "*-packages")}
	got := places("X", "libx.so", []string{"13", "12"}, func(string) string { return "" })
	want := []string{"libx.so.13", "/usr/local/cuda/lib64/libx.so.13", filepath.Join(lib, "libx.so.13"), "libx.so.12", "/usr/local/cuda/lib64/libx.so.12"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := places("X", "libx.so", []string{"13"}, func(string) string { return "/a/b.so" }); !slices.Equal(got, []string{"/a/b.so"}) {
		t.Errorf("%q", got)
	}
}

func TestVersion(t *testing.T) {
	for v, want := range map[int]string{130100: "13.1", 120901: "12.9"} {
		if got := blasVersion(v); got != want {
			t.Errorf("%d: %s, want %s", v, got, want)
		}
	}
}
