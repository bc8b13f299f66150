package rule

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Condition is what must be true of one trait or property. It comes from [Parse] or [ParseBehaviour].
type Condition struct {
	path    string
	op      operator
	values  []scalar // what to compare with, as given; in lists, without repetitions
	set     set      // the same, of a list
	pattern *regexp.Regexp
	ms      int64 // an instant or a duration
}

// scalar is a string, a number, true or false.
type scalar struct {
	kind   byte   // '"', '0', 't' or 'f'
	text   string // what a string says, or the one way to write a number
	number number
}

// set holds the values of a list, so that a long one costs no more than a short one.
type set struct {
	texts, numbers map[string]struct{}
	yes, no        bool
}

func newText(s string) scalar { return scalar{kind: '"', text: s} }

func newNumber(n number) scalar {
	s := scalar{kind: '0', text: string(n.append(nil))}
	s.number, _ = parseNumber([]byte(s.text)) // refers to nothing of the caller's
	return s
}

func newSet(values []scalar) set {
	s := set{texts: map[string]struct{}{}, numbers: map[string]struct{}{}}
	for _, v := range values {
		switch v.kind {
		case '"':
			s.texts[v.text] = struct{}{}
		case '0':
			s.numbers[v.text] = struct{}{}
		case 't':
			s.yes = true
		case 'f':
			s.no = true
		}
	}
	return s
}

func (s scalar) appendJSON(b []byte) []byte {
	switch s.kind {
	case '"':
		return appendText(b, s.text)
	case '0':
		return append(b, s.text...)
	}
	return strconv.AppendBool(b, s.kind == 't')
}

// holds tells whether c, which does not depend on the present, is true of v.
func (c *Condition) holds(v []byte) bool {
	p := probe{Condition: c}
	p.search(v, c.path)
	return p.held != c.op.negative()
}

// at tells whether c is true of a value at the moment now, and until when.
func (c *Condition) at(v []byte, now int64) (holds bool, until int64) {
	p := probe{Condition: c, now: now, until: never}
	p.search(v, "")
	return p.held != c.op.negative(), p.until
}

// atInstant tells whether c, which compares dates, is true of an instant at the moment now, and until when.
func (c *Condition) atInstant(at, now int64) (holds bool, until int64) {
	switch c.op {
	case opBefore:
		return at < c.ms, never
	case opAfter:
		return at > c.ms, never
	}
	p := probe{Condition: c, now: now, until: never}
	p.relate(c.op, at)
	return p.held, p.until
}

// probe looks for a value of which a condition is true, if it is a negative one its opposite.
type probe struct {
	*Condition
	now, until int64 // of a condition that depends on the present; until starts as never
	held       bool
	leaf       func(v []byte) // if set, is given the values at the end of the path instead
}

// search tries every value that the path leads to in v. It tells whether it is settled that the condition is true.
func (p *probe) search(v []byte, path string) (settled bool) {
	v = first(v)
	if v == nil {
		return false
	}
	return p.walk(v, path)
}

func (p *probe) walk(v []byte, path string) (settled bool) {
	if path == "" {
		return p.value(v)
	}
	switch s := inside(v); v[0] {
	case '{':
		for {
			name, member := s.next(), s.next()
			if member == nil {
				return false
			}
			if rest, ok := descend(path, name); ok && p.walk(member, rest) {
				return true
			}
		}
	case '[':
		head, rest, _ := strings.Cut(path, ".")
		index := parseIndex(head)
		for i := 0; ; i++ {
			element := s.next()
			if element == nil {
				return false
			}
			if i == index && p.walk(element, rest) || element[0] == '{' && p.walk(element, path) {
				return true
			}
		}
	}
	return false
}

// descend returns the rest of path if it starts with the name, as it is written in JSON.
func descend(path string, name []byte) (rest string, ok bool) {
	if name[0] != '"' {
		return "", false
	}
	s := text(name)
	if len(s) > len(path) || path[:len(s)] != string(s) {
		return "", false
	}
	if len(s) == len(path) {
		return "", true
	}
	if path[len(s)] != '.' {
		return "", false
	}
	return path[len(s)+1:], true
}

// parseIndex returns the index that s is, or -1.
func parseIndex(s string) int {
	if len(s) == 0 || len(s) > 9 || s[0] == '0' && len(s) > 1 {
		return -1
	}
	i := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return -1
		}
		i = i*10 + int(c-'0')
	}
	return i
}

// value tries the value at the end of the path, or if it is an array each of its elements.
func (p *probe) value(v []byte) (settled bool) {
	switch {
	case v[0] == 'n':
		return false
	case p.leaf != nil:
		p.leaf(v)
		return false
	case p.op.positive() == opExists:
		p.held = true
		return true
	case v[0] != '[':
		return p.try(v, false)
	}
	for s := inside(v); ; {
		element := s.next()
		if element == nil {
			return false
		}
		if p.try(element, true) {
			return true
		}
	}
}

// try tries one string, number, true or false.
func (p *probe) try(v []byte, element bool) (settled bool) {
	switch op := p.op.positive(); op {
	case opEq:
		p.held = p.equal(v)
	case opIn:
		p.held = p.set.has(v)
	case opGt, opGte, opLt, opLte:
		p.held = p.compare(op, v)
	case opContains:
		if element || v[0] != '"' || p.values[0].kind != '"' {
			p.held = element && p.equal(v)
		} else {
			p.held = bytes.Contains(text(v), []byte(p.values[0].text))
		}
	case opStartsWith:
		p.held = v[0] == '"' && bytes.HasPrefix(text(v), []byte(p.values[0].text))
	case opEndsWith:
		p.held = v[0] == '"' && bytes.HasSuffix(text(v), []byte(p.values[0].text))
	case opMatches:
		p.held = v[0] == '"' && p.pattern.Match(text(v))
	case opBefore:
		at, ok := parseDate(v)
		p.held = ok && at < p.ms
	case opAfter:
		at, ok := parseDate(v)
		p.held = ok && at > p.ms
	default:
		if at, ok := parseDate(v); ok {
			p.relate(op, at)
		}
		return p.held && p.until == never
	}
	return p.held
}

func (p *probe) equal(v []byte) bool {
	want := p.values[0]
	switch v[0] {
	case '"':
		return want.kind == '"' && string(text(v)) == want.text
	case 't', 'f':
		return want.kind == v[0]
	}
	if want.kind != '0' {
		return false
	}
	n, ok := parseNumber(v)
	return ok && n.compare(want.number) == 0
}

func (p *probe) compare(op operator, v []byte) bool {
	n, ok := parseNumber(v)
	if !ok {
		return false
	}
	switch order := n.compare(p.values[0].number); op {
	case opGt:
		return order > 0
	case opGte:
		return order >= 0
	case opLt:
		return order < 0
	default:
		return order <= 0
	}
}

func (s *set) has(v []byte) bool {
	switch v[0] {
	case '"':
		_, ok := s.texts[string(text(v))]
		return ok
	case 't':
		return s.yes
	case 'f':
		return s.no
	}
	n, ok := parseNumber(v)
	if !ok {
		return false
	}
	var buf [64]byte
	_, ok = s.numbers[string(n.append(buf[:0]))]
	return ok
}

// relate tells whether the instant at lies where op says, seen from now, and when that changes. Of several instants, the
// one that is there longest counts or, if none is, the one that will be there first.
func (p *probe) relate(op operator, at int64) {
	var held bool
	until := int64(never)
	switch op {
	case opWithinLast: // now - d < at <= now
		switch {
		case at > p.now:
			until = at
		case at > p.now-p.ms:
			held, until = true, at+p.ms
		}
	case opWithinNext: // now <= at < now + d
		switch {
		case at >= p.now+p.ms:
			until = at - p.ms + 1
		case at >= p.now:
			held, until = true, at+1
		}
	case opMoreThanAgo: // at <= now - d
		if held = at <= p.now-p.ms; !held {
			until = at + p.ms
		}
	}
	switch {
	case held && p.held:
		p.until = max(p.until, until)
	case held:
		p.held, p.until = true, until
	case !p.held:
		p.until = min(p.until, until)
	}
}

// sorted returns c with its list, if it has one, in an order that does not depend on how it was given.
func (c Condition) sorted() Condition {
	c.values = slices.Clone(c.values)
	slices.SortFunc(c.values, func(a, b scalar) int { return bytes.Compare(a.appendJSON(nil), b.appendJSON(nil)) })
	return c
}

// appendJSON appends the canonical form. The path's member is named subject; without a path it is left out.
func (c Condition) appendJSON(b []byte, subject string) []byte {
	b = append(b, '{')
	if c.path != "" {
		b = append(append(append(b, '"'), subject...), `":`...)
		b = append(appendText(b, c.path), ',')
	}
	b = append(append(append(b, `"op":"`...), operators[c.op].name...), '"')
	if c.op.operand() != operandNone {
		b = c.appendOperand(append(b, `,"value":`...))
	}
	return append(b, '}')
}

func (c Condition) appendOperand(b []byte) []byte {
	switch c.op.operand() {
	case operandList:
		b = append(b, '[')
		for i, v := range c.values {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.appendJSON(b)
		}
		return append(b, ']')
	case operandPattern:
		return appendText(b, c.pattern.String())
	case operandDate:
		return appendDate(b, c.ms)
	case operandDuration:
		return appendDuration(b, c.ms)
	}
	return c.values[0].appendJSON(b)
}

func (t *trait) appendJSON(b []byte) []byte { return t.Condition.appendJSON(b, "trait") }
