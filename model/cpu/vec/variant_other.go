//go:build !amd64 || purego

package vec

func assembly() []*kernels { return nil }

func supported() []string { return nil }
