package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"qlora/internal/strictjson"
)

// literalJSON turns a Python literal into JSON: what ast.literal_eval accepts, less bytes, sets,
// complex numbers and keys that are no strings. Tables that hold only text store lists and
// dictionaries so.
func literalJSON(text string) (json.RawMessage, error) {
	p := literal{text: text}
	p.space()
	dst, err := p.value(nil, 0)
	if err != nil {
		return nil, fmt.Errorf("byte %d: %w", p.pos, err)
	}
	if p.pos < len(p.text) {
		return nil, fmt.Errorf("byte %d: text after the literal", p.pos)
	}
	return dst, nil
}

type literal struct {
	text string
	pos  int
}

func (p *literal) space() {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n\f", p.text[p.pos]) >= 0 {
		p.pos++
	}
}

func (p *literal) peek() byte {
	if p.pos == len(p.text) {
		return 0
	}
	return p.text[p.pos]
}

// value appends the literal at pos, and steps over it and the space behind it.
func (p *literal) value(dst []byte, depth int) (_ []byte, err error) {
	if depth > strictjson.MaxDepth {
		return nil, fmt.Errorf("nested deeper than %d", strictjson.MaxDepth)
	}
	switch c := p.peek(); {
	case c == '[', c == '(', c == '{':
		dst, err = p.container(dst, depth+1)
	case p.atString():
		dst, err = p.strings(dst)
	case c == '-', c == '+', c == '.', '0' <= c && c <= '9':
		dst, err = p.number(dst)
	default:
		dst, err = p.name(dst)
	}
	p.space()
	return dst, err
}

func (p *literal) name(dst []byte) ([]byte, error) {
	for _, n := range [][2]string{{"None", "null"}, {"True", "true"}, {"False", "false"}} {
		if rest, ok := strings.CutPrefix(p.text[p.pos:], n[0]); ok && (rest == "" || !isWord(rest[0])) {
			p.pos += len(n[0])
			return append(dst, n[1]...), nil
		}
	}
	return nil, errors.New("no Python literal")
}

func isWord(c byte) bool {
	return c == '_' || c >= utf8.RuneSelf || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// number appends an integer or a float that JSON can write.
func (p *literal) number(dst []byte) ([]byte, error) {
	start := p.pos
	for p.pos < len(p.text) && (isWord(p.text[p.pos]) || strings.IndexByte(".+-", p.text[p.pos]) >= 0) {
		if c := p.text[p.pos]; (c == '+' || c == '-') && p.pos > start && p.text[p.pos-1]|0x20 != 'e' {
			break
		}
		p.pos++
	}
	text := strings.TrimPrefix(p.text[start:p.pos], "+")
	if json.Valid([]byte(text)) {
		return append(dst, text...), nil
	}
	if i, err := strconv.ParseInt(text, 0, 64); err == nil && !strings.HasPrefix(strings.TrimPrefix(text, "-"), "0") {
		return strconv.AppendInt(dst, i, 10), nil // 1_000
	}
	f, err := strconv.ParseFloat(text, 64)
	quoted, jsonErr := json.Marshal(f)
	if err != nil || jsonErr != nil || strings.ContainsAny(text, "xXpPnN_") {
		p.pos = start
		return nil, fmt.Errorf("%.20q is no number that is read", text)
	}
	return append(dst, quoted...), nil
}

// container appends a list, a tuple or a dictionary.
func (p *literal) container(dst []byte, depth int) ([]byte, error) {
	open := p.text[p.pos]
	shut := map[byte]byte{'[': ']', '(': ')', '{': '}'}[open]
	p.pos++
	p.space()
	at := len(dst)
	if open == '{' {
		dst = append(dst, '{')
	} else {
		dst = append(dst, '[')
	}
	var err error
	for n := 0; p.peek() != shut; n++ {
		if n > 0 {
			dst = append(dst, ',')
		}
		if open == '{' {
			if !p.atString() {
				return nil, errors.New("a key that is no string")
			}
			if dst, err = p.value(dst, depth); err != nil {
				return nil, err
			}
			if p.peek() != ':' {
				return nil, errors.New("no colon after a key")
			}
			dst = append(dst, ':')
			p.pos++
			p.space()
		}
		if dst, err = p.value(dst, depth); err != nil {
			return nil, err
		}
		switch c := p.peek(); {
		case c == ',':
			p.pos++
			p.space()
		case c != shut:
			return nil, fmt.Errorf("neither a comma nor %q", shut)
		case open == '(' && n == 0: // parentheses without a comma are no tuple
			p.pos++
			return slices.Delete(dst, at, at+1), nil
		}
	}
	p.pos++
	if open == '{' {
		return append(dst, '}'), nil
	}
	return append(dst, ']'), nil
}

// atString reports whether a string starts at pos, with a prefix perhaps.
func (p *literal) atString() bool {
	rest := p.text[p.pos:]
	if rest != "" && strings.IndexByte("rRuU", rest[0]) >= 0 {
		rest = rest[1:]
	}
	return rest != "" && (rest[0] == '\'' || rest[0] == '"')
}

// strings appends strings that follow each other, which are one.
func (p *literal) strings(dst []byte) ([]byte, error) {
	var text []byte
	for p.atString() {
		var err error
		if text, err = p.string(text); err != nil {
			return nil, err
		}
		p.space()
	}
	quoted, err := jsonString(string(text))
	return append(dst, quoted...), err
}

func (p *literal) string(text []byte) ([]byte, error) {
	raw := false
	if c := p.text[p.pos]; c != '\'' && c != '"' {
		raw = c|0x20 == 'r'
		p.pos++
	}
	quote := p.text[p.pos : p.pos+1]
	if strings.HasPrefix(p.text[p.pos:], strings.Repeat(quote, 3)) {
		quote = strings.Repeat(quote, 3)
	}
	start := p.pos
	p.pos += len(quote)
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; {
		case strings.HasPrefix(p.text[p.pos:], quote):
			p.pos += len(quote)
			return text, nil
		case c == '\n' && len(quote) == 1:
			return nil, errors.New("a line end in a string")
		case c == '\\' && raw && p.pos+1 < len(p.text):
			text = append(text, p.text[p.pos:p.pos+2]...)
			p.pos += 2
		case c == '\\':
			var err error
			if text, err = p.escape(text); err != nil {
				return nil, err
			}
		default:
			text = append(text, c)
			p.pos++
		}
	}
	p.pos = start
	return nil, errors.New("a string without an end")
}

// escapes are those of one letter.
var escapes = map[byte]string{'\n': "", '\\': "\\", '\'': "'", '"': "\"", 'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v"}

// escape appends the character of an escape. One that Python does not know stands for itself.
func (p *literal) escape(text []byte) ([]byte, error) {
	rest := p.text[p.pos+1:]
	if rest == "" {
		return nil, errors.New("a string without an end")
	}
	if c, ok := escapes[rest[0]]; ok {
		p.pos += 2
		return append(text, c...), nil
	}
	base, digits, from := 16, map[byte]int{'x': 2, 'u': 4, 'U': 8}[rest[0]], 1
	switch {
	case rest[0] == 'N':
		return nil, errors.New(`\N{...} is not read`)
	case '0' <= rest[0] && rest[0] <= '7':
		base, from = 8, 0
		for digits < 3 && digits < len(rest) && '0' <= rest[digits] && rest[digits] <= '7' {
			digits++
		}
	case digits == 0:
		p.pos++
		return append(text, '\\'), nil
	}
	if len(rest) < from+digits {
		return nil, errors.New("an escape that is cut off")
	}
	code, err := strconv.ParseUint(rest[from:from+digits], base, 32)
	if err != nil || !utf8.ValidRune(rune(code)) {
		return nil, fmt.Errorf("\\%s is no character", rest[:from+digits])
	}
	p.pos += 1 + from + digits
	return utf8.AppendRune(text, rune(code)), nil
}
