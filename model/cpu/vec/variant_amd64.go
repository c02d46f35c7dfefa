//go:build amd64 && !purego

package vec

import "golang.org/x/sys/cpu"

func supported() []string {
	var v []string
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		v = append(v, AVX2)
		if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL {
			v = append(v, AVX512)
		}
	}
	return v
}
