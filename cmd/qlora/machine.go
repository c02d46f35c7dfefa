package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// processorName is the model name in /proc/cpuinfo, or the architecture.
func processorName() string {
	if name, err := procField("/proc/cpuinfo", "model name"); err == nil {
		return name
	}
	return runtime.GOARCH
}

// memory returns the bytes of memory there are, and those that programs can get.
func memory() (total, free uint64, err error) {
	for name, bytes := range map[string]*uint64{"MemTotal": &total, "MemAvailable": &free} {
		text, err := procField("/proc/meminfo", name)
		if err != nil {
			return 0, 0, err
		}
		if _, err := fmt.Sscanf(text, "%d kB", bytes); err != nil {
			return 0, 0, fmt.Errorf("/proc/meminfo: %s %q: %w", name, text, err)
		}
		*bytes <<= 10
	}
	if limit, used, ok := groupMemory(); ok {
		total, free = min(total, limit), min(free, limit-min(used, limit))
	}
	return total, free, nil
}

// groupMemory returns the limit and use of the control group, as a container has them.
func groupMemory() (limit, used uint64, ok bool) {
	for _, files := range [][2]string{
		{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
		{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
	} {
		if readNumber(files[0], &limit) && readNumber(files[1], &used) {
			return limit, used, true
		}
	}
	return 0, 0, false
}

// readNumber reads a file that holds one number; "max" is none.
func readNumber(path string, n *uint64) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	_, err = fmt.Sscanf(string(text), "%d", n)
	return err == nil
}

// procField returns the first value of a name in a file of lines "name : value".
func procField(path, name string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", errors.Join(fmt.Errorf("%s: no %s", path, name), lines.Err())
}
