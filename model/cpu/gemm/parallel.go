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

// worthCore is the number of multiply-adds from which another core is worth it: some 20 microseconds. Cutting a product
// costs too: each piece brings its operands into panels anew.
const worthCore = 1 << 20

// coresFor is the number of cores that a product of so many multiply-adds is cut for.
func coresFor(multiplyAdds int) int { return min(runtime.GOMAXPROCS(0), 1+multiplyAdds/worthCore) }

// parallel runs work for each task in [0, tasks), on up to cores goroutines, the caller's among them. Which goroutine
// runs a task does not change a result: tasks write to different places.
func parallel(tasks, cores int, work func(task int, s *scratch)) {
	j := &job{tasks: int64(tasks), work: work}
	j.left.Add(tasks)
	for range min(cores, tasks) - 1 {
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
