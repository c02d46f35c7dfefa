package data

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// appendPythonJSON appends raw as Python's json.dumps(..., ensure_ascii=False) prints it,
// which is what models have seen in place of a template's `| tojson`: a space after "," and
// ":", keys in their order, no escapes but those JSON demands, floats as Python's repr.
func appendPythonJSON(dst []byte, raw json.RawMessage) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	return appendPythonValue(dst, dec)
}

func appendPythonValue(dst []byte, dec *json.Decoder) ([]byte, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case json.Delim:
		return appendPythonContainer(dst, dec, v)
	case string:
		return appendPythonString(dst, v), nil
	case json.Number:
		return appendPythonNumber(dst, string(v))
	case bool:
		return strconv.AppendBool(dst, v), nil
	default:
		return append(dst, "null"...), nil
	}
}

func appendPythonContainer(dst []byte, dec *json.Decoder, open json.Delim) ([]byte, error) {
	dst = append(dst, byte(open))
	for i := 0; dec.More(); i++ {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		var err error
		if open == '{' {
			if dst, err = appendPythonValue(dst, dec); err != nil {
				return nil, err
			}
			dst = append(dst, ": "...)
		}
		if dst, err = appendPythonValue(dst, dec); err != nil {
			return nil, err
		}
	}
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	return append(dst, byte(token.(json.Delim))), nil
}

func appendPythonString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		case '\b':
			dst = append(dst, `\b`...)
		case '\f':
			dst = append(dst, `\f`...)
		default:
			if c < 0x20 {
				dst = fmt.Appendf(dst, `\u%04x`, c)
			} else {
				dst = append(dst, c)
			}
		}
	}
	return append(dst, '"')
}

// appendPythonNumber prints an integer as it stands and a float as repr does: the shortest
// digits that read back, with an exponent below 1e-4 and from 1e16 on.
func appendPythonNumber(dst []byte, number string) ([]byte, error) {
	if !strings.ContainsAny(number, ".eE") {
		if number == "-0" {
			number = "0"
		}
		return append(dst, number...), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return nil, fmt.Errorf("number %s is out of range", number)
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64), nil
	}
	digits := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(digits, ".") {
		digits += ".0"
	}
	return append(dst, digits...), nil
}
