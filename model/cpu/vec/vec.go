// Package vec holds the float32 vector routines of the CPU backend.
package vec
