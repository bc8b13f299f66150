package rule

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// scanner goes through the values of an array, or the names and values of an object, without decoding them. It trusts
// the JSON to be valid, as what is stored is. On other bytes it finds something or nothing, and always ends.
type scanner []byte

// first returns the value that b holds, without the space around it, or nil.
func first(b []byte) []byte {
	s := scanner(b)
	return s.next()
}

// inside returns a scanner for the inside of an array or object.
func inside(v []byte) scanner { return v[1:] }

// next returns the next value or name as it is written, or nil after the last one.
func (s *scanner) next() []byte {
	b := []byte(*s)
	for len(b) > 0 && (isSpace(b[0]) || b[0] == ',' || b[0] == ':') {
		b = b[1:]
	}
	if len(b) == 0 {
		*s = nil
		return nil
	}
	n := 0
	switch b[0] {
	case '"':
		n = stringLen(b)
	case '{', '[':
		n = nestedLen(b)
	case '}', ']':
	default:
		for n < len(b) && !isSpace(b[n]) && b[n] != ',' && b[n] != '}' && b[n] != ']' && b[n] != ':' && b[n] != '"' {
			n++
		}
	}
	*s = b[n:]
	if n == 0 {
		return nil
	}
	return b[:n]
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// stringLen returns the length of the string that b starts with, quotes included.
func stringLen(b []byte) int {
	for i := 1; ; {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return len(b)
		}
		i += n + 1
		slashes := 0
		for b[i-2-slashes] == '\\' { // ends at the opening quote at the latest
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
}

// nestedLen returns the length of the array or object that b starts with.
func nestedLen(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			i += stringLen(b[i:]) - 1
		}
	}
	return len(b)
}

// text returns what the string v says, and may return a part of v.
func text(v []byte) []byte {
	if len(v) < 2 {
		return nil
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return v[1 : len(v)-1]
	}
	s, _ := jsontext.AppendUnquote(nil, v) // what is not valid reads as U+FFFD
	return s
}

// appendText appends s as a JSON string.
func appendText(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // Parse has refused what is not UTF-8
	return b
}
