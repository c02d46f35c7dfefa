//go:build cuda

// Package yardstick opens NVIDIA's libraries at run time, to compare kernels with. Nothing else uses them: the program is
// not linked with them, and does without where they are not.
package yardstick

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

// The few entry points of cuBLAS, as its documentation has them; an int is a cublasStatus_t.
typedef struct {
  int (*create)(void **);
  int (*destroy)(void *);
  int (*version)(void *, int *);
  int (*stream)(void *, void *);
  int (*workspace)(void *, void *, size_t);
  int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int, const void *,
              void *, int, int, int, int);
} blas;

static void *open_library(const char *name) { return dlopen(name, RTLD_NOW | RTLD_GLOBAL); }
static const char *open_error(void) { return dlerror(); }

static int blas_find(void *so, blas *b) {
  b->create = (int (*)(void **))dlsym(so, "cublasCreate_v2");
  b->destroy = (int (*)(void *))dlsym(so, "cublasDestroy_v2");
  b->version = (int (*)(void *, int *))dlsym(so, "cublasGetVersion_v2");
  b->stream = (int (*)(void *, void *))dlsym(so, "cublasSetStream_v2");
  b->workspace = (int (*)(void *, void *, size_t))dlsym(so, "cublasSetWorkspace_v2");
  *(void **)&b->gemm = dlsym(so, "cublasGemmEx");
  return b->create && b->destroy && b->version && b->stream && b->workspace && b->gemm;
}
static int blas_create(blas *b, uintptr_t *handle) {
  void *h = 0;
  int status = b->create(&h);
  *handle = (uintptr_t)h;
  return status;
}
static int blas_destroy(blas *b, uintptr_t handle) { return b->destroy((void *)handle); }
static int blas_version(blas *b, uintptr_t handle, int *v) { return b->version((void *)handle, v); }
static int blas_prepare(blas *b, uintptr_t handle, uintptr_t stream, uintptr_t workspace, size_t bytes) {
  int status = b->stream((void *)handle, (void *)stream);
  return status ? status : b->workspace((void *)handle, (void *)workspace, bytes);
}

// C (M,N) = A (M,K) * B, row-major, bf16 with float32 sums: in cuBLAS's column-major eyes C' = B' * A'.
static int blas_product(blas *b, uintptr_t handle, uintptr_t c, uintptr_t a, uintptr_t w, int n_inner, int M, int N, int K) {
  enum { BF16 = 14, F32 = 68, NONE = 0, TRANSPOSED = 1, DEFAULT_ALGORITHM = -1 };
  const float one = 1, zero = 0;
  return b->gemm((void *)handle, n_inner ? NONE : TRANSPOSED, NONE, N, M, K, &one, (void *)w, BF16, n_inner ? N : K, (void *)a, BF16, K,
                 &zero, (void *)c, BF16, N, F32, DEFAULT_ALGORITHM);
}
*/
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"
)

// BLAS is an opened cuBLAS. Its methods are called with the card's context current.
type BLAS struct {
	find    C.blas
	handle  C.uintptr_t
	version int
}

// WorkspaceBytes is what cuBLAS gets for itself, as it recommends for Hopper and more.
const WorkspaceBytes = 64 << 20

// OpenBLAS opens cuBLAS where it can be found: the path in CUBLAS, the system's libraries, /usr/local/cuda, or the wheels
// of a Python.
func OpenBLAS() (*BLAS, error) {
	so, err := open("CUBLAS", "libcublas.so", []string{"13", "12"}, "libcublasLt.so")
	if err != nil {
		return nil, err
	}
	b := &BLAS{}
	if C.blas_find(so, &b.find) == 0 {
		return nil, fmt.Errorf("yardstick: cuBLAS lacks an entry point that versions 12 and 13 have")
	}
	if status := C.blas_create(&b.find, &b.handle); status != 0 {
		return nil, fmt.Errorf("yardstick: cublasCreate: status %d", status)
	}
	var v C.int
	if status := C.blas_version(&b.find, b.handle, &v); status != 0 {
		return nil, fmt.Errorf("yardstick: cublasGetVersion: status %d", status)
	}
	b.version = int(v)
	return b, nil
}

// Name is "cuBLAS 13.1".
func (b *BLAS) Name() string { return "cuBLAS " + blasVersion(b.version) }

// blasVersion writes 130100 as 13.1 and 120900 as 12.9: major·10000 + minor·100 + patch.
func blasVersion(v int) string { return fmt.Sprintf("%d.%d", v/10000, v/100%100) }

// Prepare gives cuBLAS its stream, and WorkspaceBytes of the card's memory.
func (b *BLAS) Prepare(stream, workspace uintptr) error {
	if status := C.blas_prepare(&b.find, b.handle, C.uintptr_t(stream), C.uintptr_t(workspace), WorkspaceBytes); status != 0 {
		return fmt.Errorf("yardstick: cuBLAS's stream and workspace: status %d", status)
	}
	return nil
}

// Product enqueues c (M,N) = a (M,K)·Wᵀ, w (N,K), or with nInner a·W, w (K,N).
func (b *BLAS) Product(c, a, w uintptr, nInner bool, m, n, k int) error {
	inner := C.int(0)
	if nInner {
		inner = 1
	}
	if status := C.blas_product(&b.find, b.handle, C.uintptr_t(c), C.uintptr_t(a), C.uintptr_t(w), inner, C.int(m), C.int(n), C.int(k)); status != 0 {
		return fmt.Errorf("yardstick: cublasGemmEx of %d x %d x %d: status %d", m, n, k, status)
	}
	return nil
}

// Close ends the use of cuBLAS. The library stays open: to close it would take down what it has begun in the driver.
func (b *BLAS) Close() error {
	if status := C.blas_destroy(&b.find, b.handle); status != 0 {
		return fmt.Errorf("yardstick: cublasDestroy: status %d", status)
	}
	return nil
}

// open opens the first library that is there, of versions from new to old; needs are libraries of the same place that it
// asks for by name.
func open(variable, name string, versions []string, needs ...string) (unsafe.Pointer, error) {
	var tried []string
	for _, path := range places(variable, name, versions, os.Getenv) {
		dir := filepath.Dir(path)
		for _, need := range needs { // a wheel's folder is on no search path
			if strings.ContainsRune(path, filepath.Separator) {
				dlopen(filepath.Join(dir, need+filepath.Base(path)[len(name):]))
			}
		}
		if so := dlopen(path); so != nil {
			return so, nil
		}
		tried = append(tried, filepath.Base(path))
	}
	return nil, fmt.Errorf("%s is not there (tried %s on the library path, in /usr/local/cuda and in Python's packages; %s=PATH names another)", name, strings.Join(distinct(tried), ", "), variable)
}

func dlopen(path string) unsafe.Pointer {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	so := C.open_library(text)
	if so == nil {
		C.open_error() // forget it
	}
	return so
}

// pythons are where wheels of NVIDIA's libraries lie.
var pythons = []string{"/usr/local/lib/python3*/*-packages", "/usr/lib/python3*/*-packages", "/opt/*/lib/python3*/site-packages",
	"/opt/*/.venv/lib/python3*/site-packages", "$VIRTUAL_ENV/lib/python3*/site-packages", "$HOME/.pyenv/versions/*/lib/python3*/site-packages", "$HOME/.local/lib/python3*/site-packages"}

// places lists paths of a library, the likeliest first.
func places(variable, name string, versions []string, getenv func(string) string) []string {
	var all []string
	if path := getenv(variable); path != "" {
		return []string{path}
	}
	for _, v := range versions {
		file := name + "." + v
		all = append(all, file, "/usr/local/cuda/lib64/"+file)
		for _, python := range pythons {
			found, _ := filepath.Glob(filepath.Join(os.Expand(python, getenv), "nvidia", "*", "lib", file)) // the pattern is well formed
			all = append(all, found...)
		}
	}
	return all
}

func distinct(words []string) []string {
	var all []string
	seen := map[string]bool{}
	for _, w := range words {
		if !seen[w] {
			seen[w] = true
			all = append(all, w)
		}
	}
	return all
}
