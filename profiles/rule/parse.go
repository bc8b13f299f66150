package rule

import (
	"bytes"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Parse reads a rule. The error is an [*Error] that lists everything wrong with it.
func Parse(b []byte) (*Rule, error) { return parse(b, MaxSize) }

// ParseStored reads a rule that Parse has accepted, from a store that writes JSON in its own way, with more spaces or all
// the zeros of a number. So it may have any size as given.
func ParseStored(b []byte) (*Rule, error) { return parse(b, math.MaxInt) }

func parse(b []byte, size int) (*Rule, error) {
	var p parser
	root := document(&p, b, size, func(v []byte) node { return p.node("", v, 1) })
	if err := p.err(); err != nil {
		return nil, err
	}
	r := &Rule{root: root}
	r.register(root, map[string]int{})
	if n := len(root.appendJSON(nil)); n > MaxSize {
		p.problem("", "is %d bytes when printed, at most %d are allowed", n, MaxSize)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return r, nil
}

// parser collects what is wrong. What its methods return is good only if that is nothing.
type parser struct {
	problems     []Problem
	nodes        int
	instructions int // of all patterns
}

// document checks that b is one JSON value of at most so many bytes, and hands it to read.
func document[T any](p *parser, b []byte, size int, read func(v []byte) T) (zero T) {
	if len(b) > size {
		p.problem("", "is %d bytes, at most %d are allowed", len(b), size)
		return zero
	}
	if len(bytes.TrimSpace(b)) == 0 {
		p.problem("", "is empty")
		return zero
	}
	d := jsontext.NewDecoder(bytes.NewReader(b))
	v, err := d.ReadValue()
	if err == nil {
		v = v.Clone()
		if _, err = d.ReadToken(); errors.Is(err, io.EOF) {
			return read(v)
		}
		if err == nil {
			err = errors.New("more follows after its end")
		}
	}
	var at jsontext.Pointer
	if s := (*jsontext.SyntacticError)(nil); errors.As(err, &s) {
		at = s.JSONPointer
	}
	p.problem(string(at), "is not JSON: %s", strings.TrimPrefix(err.Error(), "jsontext: "))
	return zero
}

// member is one member of an object.
type member struct {
	name, at string // at is the pointer to its value
	value    []byte
}

// members returns the members of the object v. Those that are not known are noted as problems, and left out.
func (p *parser) members(at string, v []byte, known ...string) []member {
	if v[0] != '{' {
		p.problem(at, "must be an object")
		return nil
	}
	var members []member
	for s := inside(v); ; {
		name, value := s.next(), s.next()
		if value == nil {
			return members
		}
		m := member{name: string(text(name)), value: value}
		m.at = child(at, m.name)
		if slices.Contains(known, m.name) {
			members = append(members, m)
		} else {
			p.problem(m.at, "is unknown; known here are %s", strings.Join(known, ", "))
		}
	}
}

// elements returns the elements of the array v, which must have some, but not more than most.
func (p *parser) elements(at string, v []byte, most int) [][]byte {
	if v[0] != '[' {
		p.problem(at, "must be an array")
		return nil
	}
	var elements [][]byte
	for s := inside(v); ; {
		e := s.next()
		if e == nil {
			break
		}
		elements = append(elements, e)
	}
	if len(elements) > most {
		p.problem(at, "has %d elements, at most %d are allowed", len(elements), most)
		return nil
	}
	return elements
}

// visit counts a condition, and tells whether there have not been too many.
func (p *parser) visit(at string) bool {
	p.nodes++
	if p.nodes == MaxNodes+1 {
		p.problem(at, "is one condition too many, at most %d are allowed", MaxNodes)
	}
	return p.nodes <= MaxNodes
}

// kinds of conditions, each named by the member that makes it one.
var kinds = []string{"all", "any", "not", "trait", "event", "sequence", "consent", "segment"}

func (p *parser) node(at string, v []byte, depth int) node {
	if !p.visit(at) {
		return nil
	}
	if depth > MaxDepth {
		p.problem(at, "is nested more than %d deep", MaxDepth)
		return nil
	}
	if v[0] != '{' {
		p.problem(at, "must be an object with one of %s", strings.Join(kinds, ", "))
		return nil
	}
	var is []string
	for s := inside(v); ; {
		name, value := s.next(), s.next()
		if value == nil {
			break
		}
		if k := string(text(name)); slices.Contains(kinds, k) {
			is = append(is, k)
		}
	}
	switch {
	case len(is) == 0:
		p.members(at, v, kinds...)
		if first(inside(v)) == nil {
			p.problem(at, "must have one of %s", strings.Join(kinds, ", "))
		}
		return nil
	case len(is) > 1:
		p.problem(at, "has %s, of which a condition has only one", strings.Join(is, " and "))
		return nil
	}
	switch is[0] {
	case "trait":
		c, _ := p.condition(at, v, "trait", true)
		return newTrait(c)
	case "event":
		return p.event(at, v)
	case "sequence":
		return p.sequence(at, v)
	case "consent":
		return p.consent(at, v)
	case "segment":
		return p.reference(at, v)
	case "not":
		var n not
		for _, m := range p.members(at, v, "not") {
			n.node = p.node(m.at, m.value, depth+1)
		}
		return n
	}
	g := group{all: is[0] == "all"}
	for _, m := range p.members(at, v, is[0]) {
		elements := p.elements(m.at, m.value, MaxNodes)
		if first(inside(m.value)) == nil && m.value[0] == '[' {
			p.problem(m.at, "must have at least one condition")
		}
		for i, e := range elements {
			g.nodes = append(g.nodes, p.node(child(m.at, strconv.Itoa(i)), e, depth+1))
		}
	}
	return g
}

// name reads the name of an event, or a path.
func (p *parser) name(at string, v []byte) string {
	s, ok := p.text(at, v)
	switch {
	case ok && s == "":
		p.problem(at, "must not be empty")
	case len(s) > MaxName:
		p.problem(at, "is %d bytes long, at most %d are allowed", len(s), MaxName)
	}
	return s
}

func (p *parser) path(at string, v []byte) string {
	s := p.name(at, v)
	switch steps := strings.Split(s, "."); {
	case s == "":
	case slices.Contains(steps, ""):
		p.problem(at, "has an empty step: names are separated by single dots")
	case len(steps) > MaxSteps:
		p.problem(at, "has %d steps, at most %d are allowed", len(steps), MaxSteps)
	}
	return s
}

// text reads a string.
func (p *parser) text(at string, v []byte) (s string, ok bool) {
	if v[0] != '"' {
		p.problem(at, "must be a string")
		return "", false
	}
	s = string(text(v))
	if strings.ContainsRune(s, 0) {
		p.problem(at, "must not contain U+0000, which no stored value does")
		return "", false
	}
	return s, true
}

func (p *parser) duration(at string, v []byte) int64 {
	s, ok := p.text(at, v)
	if !ok {
		return 0
	}
	ms, problem := parseDuration(s)
	if problem != "" {
		p.problem(at, "%s", problem)
	}
	return ms
}
