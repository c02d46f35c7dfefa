//go:build !amd64 || purego

package vec

func supported() []string { return nil }
