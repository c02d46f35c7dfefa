package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// A Value is a part of a document that passed the checks of the package comment.
type Value struct {
	Raw    json.RawMessage // shares memory with the document
	Offset int             // of Raw in the document
}

// Fault is an error at the value.
func (v Value) Fault(format string, args ...any) *Error {
	return &Error{int64(v.Offset), fmt.Sprintf(format, args...)}
}

// An Object is a Value that is one.
type Object struct{ Value }

// Parse checks a document of at most limit bytes, which must be an object.
func Parse(data []byte, limit int) (Object, error) {
	if err := check(data, limit, nil); err != nil {
		return Object{}, err
	}
	space := len(data) - len(bytes.TrimLeft(data, " \t\r\n"))
	if data[space] != '{' {
		return Object{}, &Error{int64(space), "the document is not an object"}
	}
	return Object{Value{data[space:], space}}, nil
}

// Object returns a value that must be an object.
func (v Value) Object() (Object, error) {
	if v.Raw[0] != '{' {
		return Object{}, v.Fault("not an object")
	}
	return Object{v}, nil
}

// Each calls do for every key and its value, in the order of the file. A key,
// which is unescaped, is valid during the call alone. An error of do ends the
// calls and is returned.
func (o Object) Each(do func(key []byte, v Value) error) error {
	s := scanner{data: o.Raw, pos: 1}
	var name []byte
	for s.space(); s.data[s.pos] != '}'; s.space() {
		key := s.key()
		if bytes.IndexByte(key, '\\') >= 0 {
			name = unescape(name[:0], key)
			key = name
		}
		start := s.pos
		s.skip()
		if err := do(key, Value{s.data[start:s.pos:s.pos], o.Offset + start}); err != nil {
			return err
		}
		s.space()
		s.comma()
	}
	return nil
}

// Len is the number of keys.
func (o Object) Len() int {
	s := scanner{data: o.Raw, pos: 1}
	n := 0
	for s.space(); s.data[s.pos] != '}'; s.space() {
		n++
		s.key()
		s.skip()
		s.space()
		s.comma()
	}
	return n
}

// A Member is a key and its value.
type Member struct {
	Key string
	Value
}

// Members returns the keys and values, in the order of the file: at most most of
// them.
func (o Object) Members(most int) ([]Member, error) {
	n := o.Len()
	if n > most {
		return nil, o.Fault("%d keys, more than %d", n, most)
	}
	all := make([]Member, 0, n)
	err := o.Each(func(key []byte, v Value) error {
		all = append(all, Member{string(key), v})
		return nil
	})
	return all, err
}
