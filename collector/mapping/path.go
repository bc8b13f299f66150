package mapping

import (
	"fmt"
	"strconv"
	"strings"
)

// root is what a path begins with.
type root uint8

const (
	fromItem   root = iota // $: the element that for_each or $each is at, else the body
	fromParent             // $parent: that one level out
	fromBody
	fromHeaders
	fromQuery
	fromMeta
	fromIndex    // of the element, from 0
	fromReceived // when the input was received
)

var roots = map[string]root{
	"parent": fromParent, "body": fromBody, "headers": fromHeaders, "query": fromQuery, "meta": fromMeta,
	"index": fromIndex, "received_at": fromReceived,
}

// step leads from a value to one in it.
type step struct {
	name  string // of a member, unless it is an index
	index int
	kind  stepKind
}

type stepKind uint8

const (
	toMember stepKind = iota
	toIndex
	toAll // [*]: a list of what the rest of the path finds in each item
)

// path leads to a value of the input.
type path struct {
	root  root
	steps []step
}

func (p path) find(r *run, s *scope) value {
	var v value
	steps := p.steps
	switch p.root {
	case fromItem:
		v = s.item
	case fromParent:
		if s.outer == nil {
			return value{}
		}
		v = s.outer.item
	case fromBody:
		v = r.body()
	case fromHeaders:
		return follow(r, pairs(r.in.Headers, &steps), steps)
	case fromQuery:
		return follow(r, pairs(r.in.Query, &steps), steps)
	case fromMeta:
		return follow(r, pairs(r.in.Meta, &steps), steps)
	case fromIndex:
		v = numberOf(strconv.Itoa(s.index))
	case fromReceived:
		v = textOf(formatTime(r.in.ReceivedAt))
	}
	return follow(r, v, steps)
}

// pairs returns the value of m that the first of steps names, and takes that step; without steps, all of m.
func pairs(m map[string]string, steps *[]step) value {
	if len(*steps) > 0 {
		text, ok := m[(*steps)[0].name]
		*steps = (*steps)[1:]
		if !ok {
			return value{}
		}
		return textOf(text)
	}
	if m == nil {
		return value{}
	}
	all := &composite{}
	for _, name := range sortedKeys(m) {
		all.names = append(all.names, name)
		all.values = append(all.values, textOf(m[name]))
	}
	return value{kind: object, made: all}
}

func follow(r *run, v value, steps []step) value {
	for i, s := range steps {
		switch s.kind {
		case toMember:
			v = r.get(v, s.name)
		case toIndex:
			v = r.at(v, s.index)
		case toAll:
			if v.kind != list {
				return value{}
			}
			found := make([]value, 0, min(r.size(v), 64))
			r.each(v, func(_ string, item value) bool {
				if item = follow(r, item, steps[i+1:]); !item.missing() {
					found = append(found, item)
				}
				return r.spend(workValue)
			})
			return listOf(found)
		}
	}
	return v
}

// scanner reads the text of a cell: $.a.b[0] | default('x') | lower.
type scanner struct {
	text string
	pos  int
}

func (s *scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *scanner) space() {
	for s.peek() == ' ' || s.peek() == '\t' || s.peek() == '\n' {
		s.pos++
	}
}

// take goes behind b, if it comes next.
func (s *scanner) take(b byte) bool {
	if s.peek() != b {
		return false
	}
	s.pos++
	return true
}

// word takes a name: all up to what means something else.
func (s *scanner) word() string {
	rest := s.text[s.pos:]
	if end := strings.IndexAny(rest, ".[]|(), \t\n'\""); end >= 0 {
		rest = rest[:end]
	}
	s.pos += len(rest)
	return rest
}

func (s *scanner) path() (path, error) {
	var p path
	s.pos++ // the $
	if name := s.word(); name != "" {
		from, ok := roots[name]
		if !ok {
			return p, fmt.Errorf("begins with $%.60s, which is nothing; write $.%.60s for a member, or $body, $headers, $query, $meta, $parent, $index or $received_at", name, name)
		}
		p.root = from
	}
	for {
		switch {
		case s.take('.'):
			name := s.word()
			if name == "" {
				return p, fmt.Errorf("has no name behind a point; write the name, or ['the name'] if it has points or spaces in it")
			}
			p.steps = append(p.steps, step{name: name})
		case s.take('['):
			next, err := s.bracket()
			if err != nil {
				return p, err
			}
			p.steps = append(p.steps, next)
		default:
			return p, p.check()
		}
	}
}

func (s *scanner) bracket() (step, error) {
	var next step
	switch b := s.peek(); b {
	case '\'', '"':
		name, err := s.quoted()
		if err != nil {
			return next, err
		}
		next.name = name
	case '*':
		s.pos++
		next.kind = toAll
	default:
		i, err := strconv.Atoi(s.word())
		if err != nil || i > maxInput || i < -maxInput {
			return next, fmt.Errorf("has brackets around something else than an index, a name in quotes, or *")
		}
		next = step{kind: toIndex, index: i}
	}
	if !s.take(']') {
		return next, fmt.Errorf("has a bracket that is not closed")
	}
	return next, nil
}

// check refuses paths that lead nowhere, whatever the input is.
func (p path) check() error {
	switch p.root {
	case fromHeaders, fromQuery, fromMeta:
		if len(p.steps) > 1 || len(p.steps) == 1 && p.steps[0].kind != toMember {
			return fmt.Errorf("goes into a text: headers, query and meta have one text a name")
		}
		if p.root == fromHeaders && len(p.steps) == 1 {
			p.steps[0].name = strings.ToLower(p.steps[0].name)
		}
	case fromIndex, fromReceived:
		if len(p.steps) > 0 {
			return fmt.Errorf("goes into $index or $received_at, which have nothing in them")
		}
	}
	return nil
}

// quoted takes a text in single or double quotes, in which a backslash makes the next character a plain one.
func (s *scanner) quoted() (string, error) {
	quote := s.peek()
	var b strings.Builder
	for i := s.pos + 1; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case c == quote:
			s.pos = i + 1
			return b.String(), nil
		case c == '\\' && i+1 < len(s.text):
			i++
			b.WriteByte(s.text[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", fmt.Errorf("has a quote that is not closed")
}

// cell reads the whole text: a path and the functions behind it.
func (s *scanner) cell(at position) (cell, error) {
	p, err := s.path()
	if err != nil {
		return nil, err
	}
	var calls []call
	for {
		s.space()
		if s.pos == len(s.text) {
			break
		}
		if !s.take('|') {
			return nil, fmt.Errorf("has %.60q where a | and a function are expected", s.text[s.pos:])
		}
		c, err := s.call()
		if err != nil {
			return nil, err
		}
		calls = append(calls, c)
	}
	if len(calls) == 0 {
		return pathCell(p), nil
	}
	return &pipeCell{position: at, from: pathCell(p), calls: calls}, nil
}

func (s *scanner) call() (call, error) {
	s.space()
	name := s.word()
	fn, ok := functions[name]
	if !ok {
		return call{}, fmt.Errorf("calls %.60q, which is no function; there are %s", name, strings.Join(Functions(), ", "))
	}
	var args []cell
	if s.take('(') {
		for s.space(); !s.take(')'); s.space() {
			if len(args) > 0 {
				if !s.take(',') {
					return call{}, fmt.Errorf("calls %s with something else than a comma between its arguments, or never closes it", name)
				}
				s.space()
			}
			arg, err := s.argument()
			if err != nil {
				return call{}, err
			}
			args = append(args, arg)
		}
	}
	return fn.with(name, args)
}

func (s *scanner) argument() (cell, error) {
	switch b := s.peek(); {
	case b == '$':
		p, err := s.path()
		return pathCell(p), err
	case b == '\'' || b == '"':
		text, err := s.quoted()
		return literalCell(textOf(text)), err
	}
	start := s.pos
	for s.pos < len(s.text) && strings.IndexByte(", )|\t\n", s.text[s.pos]) < 0 {
		s.pos++
	}
	switch word := s.text[start:s.pos]; word {
	case "true", "false":
		return literalCell(value{kind: boolean, text: word}), nil
	case "null":
		return literalCell(value{kind: null, text: word}), nil
	default:
		d, ok := parseDecimal(word)
		if !ok {
			return nil, fmt.Errorf("has the argument %.60q, which is neither a text in quotes, a number, true, false, null nor a path", word)
		}
		return literalCell(numberOf(d.String())), nil
	}
}
