package mapping

import (
	"slices"
	"strings"
)

// Whoever comes from Segment's destination actions has mappings in the shape of its mapping-kit ("@segment/actions-core,
// mapping-kit"): objects with a single member that begins with @. They can stand where a cell can, and become the same
// cells as ours.

// kit are the members that make an object a directive of the mapping-kit.
var kit = []string{"@path", "@template", "@if", "@literal", "@arrayPath", "@case", "@merge", "@json"}

// isKit tells whether an object is a directive of the mapping-kit. Other names that begin with @ are names.
func isKit(e *entry) bool { return len(e.members) == 1 && slices.Contains(kit, e.members[0].name) }

// kitDirective compiles one.
func (c *compiler) kitDirective(e *entry) cell {
	nothing := literalCell(value{})
	name, of := e.members[0].name, e.members[0].entry
	at := position{e.line, e.path}
	wrong := func(detail string) cell {
		c.faultAt(of, "wrong_type", "%s", detail)
		return nothing
	}
	options := func(names ...string) bool { return c.only(of, name, names...) }
	switch name {
	case "@literal":
		return literalCell(of.literal())
	case "@path":
		if of.kind != text {
			return wrong("must be a path, such as $.properties.total")
		}
		return c.kitPath(of, of.text)
	case "@template":
		if of.kind != text {
			return wrong("must be a text with {{paths}} in it")
		}
		return c.template(of)
	case "@arrayPath":
		if of.kind != list || len(of.items) == 0 || len(of.items) > 2 || of.items[0].kind != text {
			return wrong("must be a list of a path and the shape of an item")
		}
		path := c.kitPath(of.items[0], of.items[0].text)
		if len(of.items) == 1 {
			return path
		}
		return &eachCell{position: at, of: path, set: c.cell(of.items[1])}
	case "@if":
		if !options("exists", "blank", "then", "else") {
			return nothing
		}
		test, blank := of.member("exists"), of.member("blank")
		if (test == nil) == (blank == nil) {
			return wrong("must have either exists or blank")
		}
		cell := &presenceCell{then: nothing, other: nothing}
		if cell.blank = blank != nil; cell.blank {
			test = blank
		}
		cell.of = c.cell(test)
		if then := of.member("then"); then != nil {
			cell.then = c.cell(then)
		}
		if other := of.member("else"); other != nil {
			cell.other = c.cell(other)
		}
		return cell
	case "@merge":
		if !options("objects", "direction") {
			return nothing
		}
		objects, direction := of.member("objects"), of.member("direction")
		if objects == nil || objects.kind != list {
			return wrong("must have the list objects")
		}
		cells, _ := c.cell(objects).(listCell)
		if direction != nil && direction.text == "left" {
			slices.Reverse(cells)
		}
		return &mergeCell{position: at, cells: cells}
	}
	// @case and @json: an operation on a value.
	option := "operator"
	operations := map[string]string{"lower": "lower", "upper": "upper"}
	if name == "@json" {
		option, operations = "mode", map[string]string{"encode": "json", "decode": "json"}
	}
	if !options(option, "value") {
		return nothing
	}
	mode, arg := of.member(option), of.member("value")
	if mode == nil || arg == nil || operations[mode.text] == "" {
		return wrong("must have a value, and as " + option + " one of " + strings.Join(sortedKeys(operations), ", "))
	}
	operation, _ := functions[operations[mode.text]].with(mode.text, nil)
	return &pipeCell{position: at, from: c.cell(arg), calls: []call{operation}}
}

// kitPath compiles a path, which may lack its $.
func (c *compiler) kitPath(at *entry, path string) cell {
	if path = strings.TrimSpace(path); !strings.HasPrefix(path, "$") {
		path = "$." + path
	}
	scan := scanner{text: path}
	p, err := scan.path()
	if err == nil && scan.pos == len(path) {
		return pathCell(p)
	}
	c.faultAt(at, "invalid_path", "has the path %.60q, which cannot be read", path)
	return literalCell(value{})
}

// template compiles a text with {{paths}} in it.
func (c *compiler) template(e *entry) cell {
	t := &templateCell{position: position{e.line, e.path}}
	for rest := e.text; rest != ""; {
		before, behind, found := strings.Cut(rest, "{{")
		if before != "" {
			t.parts = append(t.parts, literalCell(textOf(before)))
		}
		if !found {
			break
		}
		path, after, closed := strings.Cut(behind, "}}")
		if !closed {
			c.faultAt(e, "invalid_path", "has a {{ that is not closed")
			break
		}
		t.parts = append(t.parts, c.kitPath(e, path))
		rest = after
	}
	return t
}

// presenceCell is one value or another, by whether a third is there.
type presenceCell struct {
	of          cell
	blank       bool // asked is whether it says nothing
	then, other cell
}

func (c *presenceCell) eval(r *run, s *scope) value {
	of := c.of.eval(r, s)
	if c.blank && of.blank() || !c.blank && !of.missing() {
		return c.then.eval(r, s)
	}
	return c.other.eval(r, s)
}

// templateCell is a text put together of texts. What is missing is empty in it.
type templateCell struct {
	position
	parts []cell
}

func (c *templateCell) eval(r *run, s *scope) value {
	var b strings.Builder
	for _, part := range c.parts {
		v := part.eval(r, s)
		text, err := v.characters()
		if err == nil && b.Len()+len(text) > maxText {
			err = errTooLong
		}
		if err != nil {
			return r.fail(c.position, "cannot_convert", "@template: "+err.Error())
		}
		if !r.spend(1 + len(text)/workBytes) {
			return value{}
		}
		b.WriteString(text)
	}
	return textOf(b.String())
}
