package strictjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// check runs every check on data, with the field names of target.
func check(data []byte, limit int, target reflect.Type) error {
	if limit = min(limit, math.MaxUint32); len(data) > limit {
		return &Error{int64(limit), fmt.Sprintf("%d bytes of JSON, more than the limit of %d", len(data), limit)}
	}
	if !utf8.Valid(data) {
		return &Error{int64(invalidUTF8(data)), "invalid UTF-8"}
	}
	if !json.Valid(data) {
		var raw json.RawMessage
		fault, _ := located(json.Unmarshal(data, &raw))
		return fault
	}
	c := checker{scanner: scanner{data: data}}
	c.space()
	if c.data[c.pos] == 'n' {
		return &Error{int64(c.pos), "the document is null"}
	}
	return c.value(target, 0)
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

// checker visits a document.
type checker struct {
	scanner
	keys []uint32 // where the keys of the objects around pos begin, the outermost's first
	name []byte   // scratch memory for a key
}

func (c *checker) fault(at int, format string, args ...any) error {
	return &Error{int64(at), fmt.Sprintf(format, args...)}
}

// value visits the value at pos, which is to be decoded into t (nil: unknown),
// and leaves pos after it and the space behind it.
func (c *checker) value(t reflect.Type, depth int) error {
	t = plain(t)
	var err error
	switch c.data[c.pos] {
	case '{':
		err = c.object(t, depth+1)
	case '[':
		err = c.list(t, depth+1)
	default:
		c.skip()
	}
	c.space()
	return err
}

func (c *checker) object(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return c.fault(c.pos, "nested deeper than %d", MaxDepth)
	}
	fields, first := fieldsOf(t), len(c.keys)
	c.pos++ // {
	for c.space(); c.data[c.pos] != '}'; c.space() {
		at := c.pos
		if len(c.keys) == cap(c.keys) { // doubled: append would copy more often
			c.keys = slices.Grow(c.keys, max(8, len(c.keys)))
		}
		c.keys = append(c.keys, uint32(at))
		c.name = unescape(c.name[:0], c.key())
		elem, err := fields.typeOf(c.name)
		if err != nil {
			return c.fault(at, "%s", err)
		}
		if err := c.value(elem, depth); err != nil {
			return err
		}
		c.comma()
	}
	c.pos++ // }
	err := c.distinct(c.keys[first:])
	c.keys = c.keys[:first]
	return err
}

// distinct faults the first key of an object that is another's again.
func (c *checker) distinct(keys []uint32) error {
	slices.SortFunc(keys, func(a, b uint32) int {
		return cmp.Or(compareText(c.keyAt(a), c.keyAt(b)), cmp.Compare(a, b))
	})
	twice := uint32(math.MaxUint32)
	for i := 1; i < len(keys); i++ {
		if keys[i] < twice && compareText(c.keyAt(keys[i-1]), c.keyAt(keys[i])) == 0 {
			twice = keys[i]
		}
	}
	if twice == math.MaxUint32 {
		return nil
	}
	return c.fault(int(twice), "key %q occurs twice", unescape(nil, c.keyAt(twice)))
}

// keyAt is the text of the key whose quote is at byte at.
func (c *checker) keyAt(at uint32) []byte {
	s := scanner{data: c.data, pos: int(at)}
	return s.text()
}

func (c *checker) list(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return c.fault(c.pos, "nested deeper than %d", MaxDepth)
	}
	at := c.pos
	var elem reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	c.pos++ // [
	n := 0
	for c.space(); c.data[c.pos] != ']'; c.space() {
		if err := c.value(elem, depth); err != nil {
			return err
		}
		n++
		c.comma()
	}
	c.pos++ // ]
	if t != nil && t.Kind() == reflect.Array && n != t.Len() {
		return c.fault(at, "a list of %d where %d belong", n, t.Len())
	}
	return nil
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

func (f fields) typeOf(key []byte) (reflect.Type, error) {
	if f.named == nil {
		return f.elem, nil
	}
	if t, ok := f.named[string(key)]; ok {
		return t, nil
	}
	for name := range f.named {
		if bytes.EqualFold([]byte(name), key) {
			return nil, fmt.Errorf("key %q must be spelled %q", key, name)
		}
	}
	return nil, nil
}
