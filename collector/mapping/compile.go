package mapping

import (
	"slices"
	"strings"
)

// Compile reads a document, JSON or YAML, and refuses it with an [*InvalidError] that lists what is wrong where.
func Compile(document []byte) (*Program, error) {
	c := compiler{reader: new(reader)}
	root := c.read(document)
	if root == nil || len(c.faults) > 0 {
		return nil, c.err()
	}
	p := c.program(root)
	if err := c.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// Object is a compiled object of cells, such as the event of a rule is.
type Object struct{ program *Program }

// CompileObject reads an object of cells, JSON or YAML, and refuses it with an [*InvalidError] that lists what is wrong
// where.
func CompileObject(document []byte) (*Object, error) {
	c := compiler{reader: new(reader)}
	root := c.read(document)
	if root == nil || len(c.faults) > 0 {
		return nil, c.err()
	}
	var cells *objectCell
	if root.kind == object && !isDirective(root) {
		cells, _ = c.object(root).(*objectCell)
	} else {
		c.faultAt(root, "wrong_type", "must be an object of cells")
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	return &Object{&Program{rules: []rule{{position: position{root.line, ""}, event: cells}}}}, nil
}

// Map returns the object of those cells that have a value, as JSON. If one cannot be made, the error is a [*FaultError].
func (o *Object) Map(in Input) ([]byte, error) {
	made, err := o.program.Map(in)
	if err != nil {
		return nil, err
	}
	return made[0], nil
}

type compiler struct {
	*reader
	expressions int // their bytes so far
	cells       int
}

// only refuses members that are not among names.
func (c *compiler) only(e *entry, what string, names ...string) bool {
	if e.kind != object {
		c.faultAt(e, "wrong_type", "must be an object: %s", what)
		return false
	}
	for _, m := range e.members {
		if !slices.Contains(names, m.name) {
			c.fault(m.line, m.path, "unknown_member", "is not known in %s; there are %s", what, strings.Join(names, ", "))
		}
	}
	return true
}

func (c *compiler) program(root *entry) *Program {
	if !c.only(root, "a mapping", "version", "name", "description", "match", "defaults", "rules") {
		return nil
	}
	p := &Program{}
	if v := root.member("version"); v == nil || v.text != "1" {
		at := root
		if v != nil {
			at = v
		}
		c.fault(at.line, "version", "unknown_version", "must be 1")
	}
	for _, name := range []string{"name", "description"} {
		if e := root.member(name); e != nil && e.kind != text {
			c.faultAt(e, "wrong_type", "must be a text")
		}
	}
	if e := root.member("match"); e != nil {
		if p.first = e.text == "first"; !p.first && e.text != "all" {
			c.faultAt(e, "invalid", "must be all, for every rule that applies, or first, for no other than the first one")
		}
	}
	defaults := root.member("defaults")
	if defaults != nil && defaults.kind != object {
		c.faultAt(defaults, "wrong_type", "must be an object: what all events have")
		defaults = nil
	}
	rules := root.member("rules")
	switch {
	case rules == nil:
		c.fault(root.line, "rules", "required", "is required: the list of rules")
		return nil
	case rules.kind != list || len(rules.items) == 0:
		c.faultAt(rules, "wrong_type", "must be a list of rules")
		return nil
	case len(rules.items) > maxRules:
		c.faultAt(rules, "too_many_rules", "has %d rules; there can be %d", len(rules.items), maxRules)
		return nil
	}
	for _, e := range rules.items {
		if c.cells <= maxCells {
			p.rules = append(p.rules, c.rule(e, defaults))
		}
	}
	return p
}

func (c *compiler) rule(e, defaults *entry) rule {
	rl := rule{position: position{e.line, e.path}, name: e.path}
	if !c.only(e, "a rule", "name", "when", "for_each", "event") {
		return rl
	}
	if name := e.member("name"); name != nil {
		if rl.name = name.text; name.kind != text || name.text == "" || len(name.text) > 100 {
			c.faultAt(name, "wrong_type", "must be a text of 1 to 100 bytes")
		}
	}
	if when := e.member("when"); when != nil {
		rl.when = c.condition(when)
	}
	if of := e.member("for_each"); of != nil {
		if of.kind != text || !strings.HasPrefix(of.text, "$") && !strings.HasPrefix(of.text, "=") {
			c.faultAt(of, "wrong_type", "must be a path to a list, such as $.orders, or an expression")
		} else {
			rl.forEach = c.cell(of)
		}
	}
	event := e.member("event")
	if event == nil {
		c.fault(e.line, inside(e.path, "event"), "required", "is required: what the event is made of")
		return rl
	}
	if event.kind != object {
		c.faultAt(event, "wrong_type", "must be an object: the members of the event")
		return rl
	}
	event = merged(defaults, event)
	c.checkEvent(event)
	cells, ok := c.object(event).(*objectCell)
	if !ok {
		c.faultAt(event, "wrong_type", "must be a plain object; use functions in its members")
	}
	rl.event = cells
	return rl
}

// merged returns over with the members of under that it does not have, object by object. null takes a member away.
func merged(under, over *entry) *entry {
	if under == nil || under.kind != object || over.kind != object || isDirective(under) || isDirective(over) || isKit(under) || isKit(over) {
		return over
	}
	e := &entry{line: over.line, path: over.path, kind: object}
	for _, m := range under.members {
		if own := over.member(m.name); own == nil {
			e.members = append(e.members, m)
		} else if own.kind != null {
			e.members = append(e.members, namedEntry{m.name, m.line, merged(m.entry, own)})
		}
	}
	for _, m := range over.members {
		if under.member(m.name) == nil {
			e.members = append(e.members, m)
		}
	}
	return e
}

var kinds = []string{"track", "identify", "page", "screen", "group", "alias"}

// checkEvent refuses events that intake would always reject.
func (c *compiler) checkEvent(e *entry) {
	missing := func(name, detail string) {
		c.fault(e.line, inside(e.path, name), "required", "%s", detail)
	}
	kind := e.member("type")
	switch {
	case kind == nil:
		missing("type", "is required: "+strings.Join(kinds, ", "))
	case kind.kind == text && (strings.HasPrefix(kind.text, "$") || strings.HasPrefix(kind.text, "=")), kind.kind == object:
		return // it depends on the input
	case kind.kind != text || !slices.Contains(kinds, kind.text):
		c.faultAt(kind, "invalid", "must be one of %s, or a path or an expression", strings.Join(kinds, ", "))
	case kind.text == "track" && e.member("event") == nil:
		missing("event", "is required in a track event: its name")
	case kind.text == "group" && e.member("groupId") == nil:
		missing("groupId", "is required in a group event")
	case kind.text == "alias" && e.member("previousId") == nil:
		missing("previousId", "is required in an alias event")
	}
	if e.member("userId") == nil && e.member("anonymousId") == nil {
		missing("userId", "or anonymousId is required: whom the event is about")
	}
}

func (c *compiler) condition(e *entry) *expression {
	if e.kind != text || e.text == "" {
		c.faultAt(e, "wrong_type", "must be an expression in CEL, in quotes")
		return nil
	}
	x := c.expression(e, strings.TrimPrefix(e.text, "="))
	if x != nil && !x.boolean && !x.dynamic {
		c.faultAt(e, "wrong_type", "must come to true or false")
	}
	return x
}

func (c *compiler) expression(e *entry, source string) *expression {
	before := c.expressions
	if c.expressions += len(source) + 64; c.expressions > maxExpressions { // even the shortest takes time to compile
		if before <= maxExpressions {
			c.faultAt(e, "too_many_expressions", "is an expression too many; there can be 500 of them, and %d bytes together", maxExpressions)
		}
		return nil
	}
	x, err := compileExpression(position{e.line, e.path}, source)
	if err != nil {
		c.faultAt(e, "invalid_expression", "%s", err.Error())
		return nil
	}
	return x
}

// maxCells bounds the cells of all rules, each with its share of the defaults.
const maxCells = 20_000

// cell compiles what stands for a value. It returns one that is never used if there is a fault.
func (c *compiler) cell(e *entry) cell {
	if c.cells++; c.cells > maxCells {
		if c.cells == maxCells+1 {
			c.faultAt(e, "too_many_values", "is one value too many for the rules and what they have of the defaults; there can be %d", maxCells)
		}
		return literalCell(value{})
	}
	switch e.kind {
	case object:
		return c.object(e)
	case list:
		items := make(listCell, len(e.items))
		for i, item := range e.items {
			items[i] = c.cell(item)
		}
		return items
	case text:
	default:
		return literalCell(e.literal())
	}
	switch s := e.text; {
	case strings.HasPrefix(s, "$$"), strings.HasPrefix(s, "=="):
		return literalCell(textOf(s[1:]))
	case strings.HasPrefix(s, "="):
		if x := c.expression(e, s[1:]); x != nil {
			return expressionCell{x}
		}
	case strings.HasPrefix(s, "$"):
		scan := scanner{text: strings.TrimSpace(s)}
		compiled, err := scan.cell(position{e.line, e.path})
		if err == nil {
			return compiled
		}
		c.faultAt(e, "invalid_path", "%s", err.Error())
	}
	return literalCell(textOf(e.text))
}

// isDirective tells whether an object says how to make a value, instead of being one.
func isDirective(e *entry) bool {
	return slices.ContainsFunc(e.members, func(m namedEntry) bool {
		return strings.HasPrefix(m.name, "$") && !strings.HasPrefix(m.name, "$$")
	})
}

func (c *compiler) object(e *entry) cell {
	if isDirective(e) {
		return c.directive(e)
	}
	if isKit(e) {
		return c.kitDirective(e)
	}
	made := &objectCell{}
	for _, m := range e.members {
		made.names = append(made.names, strings.TrimPrefix(m.name, "$"))
		made.cells = append(made.cells, c.cell(m.entry))
	}
	return made
}

// directives are the objects that say how to make a value, by the member that tells which it is.
var directives = map[string]struct{ required, optional []string }{
	"$value":  {},
	"$each":   {required: []string{"$set"}, optional: []string{"$when"}},
	"$if":     {required: []string{"$then"}, optional: []string{"$else"}},
	"$lookup": {required: []string{"$in"}, optional: []string{"$else"}},
	"$first":  {},
	"$merge":  {},
}

func (c *compiler) directive(e *entry) cell {
	nothing := literalCell(value{})
	name := ""
	for _, known := range sortedKeys(directives) {
		if e.member(known) != nil {
			name = known
			break
		}
	}
	if name == "" {
		c.faultAt(e, "unknown_directive", "has %s, which is nothing; there are %s; write $$ for a name that begins with $", e.members[0].name, strings.Join(sortedKeys(directives), ", "))
		return nothing
	}
	d := directives[name]
	if !c.only(e, name, slices.Concat([]string{name}, d.required, d.optional)...) {
		return nothing
	}
	for _, other := range d.required {
		if e.member(other) == nil {
			c.fault(e.line, inside(e.path, other), "required", "is required with %s", name)
			return nothing
		}
	}
	at := position{e.line, e.path}
	main := e.member(name)
	optional := func(name string) cell {
		if other := e.member(name); other != nil {
			return c.cell(other)
		}
		return nil
	}
	switch name {
	case "$value":
		return literalCell(main.literal())
	case "$each":
		each := &eachCell{position: at, of: c.cell(main), set: c.cell(e.member("$set"))}
		if when := e.member("$when"); when != nil {
			each.when = c.condition(when)
		}
		return each
	case "$if":
		return &ifCell{when: c.condition(main), then: c.cell(e.member("$then")), other: optional("$else")}
	case "$lookup":
		in := e.member("$in")
		if in.kind != object {
			c.faultAt(in, "wrong_type", "must be an object: a table of texts and what they become")
			return nothing
		}
		table := make(map[string]cell, len(in.members))
		for _, m := range in.members {
			table[m.name] = c.cell(m.entry)
		}
		return &lookupCell{of: c.cell(main), table: table, other: optional("$else")}
	default: // $first and $merge
		items, ok := c.cell(main).(listCell)
		if !ok || len(items) == 0 {
			c.faultAt(main, "wrong_type", "must be a list")
			return nothing
		}
		if name == "$first" {
			return firstCell(items)
		}
		return &mergeCell{position: at, cells: items}
	}
}
