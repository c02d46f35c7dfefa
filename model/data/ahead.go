package data

import (
	"iter"
	"slices"
	"sync"
)

// ahead calls f on the values of in and yields the results in their order. With workers, which
// are goroutines, it is ahead of its consumer by two values for each; with none it calls f when
// asked. in is run on a goroutine of its own. Nothing runs any more once the sequence has ended.
func ahead[In, Out any](in iter.Seq[In], workers int, f func(In) Out) iter.Seq[Out] {
	if workers < 1 {
		return func(yield func(Out) bool) {
			for v := range in {
				if !yield(f(v)) {
					return
				}
			}
		}
	}
	type task struct {
		in  In
		out chan Out
	}
	return func(yield func(Out) bool) {
		tasks := make(chan task)
		pending := make(chan chan Out, 2*workers)
		done := make(chan struct{})
		var running sync.WaitGroup
		defer running.Wait()
		defer close(done)
		running.Go(func() {
			defer close(pending)
			defer close(tasks)
			for v := range in {
				t := task{v, make(chan Out, 1)}
				select {
				case pending <- t.out:
				case <-done:
					return
				}
				select {
				case tasks <- t:
				case <-done:
					return
				}
			}
		})
		for range workers {
			running.Go(func() {
				for t := range tasks {
					t.out <- f(t.in)
				}
			})
		}
		for out := range pending {
			if !yield(<-out) {
				return
			}
		}
	}
}

// inOrder is ahead for many small pieces of work, which it hands out several at a time.
func inOrder[In, Out any](in []In, workers int, f func(In) Out) iter.Seq[Out] {
	const together = 64
	all := ahead(slices.Chunk(in, together), workers, func(some []In) []Out {
		out := make([]Out, len(some))
		for i, v := range some {
			out[i] = f(v)
		}
		return out
	})
	return func(yield func(Out) bool) {
		for some := range all {
			for _, v := range some {
				if !yield(v) {
					return
				}
			}
		}
	}
}
