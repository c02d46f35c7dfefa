//go:build !amd64 || purego

package gemm

// assembly returns no kernels: there are none for this architecture.
func assembly() []*kernels { return nil }
