package mapping

import (
	"errors"
	"maps"
	"slices"
)

// position is where in its document something stands.
type position struct {
	line int
	path string
}

// cell is what stands in an event for a value.
type cell interface {
	// eval returns the value for an element of the input. If the run has ended by a fault, what it returns means nothing.
	eval(r *run, s *scope) value
}

// scope is the element of the input that a cell is evaluated for.
type scope struct {
	item  value
	index int
	outer *scope // nil if the item is the body
}

type literalCell value

func (c literalCell) eval(*run, *scope) value { return value(c) }

type pathCell path

func (c pathCell) eval(r *run, s *scope) value { return path(c).find(r, s) }

// pipeCell sends a value through functions.
type pipeCell struct {
	position
	from  cell
	calls []call
}

// call is a function with its arguments.
type call struct {
	function
	name  string
	args  []cell
	bound func(value) (value, error) // instead of do, if the arguments are known beforehand
}

func (c *pipeCell) eval(r *run, s *scope) value {
	v := c.from.eval(r, s)
	for i := 0; i < len(c.calls); i++ {
		if r.err != nil {
			return value{}
		}
		next, err := c.calls[i].apply(r, s, v)
		if err == nil {
			v = next
			continue
		}
		// What cannot be read is what default is for, if one follows.
		rest := slices.IndexFunc(c.calls[i:], func(c call) bool { return c.name == "default" })
		if rest < 0 {
			return r.fail(c.position, "cannot_convert", c.calls[i].name+": "+err.Error())
		}
		v = value{}
		i += rest - 1
	}
	return v
}

func (c *call) apply(r *run, s *scope, v value) (value, error) {
	if v.missing() && !c.takesMissing {
		return value{}, nil
	}
	if !r.spend(1 + len(v.text)/workBytes) {
		return value{}, nil
	}
	if c.bound != nil {
		r.spend(workValue * 10) // to try the layouts of a time
		return c.bound(v)
	}
	var few [4]value
	args := few[:0]
	for _, arg := range c.args {
		v := arg.eval(r, s)
		if !r.spend(len(v.text) / workBytes) {
			return value{}, nil
		}
		args = append(args, v)
	}
	made, err := c.do(r, v, args)
	r.spend(len(made.text) / workBytes)
	return made, err
}

// objectCell puts an object together out of the members that have a value. Without any it is absent itself.
type objectCell struct {
	names []string
	cells []cell
}

func (c *objectCell) eval(r *run, s *scope) value {
	made := &composite{names: make([]string, 0, len(c.names)), values: make([]value, 0, len(c.names))}
	for i, member := range c.cells {
		if !r.spend(workValue) {
			return value{}
		}
		if v := member.eval(r, s); !v.missing() {
			made.names = append(made.names, c.names[i])
			made.values = append(made.values, v)
		}
	}
	if len(made.names) == 0 {
		return value{}
	}
	return value{kind: object, made: made}
}

// listCell puts a list together out of the items that have a value.
type listCell []cell

func (c listCell) eval(r *run, s *scope) value {
	items := make([]value, 0, len(c))
	for _, item := range c {
		if !r.spend(workValue) {
			return value{}
		}
		if v := item.eval(r, s); !v.missing() {
			items = append(items, v)
		}
	}
	return listOf(items)
}

// eachCell makes a value of each item of a list.
type eachCell struct {
	position
	of   cell
	when *expression // nil: all items
	set  cell
}

func (c *eachCell) eval(r *run, s *scope) value {
	of := c.of.eval(r, s)
	if of.missing() || r.err != nil {
		return value{}
	}
	if of.kind != list {
		return r.fail(c.position, "wrong_type", "$each needs a list, and finds "+of.kind.String())
	}
	items := make([]value, 0, min(r.size(of), 64))
	inner := scope{outer: s}
	r.each(of, func(_ string, item value) bool {
		inner.item = item
		if c.when == nil || c.when.holds(r, &inner) {
			if v := c.set.eval(r, &inner); !v.missing() {
				items = append(items, v)
			}
		}
		inner.index++
		return r.spend(workValue)
	})
	return listOf(items)
}

// ifCell is one value or another.
type ifCell struct {
	when        *expression
	then, other cell // other may be nil
}

func (c *ifCell) eval(r *run, s *scope) value {
	switch {
	case c.when.holds(r, s):
		return c.then.eval(r, s)
	case c.other == nil:
		return value{}
	}
	return c.other.eval(r, s)
}

// lookupCell replaces a value by what a table has for it.
type lookupCell struct {
	of    cell
	table map[string]cell
	other cell // nil: absent
}

func (c *lookupCell) eval(r *run, s *scope) value {
	of := c.of.eval(r, s)
	if !r.spend(1 + len(of.text)/workBytes) {
		return value{}
	}
	if found, ok := c.table[of.text]; ok && of.kind != absent && of.kind != object && of.kind != list {
		return found.eval(r, s)
	}
	if c.other == nil {
		return value{}
	}
	return c.other.eval(r, s)
}

// firstCell is the first of its cells that says something.
type firstCell []cell

func (c firstCell) eval(r *run, s *scope) value {
	for _, one := range c {
		if v := one.eval(r, s); !v.blank() {
			return v
		}
	}
	return value{}
}

// mergeCell is the members of all of its objects. Of those with the same name the last stays.
type mergeCell struct {
	position
	cells []cell
}

func (c *mergeCell) eval(r *run, s *scope) value {
	made := &composite{}
	at := map[string]int{}
	for _, one := range c.cells {
		v := one.eval(r, s)
		if v.missing() {
			continue
		}
		if v.kind != object {
			return r.fail(c.position, "wrong_type", "$merge needs objects, and finds "+v.kind.String())
		}
		r.each(v, func(name string, v value) bool {
			if i, ok := at[name]; ok {
				made.values[i] = v
				return true
			}
			at[name] = len(made.names)
			made.names = append(made.names, name)
			made.values = append(made.values, v)
			return r.spend(workValue)
		})
	}
	if len(made.names) == 0 {
		return value{}
	}
	return value{kind: object, made: made}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

var errTooLong = errors.New("makes a text of more than 64 KB")
