// Package yamlguard refuses YAML that would take the parser, goccy/go-yaml, time and memory that grow with the square of
// the input: it keeps a path for every node, so that nesting costs depth times depth. What passes costs up to about
// 700 bytes a byte.
package yamlguard

import (
	"bytes"
	"fmt"
)

// MaxDepth is how deep lists and objects may be nested on a line or in brackets. By indentation alone a file of a
// megabyte reaches no depth that costs much.
const MaxDepth = 200

// Check counts brackets wherever they stand, in texts too, and the dashes that open a line.
func Check(text []byte) error {
	depth, line := 0, 1
	for row := range bytes.Lines(text) {
		dashes := 0
		for rest := row; ; dashes++ {
			rest = bytes.TrimLeft(rest, " ")
			if len(rest) < 2 || rest[0] != '-' && rest[0] != '?' || rest[1] != ' ' {
				break
			}
			rest = rest[2:]
		}
		for _, c := range row {
			switch c {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(depth-1, 0)
			}
			if depth > MaxDepth || dashes > MaxDepth {
				return fmt.Errorf("line %d: nested deeper than %d", line, MaxDepth)
			}
		}
		line++
	}
	return nil
}
