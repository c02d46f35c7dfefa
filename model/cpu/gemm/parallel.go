package gemm

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	kBlock   = 256 // terms of a sum that one chain of multiply-adds takes: a panel of them stays in the L1 cache
	rowBlock = 240 // rows of a left block: with kBlock terms it stays in L2; a multiple of every kernel's mr
	maxNR    = 32  // columns of the widest panel
)

// scratch is what one worker needs: a left block brought into rows, a panel, and the outputs of a panel that reaches
// over the last column.
type scratch struct {
	left  [kBlock * rowBlock]float32
	panel [kBlock * maxNR]float32
	edge  [rowBlock * maxNR]float32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// worthGoroutine is the number of multiply-adds from which another goroutine is worth waking: some microseconds.
const worthGoroutine = 1 << 16

// parallel runs work for each task in [0, tasks), on up to GOMAXPROCS goroutines, the caller's among them, fewer when
// the multiply-adds of all tasks are few. Which goroutine runs a task does not change a result: tasks write to
// different places.
func parallel(tasks, multiplyAdds int, work func(task int, s *scratch)) {
	j := &job{tasks: int64(tasks), work: work}
	j.left.Add(tasks)
	for range min(runtime.GOMAXPROCS(0), tasks, 1+multiplyAdds/worthGoroutine) - 1 {
		go j.help()
	}
	j.help()
	j.left.Wait()
}

type job struct {
	next  atomic.Int64
	tasks int64
	work  func(task int, s *scratch)
	left  sync.WaitGroup
}

// help takes tasks until none is left. A helper that comes too late finds none, and nobody waits for it.
func (j *job) help() {
	s := scratches.Get().(*scratch)
	for t := j.next.Add(1) - 1; t < j.tasks; t = j.next.Add(1) - 1 {
		j.work(int(t), s)
		j.left.Done()
	}
	scratches.Put(s)
}
