package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// tokenBlock is the tokens of one piece of row-wise work.
const tokenBlock = 32

// parallel runs work for every task in [0, tasks) on GOMAXPROCS goroutines, each with scratch memory of its own that is
// free again at the next task. Tasks are cut by shape alone and write to different places, so results do not
// depend on who runs them.
func (b *Backend[T]) parallel(tasks int, work func(task int, s *scratch[T])) {
	n := min(runtime.GOMAXPROCS(0), tasks)
	for len(b.workers) < n {
		b.workers = append(b.workers, scratch[T]{})
	}
	var next atomic.Int64
	run := func(s *scratch[T]) {
		for t := int(next.Add(1)) - 1; t < tasks; t = int(next.Add(1)) - 1 {
			s.free()
			work(t, s)
		}
	}
	if n <= 1 {
		if n == 1 {
			run(&b.workers[0])
		}
		return
	}
	var done sync.WaitGroup
	for w := range n - 1 {
		done.Go(func() { run(&b.workers[w+1]) })
	}
	run(&b.workers[0])
	done.Wait()
}

// rows runs work for every row in [0, n).
func (b *Backend[T]) rows(n int, work func(row int)) {
	b.parallel((n+tokenBlock-1)/tokenBlock, func(task int, _ *scratch[T]) {
		for row := task * tokenBlock; row < min(n, (task+1)*tokenBlock); row++ {
			work(row)
		}
	})
}
