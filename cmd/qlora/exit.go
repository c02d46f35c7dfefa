package main

import (
	"context"
	"errors"
	"syscall"

	"qlora/model/plan"
	"qlora/model/train"
	"qlora/model/weights"
)

// Exit statuses.
const (
	exitDone        = 0
	exitCheckFailed = 1  // a check did not hold: doctor says no, a threshold is missed
	exitUsage       = 2  // usage, bad input
	exitDevice      = 3  // the device failed
	exitStorage     = 4  // a disk is full or failing
	exitNonFinite   = 5  // a value that is not finite, kept from the weights
	exitNoFit       = 6  // the run does not fit the memory
	exitInterrupted = 75 // interrupted; training has saved a checkpoint to go on from
)

// usageError marks what is wrong with a command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errCheckFailed is the error of a verb whose report says that a check did not hold.
var errCheckFailed = errors.New("a check did not hold")

// storageFaults are the system's ways to say that a disk is full or failing.
var storageFaults = []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS}

// exitCode returns the exit status that an error stands for. What has no kind of its own is bad
// input: a file that cannot be read or does not hold what it should.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	for _, kind := range exitKinds {
		if kind.is(err) {
			return kind.code
		}
	}
	return exitUsage
}

// exitKinds is tried in order.
var exitKinds = []struct {
	code int
	is   func(error) bool
}{
	{exitUsage, isA[usageError]},
	{exitDevice, isDeviceFault},
	{exitInterrupted, isA[*train.Interrupted]},
	{exitInterrupted, isOf(context.Canceled)},
	{exitNonFinite, isA[*train.NonFinite]},
	{exitNonFinite, isA[*weights.NonFinite]},
	{exitNoFit, isA[*noFitError]},
	{exitNoFit, isA[*plan.NoFit]},
	{exitCheckFailed, isOf(errCheckFailed)},
	{exitStorage, isOf(storageFaults...)},
}

func isA[T error](err error) bool { _, ok := errors.AsType[T](err); return ok }

func isOf(targets ...error) func(error) bool {
	return func(err error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
}
