package collector

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
)

// Bounds of one event. What lies within them, Postgres takes as jsonb and prints in a bounded size.
const (
	maxDepth        = 32 // the event is at depth 1
	maxKeys         = 1000
	maxKeyBytes     = 256
	maxNumberDigits = 40  // that count
	maxExponent     = 308 // of ten, as written and as meant
)

// fault is why an event is rejected, and where.
type fault struct {
	path   []string // member names and indices, innermost first
	code   string
	reason string // a sentence for the client
}

func (f *fault) in(token string) *fault {
	f.path = append(f.path, token)
	return f
}

// pointer returns where the fault is, seen from the body: prefix leads from there to the event.
func (f *fault) pointer(prefix ...string) string {
	tokens := append([]string(nil), prefix...)
	for i := len(f.path) - 1; i >= 0; i-- {
		tokens = append(tokens, f.path[i])
	}
	return problem.Pointer(tokens...)
}

// cleaner copies JSON in its canonical form: no space, strings with as few escapes as can be, numbers as they were
// written. What Postgres does not store (NUL, halves of surrogate pairs, bytes that are not UTF-8) becomes U+FFFD and
// is counted. It reads only text that jsontext has found to be valid, invalid UTF-8 and duplicate names aside, and
// stops at what exceeds a bound or is ambiguous.
type cleaner struct {
	src       []byte
	pos       int
	out       []byte // appended to
	keys      int
	sanitized int
	names     []nameAt // of the objects being read, outermost first
	text      []byte   // of a string with escapes
}

// nameAt is a member name, in quotes, in out.
type nameAt struct {
	hash       uint64
	start, end int
}

var nameSeed = maphash.MakeSeed()

func (c *cleaner) reset(src []byte) {
	c.src, c.pos, c.out = src, 0, c.out[:0]
	c.keys, c.sanitized, c.names = 0, 0, c.names[:0]
}

// space goes to the next token and returns its first byte.
func (c *cleaner) space() byte {
	for {
		switch b := c.src[c.pos]; b {
		case ' ', '\t', '\r', '\n':
			c.pos++
		default:
			return b
		}
	}
}

// value copies the value that comes next. depth is that of the value, if it is an object or an array.
func (c *cleaner) value(depth int) *fault {
	switch b := c.space(); b {
	case '{':
		return c.object(depth, nil)
	case '[':
		return c.array(depth)
	case '"':
		c.string()
		return nil
	case 't', 'n':
		c.out = append(c.out, c.src[c.pos:c.pos+4]...)
		c.pos += 4
		return nil
	case 'f':
		c.out = append(c.out, "false"...)
		c.pos += 5
		return nil
	default:
		return c.number()
	}
}

// object copies an object. If member is not nil, it is told of each member where its name and its value came to lie in
// out.
func (c *cleaner) object(depth int, member func(name, value span)) *fault {
	if depth > maxDepth {
		return &fault{code: "too_deep", reason: fmt.Sprintf("is nested deeper than %d levels", maxDepth)}
	}
	outer := len(c.names)
	c.out = append(c.out, '{')
	c.pos++
	for c.space() != '}' {
		if len(c.names) > outer {
			c.pos++ // the comma
			c.out = append(c.out, ',')
			c.space()
		}
		start := len(c.out)
		c.string()
		name := span{start, len(c.out)}
		if f := c.name(name, outer); f != nil {
			return f
		}
		c.space()
		c.pos++ // the colon
		c.out = append(c.out, ':')
		start = len(c.out)
		if f := c.value(depth + 1); f != nil {
			return f.in(unquote(name.of(c.out)))
		}
		if member != nil {
			member(name, span{start, len(c.out)})
		}
	}
	c.names = c.names[:outer]
	c.out = append(c.out, '}')
	c.pos++
	return nil
}

// name takes in the name of a member of the innermost object, whose names begin at outer.
func (c *cleaner) name(at span, outer int) *fault {
	name := at.of(c.out)
	if len(name)-2 > maxKeyBytes && len(unquote(name)) > maxKeyBytes {
		return &fault{code: "name_too_long", reason: fmt.Sprintf("has a member name longer than %d bytes", maxKeyBytes)}
	}
	if c.keys++; c.keys > maxKeys {
		return &fault{code: "too_many_members", reason: fmt.Sprintf("takes the event beyond %d members", maxKeys)}
	}
	hash := maphash.Bytes(nameSeed, name)
	for _, other := range c.names[outer:] {
		if other.hash == hash && bytes.Equal(c.out[other.start:other.end], name) {
			return (&fault{code: "duplicate_member", reason: "is there twice"}).in(unquote(name))
		}
	}
	c.names = append(c.names, nameAt{hash, at.start, at.end})
	return nil
}

func (c *cleaner) array(depth int) *fault {
	if depth > maxDepth {
		return &fault{code: "too_deep", reason: fmt.Sprintf("is nested deeper than %d levels", maxDepth)}
	}
	c.out = append(c.out, '[')
	c.pos++
	for i := 0; c.space() != ']'; i++ {
		if i > 0 {
			c.pos++ // the comma
			c.out = append(c.out, ',')
		}
		if f := c.value(depth + 1); f != nil {
			return f.in(strconv.Itoa(i))
		}
	}
	c.out = append(c.out, ']')
	c.pos++
	return nil
}

// string copies a string. Most have neither escapes nor anything to repair.
func (c *cleaner) string() {
	start, ascii := c.pos, true
	i := start + 1
	for {
		b := c.src[i]
		if b == '"' {
			break
		}
		if b == '\\' {
			c.escaped(start)
			return
		}
		if b >= utf8.RuneSelf {
			ascii = false
		}
		i++
	}
	if !ascii && !utf8.Valid(c.src[start:i]) {
		c.escaped(start)
		return
	}
	c.pos = i + 1
	c.out = append(c.out, c.src[start:c.pos]...)
}

// escaped copies a string that has escapes or is not UTF-8.
func (c *cleaner) escaped(start int) {
	text := c.text[:0]
	i := start + 1
	for c.src[i] != '"' {
		if c.src[i] != '\\' {
			r, n := utf8.DecodeRune(c.src[i:])
			if r == utf8.RuneError && n == 1 {
				c.sanitized++
			}
			text = utf8.AppendRune(text, r)
			i += n
			continue
		}
		i += 2
		switch e := c.src[i-1]; e {
		case 'b':
			text = append(text, '\b')
		case 'f':
			text = append(text, '\f')
		case 'n':
			text = append(text, '\n')
		case 'r':
			text = append(text, '\r')
		case 't':
			text = append(text, '\t')
		case 'u':
			r := hex4(c.src[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				pair := utf8.RuneError
				if c.src[i] == '\\' && c.src[i+1] == 'u' {
					pair = utf16.DecodeRune(r, hex4(c.src[i+2:]))
				}
				if r = pair; r != utf8.RuneError {
					i += 6
				} else {
					c.sanitized++
				}
			} else if r == 0 {
				r = utf8.RuneError
				c.sanitized++
			}
			text = utf8.AppendRune(text, r)
		default: // a quote, a slash or a backslash
			text = append(text, e)
		}
	}
	c.pos = i + 1
	c.text = text
	c.out, _ = jsontext.AppendQuote(c.out, text) // it is UTF-8 by now
}

func hex4(b []byte) rune {
	v, _ := strconv.ParseUint(string(b[:4]), 16, 32) // jsontext has seen to it that these are four digits
	return rune(v)
}

// number copies a number as it was written, if it is not out of all proportion: 1e131071 would be 9 bytes here and
// 131 KB in Postgres.
func (c *cleaner) number() *fault {
	start := c.pos
	digits := 0   // from the first that is not 0
	leading := 0  // zeros behind the point, before that digit
	integers := 0 // digits before the point
	point, exponent, exp := false, false, 0
	negative := false
scan:
	for ; c.pos < len(c.src); c.pos++ {
		b := c.src[c.pos]
		switch {
		case b >= '0' && b <= '9' && exponent:
			exp = min(exp*10+int(b-'0'), 1<<20)
		case b >= '0' && b <= '9':
			switch {
			case b != '0' || digits > 0:
				digits++
				if !point {
					integers++
				}
			case point:
				leading++
			}
		case b == '.':
			point = true
		case b == 'e' || b == 'E':
			exponent = true
		case b == '-' && exponent:
			negative = true
		case b == '-' || b == '+':
		default:
			break scan
		}
	}
	if negative {
		exp = -exp
	}
	meant := exp + integers - 1 // the exponent of the first digit that counts
	if integers == 0 {
		meant = exp - leading - 1
	}
	if digits == 0 {
		meant = exp - leading // zero, however it is written
	}
	if digits > maxNumberDigits || max(exp, -exp, meant, -meant) > maxExponent {
		return &fault{code: "number_out_of_range", reason: fmt.Sprintf(
			"is a number beyond %d digits or an exponent of %d; send it as a string", maxNumberDigits, maxExponent)}
	}
	c.out = append(c.out, c.src[start:c.pos]...)
	return nil
}

// span is a part of a buffer that may still grow.
type span struct{ start, end int }

func (s span) of(b []byte) []byte { return b[s.start:s.end] }

// unquote returns the text of a canonical JSON string.
func unquote(quoted []byte) string {
	inner := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner)
	}
	text, _ := jsontext.AppendUnquote(nil, quoted) // the cleaner has written it
	return string(text)
}

// members calls do with each member of a canonical object, its name in quotes, until do returns false.
func members(object []byte, do func(name, value []byte) bool) {
	for i := 1; object[i] != '}'; {
		if object[i] == ',' {
			i++
		}
		colon := skip(object, i)
		end := skip(object, colon+1)
		if !do(object[i:colon], object[colon+1:end]) {
			return
		}
		i = end
	}
}

// skip returns where the value ends that begins at i of canonical JSON.
func skip(b []byte, i int) int {
	for depth := 0; ; {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			i++
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ',', ':':
			i++
			continue
		default:
			for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}
