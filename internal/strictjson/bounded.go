package strictjson

import (
	"encoding/json"
	"fmt"
)

// MaxItems is the most that a List or a Map holds: of settings, which in memory
// take many times the few bytes that an element takes in the file.
const MaxItems = 4096

// A List is a list of at most MaxItems values.
type List[T any] []T

// UnmarshalJSON counts before it decodes.
func (l *List[T]) UnmarshalJSON(data []byte) error { return bounded(data, (*[]T)(l)) }

// A Map is an object of at most MaxItems keys.
type Map[T any] map[string]T

// UnmarshalJSON counts before it decodes.
func (m *Map[T]) UnmarshalJSON(data []byte) error { return bounded(data, (*map[string]T)(m)) }

// Elements counts those of a list that is valid JSON.
func Elements(list []byte) int {
	s := scanner{data: list, pos: 1}
	n := 0
	for s.space(); s.data[s.pos] != ']'; s.space() {
		s.skip()
		s.space()
		s.comma()
		n++
	}
	return n
}

// bounded decodes a list or an object of no more than MaxItems.
func bounded(data []byte, into any) error {
	n := 0
	switch data[0] {
	case '[':
		n = Elements(data)
	case '{':
		n = Object{Value{Raw: data}}.Len()
	}
	if n > MaxItems {
		return fmt.Errorf("%.20q… has %d elements, more than %d", data, n, MaxItems)
	}
	if err := json.Unmarshal(data, into); err != nil {
		fault, _ := located(err)
		return fmt.Errorf("%s, in %.40q", fault.Msg, data)
	}
	return nil
}
