package rule

import (
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"
)

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

// moment reads a condition on the time of an occurrence.
func (p *parser) moment(at string, v []byte) (c Condition) {
	var value *member
	var hasOp bool
	for _, m := range p.members(at, v, "property", "op", "value") {
		switch m.name {
		case "op":
			hasOp = true
			s, ok := p.text(m.at, m.value)
			if op, _ := parseOperator(s); op.operand() == operandDate || op.operand() == operandDuration {
				c.op = op
			} else if ok {
				p.problem(m.at, "must be one of before, after, within_last, within_next, more_than_ago, unless there is a property")
			}
		case "value":
			value = &m
		}
	}
	switch {
	case v[0] != '{':
	case !hasOp:
		p.problem(at, "must have op")
	case value == nil:
		p.problem(at, "must have a value to compare with")
	case c.op != opNone:
		p.operand(&c, value.at, value.value)
	}
	return c
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
