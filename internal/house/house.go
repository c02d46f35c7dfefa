// Package house holds the tests of what the compiler does not check: which package may import
// which, who may use unsafe or the network, what kernels must not call.
package house
