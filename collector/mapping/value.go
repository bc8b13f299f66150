package mapping

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// kind is what a value is. The zero kind is that of what is not there.
type kind uint8

const (
	absent kind = iota
	null
	boolean
	number
	text
	object
	list
)

// String says of a kind what it is to be called in a sentence.
func (k kind) String() string {
	return [...]string{"absent", "null", "true or false", "a number", "a text", "an object", "a list"}[k]
}

// value is what a cell comes to.
type value struct {
	kind kind
	node int32      // of an object or a list of the input: where it is in the tree
	text string     // the characters of a text; a number, true and false as JSON has them
	made *composite // an object or a list that is not of the input
}

// composite is an object or a list that was put together.
type composite struct {
	names  []string // of an object
	values []value
}

func textOf(s string) value   { return value{kind: text, text: s} }
func numberOf(s string) value { return value{kind: number, text: s} }
func boolOf(b bool) value     { return value{kind: boolean, text: strconv.FormatBool(b)} }
func listOf(items []value) value {
	return value{kind: list, made: &composite{values: items}}
}

// missing tells whether there is nothing to be written of v.
func (v value) missing() bool { return v.kind <= null }

// blank tells whether v says nothing: it is missing, or an empty text.
func (v value) blank() bool { return v.missing() || v.kind == text && v.text == "" }

// literal returns what a document says as a value.
func (e *entry) literal() value {
	v := value{kind: e.kind, text: e.text}
	switch e.kind {
	case object:
		v.made = &composite{}
		for _, m := range e.members {
			v.made.names = append(v.made.names, m.name)
			v.made.values = append(v.made.values, m.literal())
		}
	case list:
		v.made = &composite{}
		for _, item := range e.items {
			v.made.values = append(v.made.values, item.literal())
		}
	}
	return v
}

// size returns how many members or items a value has.
func (r *run) size(v value) int {
	if v.made != nil {
		return len(v.made.values)
	}
	return int(r.nodes[v.node].children)
}

// value returns what a node is. A text with escapes costs work; one without is a part of the body.
func (r *run) value(at int32) value {
	if n := &r.nodes[at]; n.escaped && !r.spend(int(n.end-n.start)/workBytes) {
		return value{}
	}
	return r.tree.value(at)
}

// each calls do with the members or items of v until it returns false. The names of a list are empty.
func (r *run) each(v value, do func(name string, v value) bool) {
	if v.made != nil {
		for i, item := range v.made.values {
			name := ""
			if v.kind == object {
				name = v.made.names[i]
			}
			if !r.spend(1) || !do(name, item) {
				return
			}
		}
		return
	}
	for i := r.first(v.node); i != 0; i = r.nodes[i].next {
		name := ""
		if v.kind == object {
			name = r.name(i)
		}
		if !r.spend(1) || !do(name, r.value(i)) {
			return
		}
	}
}

// get returns a member of v, if it is an object that has it.
func (r *run) get(v value, name string) value {
	if v.kind != object {
		return value{}
	}
	if v.made != nil {
		if i := slices.Index(v.made.names, name); i >= 0 && r.spend(len(v.made.names)/8+1) {
			return v.made.values[i]
		}
		return value{}
	}
	steps := 1
	found := value{}
	for i := r.first(v.node); i != 0; i = r.nodes[i].next {
		steps++
		n := &r.nodes[i]
		raw := r.src[n.nameStart+1 : n.nameEnd-1]
		if raw == name || n.escapedName && r.name(i) == name {
			found = r.value(i)
			break
		}
	}
	if !r.spend(steps/8 + 1) {
		return value{}
	}
	return found
}

// at returns an item of v, if it is a list that is long enough. Negative ones count from the end: -1 is the last.
func (r *run) at(v value, i int) value {
	if v.kind != list {
		return value{}
	}
	if n := r.size(v); i < 0 {
		i += n
		if i < 0 {
			return value{}
		}
	}
	if v.made != nil {
		if i >= len(v.made.values) {
			return value{}
		}
		return v.made.values[i]
	}
	at := r.first(v.node)
	for ; at != 0 && i > 0; i-- {
		if at = r.nodes[at].next; !r.spend(1) {
			return value{}
		}
	}
	if at == 0 {
		return value{}
	}
	return r.value(at)
}

// write appends v as JSON, without space. It stops soon after limit bytes, and before what alone goes beyond them.
func (r *run) write(b []byte, v value, limit int) []byte {
	if len(b)+len(v.text) > limit {
		return append(b, make([]byte, limit+1-min(len(b), limit))...)
	}
	switch v.kind {
	case absent:
		return append(b, "null"...)
	case text:
		return appendText(b, v.text)
	case object, list:
	default:
		return append(b, v.text...)
	}
	open, end := byte('{'), byte('}')
	if v.kind == list {
		open, end = '[', ']'
	}
	b = append(b, open)
	start := len(b)
	if v.made == nil {
		for i := r.first(v.node); i != 0 && len(b) <= limit; i = r.nodes[i].next {
			n := &r.nodes[i]
			if len(b) > start {
				b = append(b, ',')
			}
			if v.kind == object {
				b = append(append(b, r.src[n.nameStart:n.nameEnd]...), ':')
			}
			switch size := int(n.end - n.start); {
			case n.kind == object || n.kind == list:
				b = r.write(b, value{kind: n.kind, node: i}, limit)
			case len(b)+size > limit+2: // and the quotes
				return append(b, make([]byte, size)...)
			default:
				b = append(b, r.src[n.start:n.end]...)
			}
		}
		return append(b, end)
	}
	for i, item := range v.made.values {
		if len(b) > limit {
			break
		}
		if len(b) > start {
			b = append(b, ',')
		}
		if v.kind == object {
			b = append(appendText(b, v.made.names[i]), ':')
		}
		b = r.write(b, item, limit)
	}
	return append(b, end)
}

// appendText appends a text as JSON; what is not UTF-8 in it becomes U+FFFD.
func appendText(b []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	b, _ = jsontext.AppendQuote(b, s) // it is UTF-8 by now
	return b
}
