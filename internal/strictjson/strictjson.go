// Package strictjson decodes JSON from files we did not write, without the
// liberties encoding/json takes: it refuses a key that occurs twice in an object
// (encoding/json keeps the last), a key that differs from a struct field only in
// case (encoding/json takes it), a list of the wrong length for a Go array
// (encoding/json pads or drops), a null document, invalid UTF-8, nesting deeper
// than MaxDepth and input larger than the caller's limit. The decoding itself is
// encoding/json's.
//
// The checks allocate at most 16 bytes for each key, which is 2 for each byte of
// input. What a document is decoded into is bounded by the caller: by its type,
// with List and Map, or by taking it apart as an Object.
package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// MaxDepth is the deepest nesting of objects and lists that is accepted.
const MaxDepth = 64

// An Error is a fault at a byte of the input.
type Error struct {
	Offset int64 // bytes from the start of the input
	Msg    string
}

func (e *Error) Error() string { return fmt.Sprintf("byte %d: %s", e.Offset, e.Msg) }

// Unmarshal decodes data, at most limit bytes of JSON, into v as json.Unmarshal
// would, after the checks of the package comment. Keys without a field in v are
// ignored. Every error is an *Error.
func Unmarshal(data []byte, limit int, v any) error {
	if err := check(data, limit, reflect.TypeOf(v)); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return blame(data, reflect.TypeOf(v), err)
	}
	return nil
}

// located turns an error of encoding/json into an *Error; ok is false where it
// does not say its place.
func located(err error) (fault *Error, ok bool) {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return &Error{syntax.Offset, syntax.Error()}, true
	case errors.As(err, &kind):
		msg := fmt.Sprintf("a JSON %s where a %s belongs", kind.Value, kind.Type)
		// Field is a path that also has the names of embedded structs.
		if key := kind.Field[strings.LastIndexByte(kind.Field, '.')+1:]; key != "" {
			msg = key + ": " + msg
		}
		return &Error{kind.Offset, msg}, true
	}
	return &Error{0, err.Error()}, false
}

// blame finds the place of an error in data, which passed every check. That of a
// type that decodes itself does not say: it is the first member of the document
// that cannot be decoded alone.
func blame(data []byte, t reflect.Type, err error) error {
	fault, ok := located(err)
	if ok || t.Elem().Kind() != reflect.Struct {
		return fault
	}
	o, err := Value{Raw: data}.Object()
	if err != nil {
		return fault
	}
	found := o.Each(func(key []byte, v Value) error {
		name, err := json.Marshal(string(key))
		if err != nil {
			return err
		}
		alone := append(append(append(append([]byte{'{'}, name...), ':'), v.Raw...), '}')
		if err := json.Unmarshal(alone, reflect.New(t.Elem()).Interface()); err != nil {
			return v.Fault("%s: %s", key, err)
		}
		return nil
	})
	if found != nil {
		return found
	}
	return fault
}
