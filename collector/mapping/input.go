package mapping

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// maxInput bounds the body of an input, in bytes.
const maxInput = 1 << 20

// Input is what events are to be made of.
type Input struct {
	Body       []byte            // JSON, of at most 1 MiB; a row of a CSV file is an object of texts; empty if there is none
	Headers    map[string]string // by their names in lower case
	Query      map[string]string
	Meta       map[string]string // what is known beside: source, topic, file, line
	ReceivedAt time.Time
}

// The body of an input is read once, into a tree that only says where in the text everything is. Most of a webhook is
// never looked at, and what is looked at is mostly copied as it was written.

// node is a value of the body.
type node struct {
	start, end         int32 // in the text
	nameStart, nameEnd int32 // of a member, with the quotes
	next               int32 // the next member or item; 0 if this is the last
	children           int32
	kind               kind
	escaped            bool // a text with escapes
	escapedName        bool
}

// tree is the body of an input. Node 0 is the body itself, and the first child of a node comes behind it.
type tree struct {
	src   string
	nodes []node
	pos   int
}

// parse reads a body, which must be JSON if it is not empty.
func (t *tree) parse(body []byte) *FaultError {
	t.nodes, t.pos, t.src = t.nodes[:0], 0, ""
	switch {
	case len(body) > maxInput:
		return &FaultError{Code: "input_too_large", Detail: "the body is larger than 1 MiB"}
	case len(body) == 0:
		return nil
	case !jsontext.Value(body).IsValid(jsontext.AllowInvalidUTF8(true)):
		return &FaultError{Code: "malformed_json", Detail: "the body is not JSON, or has a member twice"}
	}
	t.src = string(body)
	if !utf8.ValidString(t.src) {
		t.src = strings.ToValidUTF8(t.src, "\uFFFD")
	}
	if _, ok := t.read(1); !ok {
		return &FaultError{Code: "input_too_deep", Detail: "the body is nested deeper than 64 levels"}
	}
	return nil
}

func (t *tree) space() byte {
	for {
		switch b := t.src[t.pos]; b {
		case ' ', '\t', '\r', '\n':
			t.pos++
		default:
			return b
		}
	}
}

// read takes in the value that comes next and returns where it is in the tree; false if it is too deep.
func (t *tree) read(depth int) (int32, bool) {
	first := t.space()
	at := int32(len(t.nodes))
	t.nodes = append(t.nodes, node{start: int32(t.pos)})
	switch first {
	case '{', '[':
		if depth > maxNesting {
			return 0, false
		}
		if !t.inner(at, first, depth) {
			return 0, false
		}
	case '"':
		t.nodes[at].kind = text
		t.nodes[at].escaped = t.skipText()
	default:
		end := t.pos
		for end < len(t.src) && strings.IndexByte(",]} \t\r\n", t.src[end]) < 0 {
			end++
		}
		t.pos = end
		switch first {
		case 't', 'f':
			t.nodes[at].kind = boolean
		case 'n':
			t.nodes[at].kind = null
		default:
			t.nodes[at].kind = number
		}
	}
	t.nodes[at].end = int32(t.pos)
	return at, true
}

// inner takes in the members or items of the node at.
func (t *tree) inner(at int32, first byte, depth int) bool {
	end := first + 2 // in ASCII, for both
	t.nodes[at].kind = list
	if first == '{' {
		t.nodes[at].kind = object
	}
	t.pos++
	last, count := int32(0), int32(0)
	for t.space() != end {
		if count > 0 {
			t.pos++ // the comma
			t.space()
		}
		var nameStart, nameEnd int32
		var escaped bool
		if first == '{' {
			nameStart = int32(t.pos)
			escaped = t.skipText()
			nameEnd = int32(t.pos)
			t.space()
			t.pos++ // the colon
		}
		child, ok := t.read(depth + 1)
		if !ok {
			return false
		}
		n := &t.nodes[child]
		n.nameStart, n.nameEnd, n.escapedName = nameStart, nameEnd, escaped
		if count++; count > 1 {
			t.nodes[last].next = child
		}
		last = child
	}
	t.pos++
	t.nodes[at].children = count
	return true
}

// skipText goes behind the text that begins here, and tells whether it has escapes.
func (t *tree) skipText() (escaped bool) {
	for i := t.pos + 1; ; i++ {
		switch t.src[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			t.pos = i + 1
			return escaped
		}
	}
}

// first returns the first member or item of a node, or 0 if it has none.
func (t *tree) first(at int32) int32 {
	if t.nodes[at].children == 0 {
		return 0
	}
	return at + 1
}

func (t *tree) name(at int32) string {
	n := &t.nodes[at]
	return unquote(t.src[n.nameStart:n.nameEnd], n.escapedName)
}

func (t *tree) value(at int32) value {
	n := &t.nodes[at]
	switch n.kind {
	case object, list:
		return value{kind: n.kind, node: at}
	case text:
		return value{kind: text, text: unquote(t.src[n.start:n.end], n.escaped)}
	}
	return value{kind: n.kind, text: t.src[n.start:n.end]}
}

// body returns the whole of it.
func (t *tree) body() value {
	if len(t.nodes) == 0 {
		return value{}
	}
	return t.value(0)
}

func unquote(quoted string, escaped bool) string {
	if !escaped {
		return quoted[1 : len(quoted)-1]
	}
	b, _ := jsontext.AppendUnquote(nil, quoted) // halves of surrogate pairs become U+FFFD
	return string(b)
}
