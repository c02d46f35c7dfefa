// Package strictjson decodes JSON from files we did not write, without the
// liberties encoding/json takes: it refuses a key that occurs twice in an object
// (encoding/json keeps the last), a key that differs from a struct field only in
// case (encoding/json takes it), a list of the wrong length for a Go array
// (encoding/json pads or drops), a null document, invalid UTF-8, nesting deeper
// than MaxDepth and input larger than the caller's limit. The decoding itself is
// encoding/json's.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
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
	if _, err := check(data, limit, reflect.TypeOf(v), false); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return located(err)
	}
	return nil
}

// A Member is one key and value of an object, in the order of the file.
type Member struct {
	Key    string
	Value  json.RawMessage // aliases the input
	Offset int             // of Value in the input
}

// Members splits a document, at most limit bytes, whose top level is an object
// into its members, after the checks of the package comment. The values share
// memory with data: nothing is copied but the keys.
func Members(data []byte, limit int) ([]Member, error) {
	members, err := check(data, limit, nil, true)
	if err != nil {
		return nil, err
	}
	return members, nil
}

// check runs every check on data, with the field names of target, and splits the
// top level when asked.
func check(data []byte, limit int, target reflect.Type, split bool) ([]Member, error) {
	if len(data) > limit {
		return nil, &Error{int64(limit), fmt.Sprintf("%d bytes of JSON, more than the limit of %d", len(data), limit)}
	}
	if !utf8.Valid(data) {
		return nil, &Error{int64(invalidUTF8(data)), "invalid UTF-8"}
	}
	if !json.Valid(data) {
		var raw json.RawMessage
		return nil, located(json.Unmarshal(data, &raw))
	}
	w := walker{data: data, split: split}
	w.space()
	if w.data[w.pos] == 'n' {
		return nil, &Error{int64(w.pos), "the document is null"}
	}
	if split && w.data[w.pos] != '{' {
		return nil, &Error{int64(w.pos), "the document is not an object"}
	}
	if err := w.value(target, 0); err != nil {
		return nil, err
	}
	return w.members, nil
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(data)
}

// located turns an error of encoding/json into an *Error.
func located(err error) *Error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return &Error{syntax.Offset, syntax.Error()}
	case errors.As(err, &kind):
		msg := fmt.Sprintf("a JSON %s where a %s belongs", kind.Value, kind.Type)
		// Field is a path that also has the names of embedded structs.
		if key := kind.Field[strings.LastIndexByte(kind.Field, '.')+1:]; key != "" {
			msg = key + ": " + msg
		}
		return &Error{kind.Offset, msg}
	}
	return &Error{0, err.Error()}
}

// walker visits a document that json.Valid has accepted, so it needs no syntax
// checks of its own.
type walker struct {
	data    []byte
	pos     int
	split   bool     // keep the members of the top-level object
	members []Member // of the top-level object
}

func (w *walker) fault(at int, format string, args ...any) error {
	return &Error{int64(at), fmt.Sprintf(format, args...)}
}

func (w *walker) space() {
	for w.pos < len(w.data) && strings.IndexByte(" \t\r\n", w.data[w.pos]) >= 0 {
		w.pos++
	}
}

// value visits the value at pos, which is to be decoded into t (nil: unknown),
// and leaves pos after it and the space behind it.
func (w *walker) value(t reflect.Type, depth int) error {
	t = plain(t)
	var err error
	switch w.data[w.pos] {
	case '{':
		err = w.object(t, depth+1)
	case '[':
		err = w.list(t, depth+1)
	case '"':
		w.skipString()
	default: // a number, true, false, null
		for w.pos < len(w.data) && strings.IndexByte(" \t\r\n,]}", w.data[w.pos]) < 0 {
			w.pos++
		}
	}
	w.space()
	return err
}

func (w *walker) object(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return w.fault(w.pos, "nested deeper than %d", MaxDepth)
	}
	fields := fieldsOf(t)
	var seen keySet
	w.pos++ // {
	for w.space(); w.data[w.pos] != '}'; w.space() {
		at := w.pos
		key := w.key()
		if !seen.add(key) {
			return w.fault(at, "key %q occurs twice", key)
		}
		elem, err := fields.typeOf(key)
		if err != nil {
			return w.fault(at, "%s", err)
		}
		start := w.pos
		if err := w.value(elem, depth); err != nil {
			return err
		}
		if depth == 1 && w.split {
			w.members = append(w.members, Member{key, bytes.TrimRight(w.data[start:w.pos:w.pos], " \t\r\n"), start})
		}
		if w.data[w.pos] == ',' {
			w.pos++
		}
	}
	w.pos++ // }
	return nil
}

// A keySet holds the keys of an object, the first few without a map, as most
// objects have no more.
type keySet struct {
	few  [8]string
	n    int
	many map[string]struct{}
}

// add reports whether key is new.
func (s *keySet) add(key string) bool {
	if s.n < len(s.few) {
		if slices.Contains(s.few[:s.n], key) {
			return false
		}
		s.few[s.n] = key
		s.n++
		return true
	}
	if s.many == nil {
		s.many = make(map[string]struct{})
		for _, k := range s.few {
			s.many[k] = struct{}{}
		}
	}
	before := len(s.many)
	s.many[key] = struct{}{}
	return len(s.many) > before
}

func (w *walker) list(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return w.fault(w.pos, "nested deeper than %d", MaxDepth)
	}
	at := w.pos
	var elem reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	w.pos++ // [
	n := 0
	for w.space(); w.data[w.pos] != ']'; w.space() {
		if err := w.value(elem, depth); err != nil {
			return err
		}
		n++
		if w.data[w.pos] == ',' {
			w.pos++
		}
	}
	w.pos++ // ]
	if t != nil && t.Kind() == reflect.Array && n != t.Len() {
		return w.fault(at, "a list of %d where %d belong", n, t.Len())
	}
	return nil
}

// key reads a key and its colon, and leaves pos at the value.
func (w *walker) key() string {
	start := w.pos
	w.skipString()
	quoted := w.data[start:w.pos]
	key := string(quoted[1 : len(quoted)-1])
	if strings.IndexByte(key, '\\') >= 0 {
		// json.Valid has accepted the string, so it decodes.
		_ = json.Unmarshal(quoted, &key)
	}
	w.space()
	w.pos++ // :
	w.space()
	return key
}

func (w *walker) skipString() {
	for w.pos++; w.data[w.pos] != '"'; w.pos++ {
		if w.data[w.pos] == '\\' {
			w.pos++
		}
	}
	w.pos++
}

// plain strips pointers, and hides types that decode themselves.
func plain(t reflect.Type) reflect.Type {
	unmarshaler := reflect.TypeFor[json.Unmarshaler]()
	for t != nil {
		if t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler) {
			return nil
		}
		if t.Kind() != reflect.Pointer {
			return t
		}
		t = t.Elem()
	}
	return nil
}

// fields holds what the keys of an object are decoded into.
type fields struct {
	named map[string]reflect.Type // of a struct
	elem  reflect.Type            // of a map
}

// structFields caches the names of each struct type: reflect.Type to fields.
var structFields sync.Map

func fieldsOf(t reflect.Type) fields {
	if t == nil {
		return fields{}
	}
	switch t.Kind() {
	case reflect.Map:
		return fields{elem: t.Elem()}
	case reflect.Struct:
		if known, ok := structFields.Load(t); ok {
			return known.(fields)
		}
		named := make(map[string]reflect.Type)
		for _, f := range reflect.VisibleFields(t) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				name = f.Name
			}
			if f.IsExported() && name != "-" && (!f.Anonymous || f.Tag.Get("json") != "") {
				named[name] = f.Type
			}
		}
		structFields.Store(t, fields{named: named})
		return fields{named: named}
	}
	return fields{}
}

func (f fields) typeOf(key string) (reflect.Type, error) {
	if f.named == nil {
		return f.elem, nil
	}
	if t, ok := f.named[key]; ok {
		return t, nil
	}
	for name := range f.named {
		if strings.EqualFold(name, key) {
			return nil, fmt.Errorf("key %q must be spelled %q", key, name)
		}
	}
	return nil, nil
}
