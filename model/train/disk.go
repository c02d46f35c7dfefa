package train

import (
	"fmt"
	"syscall"

	"qlora/internal/atomicfile"
)

// checkpointBytes is about what a checkpoint takes on the disk: adapter and two moments, and of every
// tensor its entry in a header.
func (l *loop) checkpointBytes() int64 {
	const header, rest = 256, 64 << 10
	return 3*(4*int64(l.Set.Len())+2*header*int64(l.Set.Modules())) + rest
}

// checkpointsToCome is how many checkpoints a run will write from where it is.
func (l *loop) checkpointsToCome() int {
	o, from := l.Options, l.at.Step
	every := o.SaveSteps
	switch o.SaveStrategy {
	case Never:
		return 0
	case Epoch:
		every = l.perEpoch
	}
	n := l.total/every - from/every
	if l.total%every != 0 && from < l.total {
		n++ // the last step's
	}
	return n
}

// checkDisk refuses a run whose checkpoints do not fit the disk, before its first step.
func (l *loop) checkDisk() error {
	n := l.checkpointsToCome()
	if limit := l.Options.SaveTotalLimit; limit > 0 {
		steps, err := Checkpoints(l.Dir)
		if err != nil {
			return err
		}
		n = min(n, max(limit-len(steps), 0)+1) // one is written before another is removed
	}
	free, err := atomicfile.Free(l.Dir)
	if err != nil {
		return err
	}
	each := l.checkpointBytes()
	if int64(n) <= free/each {
		return nil
	}
	return fmt.Errorf("%s: %d checkpoints of %s do not fit its disk, which has %s free: give an --output_dir on another, "+
		"a larger --save_steps, or a --save_total_limit: %w", l.Dir, n, bytesText(each), bytesText(free), syscall.ENOSPC)
}

func bytesText(n int64) string {
	switch {
	case n < 1e6:
		return fmt.Sprintf("%d kB", n/1000)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// freeText says how much room the disk of dir has, where that can be found out.
func freeText(dir string) string {
	free, err := atomicfile.Free(dir)
	if err != nil {
		return ""
	}
	return " (" + bytesText(free) + " are free)"
}
