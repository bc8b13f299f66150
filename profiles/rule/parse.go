package rule

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/profiles/timeline"
)

// Parse reads a rule. The error is an [*Error] that lists everything wrong with it.
func Parse(b []byte) (*Rule, error) {
	var p parser
	root := document(&p, b, func(v []byte) node { return p.node("", v, 1) })
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

// document checks that b is one JSON value of bounded size, and hands it to read.
func document[T any](p *parser, b []byte, read func(v []byte) T) (zero T) {
	if len(b) > MaxSize {
		p.problem("", "is %d bytes, at most %d are allowed", len(b), MaxSize)
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
var kinds = []string{"all", "any", "not", "trait", "event", "consent", "segment"}

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

func (p *parser) event(at string, v []byte) node {
	e := &event{count: count{1, unbounded}}
	countAt := at
	for _, m := range p.members(at, v, "event", "where", "count", "within") {
		switch m.name {
		case "event":
			e.Event = p.name(m.at, m.value)
		case "where":
			e.Where = p.where(m.at, m.value)
		case "count":
			e.count, countAt = p.count(m.at, m.value), m.at
		case "within":
			e.within = p.duration(m.at, m.value)
		}
	}
	if e.within == 0 {
		return e
	}
	keep := e.count.keep()
	if keep > timeline.MaxKeep {
		p.problem(countAt, "needs the newest %d occurrences to tell, and at most %d are kept: count less, or leave out within", keep, timeline.MaxKeep)
		keep = 0
	}
	e.Keep = int(keep)
	return e
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

// bounds of a count: at most one from below, at most one from above, or eq alone.
var bounds = []string{"gte", "gt", "lte", "lt", "eq"}

func (p *parser) count(at string, v []byte) count {
	c := count{0, unbounded}
	var lower, upper, eq []string
	members := p.members(at, v, bounds...)
	for _, m := range members {
		n, ok := p.occurrences(m.at, m.value)
		if !ok {
			continue
		}
		switch m.name {
		case "gte":
			c.min, lower = n, append(lower, m.name)
		case "gt":
			c.min, lower = n+1, append(lower, m.name)
		case "lte":
			c.max, upper = n, append(upper, m.name)
		case "lt":
			c.max, upper = n-1, append(upper, m.name)
		case "eq":
			c, eq = count{n, n}, append(eq, m.name)
		}
	}
	switch {
	case v[0] == '{' && first(inside(v)) == nil:
		p.problem(at, "must have one of %s", strings.Join(bounds, ", "))
	case len(lower) > 1 || len(upper) > 1 || len(eq) > 0 && len(members) > 1:
		p.problem(at, "may have one of gte and gt with one of lte and lt, or eq alone")
	case c.min > c.max:
		p.problem(at, "can never be true")
	}
	return c
}

func (p *parser) occurrences(at string, v []byte) (n int64, ok bool) {
	literal, ok := parseNumber(v)
	if ok {
		n, ok = literal.floor(0)
		ok = ok && literal.sign >= 0 && literal.len() <= max(literal.exp, 0) && n <= MaxCount
	}
	if !ok {
		p.problem(at, "must be a whole number from 0 to %d", MaxCount)
	}
	return n, ok
}

// where reads the conditions on an event's properties.
func (p *parser) where(at string, v []byte) []Condition {
	var where []Condition
	for i, e := range p.elements(at, v, MaxNodes) {
		at := child(at, strconv.Itoa(i))
		if !p.visit(at) {
			break
		}
		if c, ok := p.condition(at, e, "property", false); ok {
			where = append(where, c)
		}
	}
	return where
}

// condition reads a condition on a subject, which is a trait or a property. It may depend on the present only if
// relative.
func (p *parser) condition(at string, v []byte, subject string, relative bool) (c Condition, ok bool) {
	before := len(p.problems)
	var hasPath, hasOp bool
	var value *member
	for _, m := range p.members(at, v, subject, "op", "value") {
		switch m.name {
		case subject:
			c.path, hasPath = p.path(m.at, m.value), true
		case "op":
			c.op, hasOp = p.operator(m.at, m.value, relative), true
		case "value":
			value = &m
		}
	}
	if !hasPath {
		p.problem(at, "must have %s", subject)
	}
	if !hasOp {
		p.problem(at, "must have op")
	}
	if c.op == opNone {
		return c, false
	}
	needs := c.op.operand() != operandNone
	switch {
	case needs && value == nil:
		p.problem(at, "must have a value to compare with")
	case !needs && value != nil:
		p.problem(value.at, "must be left out: %s compares with nothing", operators[c.op].name)
	case needs:
		p.operand(&c, value.at, value.value)
	}
	return c, len(p.problems) == before
}

func (p *parser) operator(at string, v []byte, relative bool) operator {
	s, ok := p.text(at, v)
	if !ok {
		return opNone
	}
	op, ok := parseOperator(s)
	switch {
	case !ok:
		p.problem(at, "%q is unknown; known here are %s", s, operatorNames(relative))
		return opNone
	case op.relative() && !relative:
		p.problem(at, "%s depends on the present, which what happened must not: use within of the event, or before and after", s)
		return opNone
	}
	return op
}

// operand reads what c compares with.
func (p *parser) operand(c *Condition, at string, v []byte) {
	switch c.op.operand() {
	case operandScalar:
		c.values = []scalar{p.scalar(at, v)}
	case operandNumber:
		if v[0] != '-' && (v[0] < '0' || v[0] > '9') {
			p.problem(at, "must be a number; dates are compared by before and after")
			return
		}
		c.values = []scalar{p.scalar(at, v)}
	case operandText:
		s, ok := p.text(at, v)
		if ok && s == "" {
			p.problem(at, "must not be empty")
		}
		c.values = []scalar{newText(s)}
	case operandList:
		c.values = p.list(at, v)
		c.set = newSet(c.values)
	case operandPattern:
		c.pattern = p.pattern(at, v)
	case operandDate:
		c.ms = p.date(at, v)
	case operandDuration:
		c.ms = p.duration(at, v)
	}
}

func (p *parser) list(at string, v []byte) []scalar {
	if v[0] == '[' && first(inside(v)) == nil {
		p.problem(at, "must have at least one value")
	}
	var values []scalar
	seen := map[string]bool{}
	for i, e := range p.elements(at, v, MaxIn) {
		s := p.scalar(child(at, strconv.Itoa(i)), e)
		if key := string(s.appendJSON(nil)); !seen[key] {
			seen[key] = true
			values = append(values, s)
		}
	}
	return values
}

// Limits of the numbers of rules, which are those of events.
const (
	maxDigits = 40
	maxPower  = 308
)

func (p *parser) scalar(at string, v []byte) scalar {
	switch v[0] {
	case '"':
		s, _ := p.text(at, v)
		return newText(s)
	case 't', 'f':
		return scalar{kind: v[0]}
	case 'n':
		p.problem(at, "must not be null, which is the same as absent: use exists or not_exists")
		return scalar{}
	case '{', '[':
		p.problem(at, "must be a string, a number, true or false")
		return scalar{}
	}
	n, _ := parseNumber(v) // the JSON has been checked
	if n.len() > maxDigits || n.exp > maxPower+1 || n.exp < -maxPower {
		p.problem(at, "must have at most %d digits, and a power of ten from -%d to %d", maxDigits, maxPower, maxPower)
		return scalar{}
	}
	return newNumber(n)
}

// Limits of patterns: what they cost is the product of their size and that of the text.
const (
	maxPattern             = 1000 // bytes
	maxInstructions        = 1000 // of one compiled pattern
	maxInstructionsPerRule = 10_000
)

func (p *parser) pattern(at string, v []byte) *regexp.Regexp {
	s, ok := p.text(at, v)
	if !ok {
		return nil
	}
	if len(s) > maxPattern {
		p.problem(at, "is %d bytes long, at most %d are allowed", len(s), maxPattern)
		return nil
	}
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		p.problem(at, "is not a regular expression of RE2: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return nil
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		p.problem(at, "is not a regular expression of RE2: %s", err)
		return nil
	}
	p.instructions += len(program.Inst)
	if len(program.Inst) > maxInstructions || p.instructions > maxInstructionsPerRule {
		p.problem(at, "repeats too much: a pattern may take %d steps, all patterns of a rule %d", maxInstructions, maxInstructionsPerRule)
		return nil
	}
	pattern, err := regexp.Compile(s)
	if err != nil {
		p.problem(at, "is not a regular expression of RE2: %s", err)
	}
	return pattern
}

func (p *parser) date(at string, v []byte) int64 {
	ms, ok := parseDate(v)
	if year := time.UnixMilli(ms).UTC().Year(); !ok || year < 0 || year > 9999 {
		p.problem(at, "must be a date of RFC 3339, or YYYY-MM-DD, or Unix seconds or milliseconds, in the years 0 to 9999")
		return 0
	}
	return ms
}
