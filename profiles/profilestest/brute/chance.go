package brute

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Chance draws rules, histories and moments. There are few names and few values, and times are about as far apart as
// windows are long, so that what it draws meets.
type Chance struct {
	*rand.Rand
	Start    int64    // unix milliseconds: the first moment at which something happens
	Span     int64    // in milliseconds: how long things happen
	Grid     int64    // in milliseconds: what times are usually multiples of, so that some are the same
	Windows  []string // durations
	Segments []string // keys of segments that rules may refer to
	Plain    bool     // there are but two names, no event has properties, and nobody asks for them
}

// Names of what is done, and of what is consented to.
var (
	Names    = []string{"A", "B", "Page Viewed"}
	Purposes = []string{"ads", "mail"}
)

var (
	numbers = []string{"0", "1", "2", "2.0", "20e-1", "3", "-1", "2.5", "0.1", "0.20", "0.3", "5", "10", "1E+1", "12"}
	// Those that are not what a float64 holds, and those at and beyond what is reckoned with.
	extremes = []string{
		"9007199254740992", "9007199254740993", "12345678901234567890123", "1e33", "-1e33", "1e-34", "1e-7", "-0", "0e99",
		"9999999999999999999999999999999999", "0.9999999999999999999999999999999999", "1.00000000000000000000000000000000000000",
		"1e34", "-1e34", "1e-35", "1e-34", "1e60", "99999999999999999999999999999999999", "0.12345678901234567890123456789012345",
	}
	words    = []string{"x", "y", "xy", "yx", "X", "", "é", "1", "2", "true"}
	patterns = []string{"^x", "y$", "x.?y", "^$", "[0-9]", "(?i)^x$"}
	paths    = []string{"n", "s", "b", "d", "list", "list.k", "list.0", "list.1.k", "o", "o.k", "o.list", "nothing"}
)

func pick[T any](c *Chance, list []T) T { return list[c.IntN(len(list))] }

// one tells whether something that happens once in n times happens.
func (c *Chance) one(n int) bool { return c.IntN(n) == 0 }

// Instant draws a moment at which something happens.
func (c *Chance) Instant() int64 {
	at := c.Start + c.Int64N(c.Span)
	if !c.one(8) {
		at -= at % c.Grid
	}
	return at
}

// Number draws a number, written in any way.
func (c *Chance) Number() json.Number {
	switch c.IntN(20) {
	case 0, 1:
		return json.Number(pick(c, extremes))
	case 2:
		return json.Number(strconv.Itoa(c.IntN(3000)))
	}
	return json.Number(pick(c, numbers))
}

// Date draws a date in any of its forms.
func (c *Chance) Date() any {
	at := time.UnixMilli(c.Instant()).UTC()
	switch c.IntN(8) {
	case 0:
		return at.Format(time.DateOnly)
	case 1:
		return json.Number(strconv.FormatInt(at.UnixMilli(), 10))
	case 2:
		return json.Number(strconv.FormatInt(at.UnixMilli(), 10) + ".7")
	case 3:
		return json.Number(fmt.Sprintf("%d.%03d", at.Unix(), at.Nanosecond()/1e6))
	case 4:
		return at.In(time.FixedZone("", 5400)).Format(time.RFC3339Nano)
	case 5:
		return at.Add(300 * time.Microsecond).Format(time.RFC3339Nano)
	}
	return at.Format("2006-01-02T15:04:05.000Z")
}

// Word draws a string.
func (c *Chance) Word() string {
	if c.one(25) {
		return strings.Repeat("x", maxText+c.IntN(2))
	}
	return pick(c, words)
}

// Scalar draws a string, a number or a truth value.
func (c *Chance) Scalar() any {
	switch c.IntN(6) {
	case 0, 1:
		return c.Word()
	case 2:
		return c.one(2)
	}
	return c.Number()
}

// Value draws anything.
func (c *Chance) Value() any {
	switch c.IntN(12) {
	case 0:
		return nil
	case 1:
		return []any{}
	case 2:
		return []any{c.Scalar(), c.Scalar()}
	case 3:
		return []any{[]any{c.Scalar()}, nil, c.Scalar()}
	case 4:
		return map[string]any{"k": c.Scalar()}
	case 5:
		return c.Date()
	}
	return c.Scalar()
}

// Object draws the properties of an event, or somebody's traits.
func (c *Chance) Object() map[string]any {
	object := map[string]any{}
	add := func(name string, usual func() any) {
		switch c.IntN(12) {
		case 0, 1:
		case 2:
			object[name] = c.Value()
		default:
			object[name] = usual()
		}
	}
	add("n", func() any { return c.Number() })
	add("s", func() any { return c.Word() })
	if c.one(2) {
		add("d", c.Date)
	}
	if c.one(2) {
		add("b", func() any { return c.one(2) })
	}
	if c.one(2) {
		add("list", func() any {
			list := []any{}
			for range c.IntN(4) {
				if c.one(2) {
					list = append(list, map[string]any{"k": c.Scalar()})
				} else {
					list = append(list, c.Scalar())
				}
			}
			return list
		})
	}
	if c.one(2) {
		add("o", func() any { return map[string]any{"k": c.Scalar(), "list": []any{c.Scalar(), c.Scalar()}} })
	}
	if c.one(4) {
		add("o.k", c.Scalar)
	}
	return object
}

// Event draws something that is done.
func (c *Chance) Event() Occurrence {
	if c.Plain {
		return Occurrence{c.name(), object{}, c.Instant()}
	}
	return Occurrence{c.name(), c.Object(), c.Instant()}
}

func (c *Chance) name() string {
	if c.Plain {
		return pick(c, Names[:2])
	}
	return pick(c, Names)
}

// Often draws somebody who did one thing about as often as sequences look at, and another a few times, when it began.
func (c *Chance) Often() *Person {
	p := c.Person(0)
	often, seldom := c.name(), c.name()
	for range newest - 2 + c.IntN(9) {
		p.Events = append(p.Events, Occurrence{often, object{}, c.Start + c.Int64N(c.Span)})
	}
	slices.SortFunc(p.Events, func(a, b Occurrence) int { return cmp.Compare(a.At, b.At) })
	for range 1 + c.IntN(3) {
		at := p.Events[c.IntN(7)].At + pick(c, []int64{-1, 0, 0, 1})
		p.Events = append(p.Events, Occurrence{seldom, object{}, at})
	}
	return p
}

// Person draws somebody who did n things.
func (c *Chance) Person(n int) *Person {
	p := &Person{Traits: map[string]any{}, Consent: map[string]bool{}}
	for name, value := range c.Object() {
		if value != nil {
			p.Traits[name] = value
		}
	}
	for _, purpose := range Purposes {
		if c.one(2) {
			p.Consent[purpose] = c.one(2)
		}
	}
	for range n {
		p.Events = append(p.Events, c.Event())
	}
	return p
}

type object = map[string]any

// Rule draws a rule that is at most depth deep.
func (c *Chance) Rule(depth int) any {
	if depth > 1 && c.one(2) {
		switch c.IntN(3) {
		case 0:
			return object{"not": c.Rule(depth - 1)}
		case 1:
			return object{"any": c.rules(depth - 1)}
		default:
			return object{"all": c.rules(depth - 1)}
		}
	}
	switch n := c.IntN(20); {
	case n < 2:
		return c.condition("trait", true)
	case c.Plain && n < 16:
		return c.sequence()
	case n < 4:
		return object{"consent": pick(c, Purposes), "is": pick(c, []string{"granted", "denied", "unknown"})}
	case n < 6 && len(c.Segments) > 0:
		return object{"segment": pick(c, c.Segments)}
	case n < 10:
		return c.sequence()
	}
	return c.event()
}

func (c *Chance) rules(depth int) (list []any) {
	for range 1 + c.IntN(3) {
		list = append(list, c.Rule(depth))
	}
	return list
}

// condition draws a condition on a trait or a property. Only a relative one depends on the present.
func (c *Chance) condition(of string, relative bool) object {
	condition := c.test(relative)
	switch condition["op"] {
	case "gt", "gte", "lt", "lte":
		condition[of] = pick(c, []string{"n", "n", "list", "o.k"})
	case "before", "after", "within_last", "within_next", "more_than_ago":
		condition[of] = "d"
	case "contains", "not_contains", "starts_with", "ends_with", "matches":
		condition[of] = pick(c, []string{"s", "s", "list", "o.list"})
	}
	if condition[of] == nil || c.one(8) {
		condition[of] = pick(c, paths)
	}
	return condition
}

// test draws an operator and a value.
func (c *Chance) test(relative bool) object {
	ops := []string{
		"eq", "neq", "in", "not_in", "gt", "gte", "lt", "lte", "contains", "not_contains", "starts_with", "ends_with", "matches",
		"exists", "not_exists", "before", "after",
	}
	if relative {
		ops = append(ops, "within_last", "within_next", "more_than_ago", "within_last", "more_than_ago")
	}
	test := object{"op": pick(c, ops)}
	switch test["op"] {
	case "in", "not_in":
		test["value"] = []any{c.Scalar(), c.Scalar(), c.Scalar()}
	case "gt", "gte", "lt", "lte":
		test["value"] = c.Number()
	case "contains", "not_contains", "eq", "neq":
		test["value"] = c.Scalar()
	case "starts_with", "ends_with":
		test["value"] = pick(c, []string{"x", "y", "é"})
	case "matches":
		test["value"] = pick(c, patterns)
	case "before", "after":
		test["value"] = c.Date()
	case "within_last", "within_next", "more_than_ago":
		test["value"] = pick(c, c.Windows)
	}
	return test
}

// did draws something that may be done.
func (c *Chance) did() object {
	node := object{"event": c.name()}
	if !c.Plain && c.one(4) {
		list := []any{}
		for range 1 + c.IntN(2) {
			list = append(list, c.condition("property", false))
		}
		node["where"] = list
	}
	return node
}

func (c *Chance) event() object {
	node := c.did()
	c.window(node)
	switch aggregate := pick(c, []string{"", "count", "count", "sum", "avg", "min", "max", "distinct", "first", "last"}); aggregate {
	case "":
	case "count":
		node["count"] = c.integers()
	case "distinct":
		node["distinct"] = c.integers()
		node["distinct"].(object)["property"] = c.various()
	case "first", "last":
		node[aggregate] = c.end()
	default:
		node[aggregate] = c.bounds()
		node[aggregate].(object)["property"] = c.numeric()
	}
	return node
}

// numeric draws a path that is likely to lead to numbers.
func (c *Chance) numeric() string {
	return pick(c, []string{"n", "n", "n", "n", "n", "list", "list.k", "o.k"})
}

// various draws a path that is likely to lead to different things.
func (c *Chance) various() string {
	return pick(c, []string{"list", "list", "o.k", "o.list", "n", "s", pick(c, paths)})
}

// end draws what is asked of the earliest or the latest occurrence.
func (c *Chance) end() object {
	if c.one(2) {
		return c.condition("property", true)
	}
	node := object{"op": pick(c, []string{"before", "after", "within_last", "within_next", "more_than_ago"})}
	switch node["op"] {
	case "before", "after":
		node["value"] = c.Date()
	default:
		node["value"] = pick(c, c.Windows)
	}
	return node
}

func (c *Chance) window(node object) {
	switch c.IntN(8) {
	case 0:
		from, to := c.Date(), c.Date()
		if mustDate(from) > mustDate(to) {
			from, to = to, from
		}
		switch {
		case c.one(3) || mustDate(from) == mustDate(to):
			node["between"] = object{"from": from}
		case c.one(2):
			node["between"] = object{"to": to}
		default:
			node["between"] = object{"from": from, "to": to}
		}
	case 1, 2, 3, 4, 5:
		node["within"] = pick(c, c.Windows)
	}
}

// integers draws bounds that some number from 0 on is within.
func (c *Chance) integers() object {
	n := c.IntN(4)
	if c.one(20) {
		n = c.IntN(150)
	}
	number := func(n int) json.Number { return json.Number(strconv.Itoa(n)) }
	switch c.IntN(7) {
	case 0:
		return object{"gt": number(n)}
	case 1:
		return object{"lte": number(n)}
	case 2:
		return object{"lt": number(n + 1)}
	case 3:
		return object{"eq": number(n)}
	case 4:
		return object{"gte": number(n), "lte": number(n + c.IntN(3))}
	case 5:
		return object{"gt": number(n), "lt": number(n + 2 + c.IntN(2))}
	}
	return object{"gte": number(n + c.IntN(2))}
}

// bounds draws bounds that some number is within.
func (c *Chance) bounds() object {
	low, high := c.Number(), c.Number()
	if rational(low).Cmp(rational(high)) > 0 {
		low, high = high, low
	}
	switch c.IntN(7) {
	case 0:
		return object{"gt": low}
	case 1:
		return object{"gte": high}
	case 2:
		return object{"lt": high}
	case 3:
		return object{"lte": low}
	case 4:
		return object{"eq": low}
	case 5:
		if rational(low).Cmp(rational(high)) < 0 {
			return object{"gt": low, "lt": high}
		}
	}
	return object{"gte": low, "lte": high}
}

func (c *Chance) sequence() object {
	steps := []any{}
	most := 4
	if c.Plain {
		most = 2
	}
	for i := range 1 + c.IntN(most) {
		step := c.did()
		if i > 0 && c.one(2) {
			step["within"] = pick(c, c.Windows)
		}
		steps = append(steps, step)
	}
	node := object{"sequence": steps}
	if len(steps) == 1 || c.one(2) {
		then := c.did()
		if !c.one(3) {
			then["within"] = pick(c, c.Windows)
		}
		node["then_not"] = then
	}
	if !c.one(3) {
		node["within"] = pick(c, c.Windows)
	}
	return node
}

// Computed draws a computed trait.
func (c *Chance) Computed() any {
	node := c.did()
	c.window(node)
	switch aggregate := pick(c, []string{"count", "sum", "avg", "min", "max", "distinct", "first", "last"}); aggregate {
	case "count":
		node["count"] = object{}
	case "first", "last":
		node[aggregate] = object{}
		if c.one(2) {
			node[aggregate] = object{"property": pick(c, paths)}
		}
	case "distinct":
		node[aggregate] = object{"property": c.various()}
	default:
		node[aggregate] = object{"property": c.numeric()}
	}
	return node
}

// Now draws a moment at which a decoded rule is asked for p. Many are about when something in it changes: a window's
// length after something happened, or after a date that is known of p. None is long before what has happened.
func (c *Chance) Now(rule any, p *Person) int64 {
	now := c.Start + c.Int64N(c.Span*3/2)
	switch c.IntN(4) {
	case 0, 1:
		now = c.moment(p) + duration(pick(c, append(durations(rule), "0s"))) + int64(c.IntN(3)) - 1
	case 2:
		d := duration(pick(c, append(durations(rule), "0s")))
		now = bucketEnd(c.moment(p), resolution(d)) + d + int64(c.IntN(3)) - 1
	}
	for _, e := range p.Events {
		now = max(now, e.At-300_000)
	}
	return now
}

// moment draws a moment at which something happened, or of which something tells.
func (c *Chance) moment(p *Person) int64 {
	list := []int64{c.Instant()}
	switch {
	case c.one(4):
		list = append(list, dates(p.Traits)...)
	case len(p.Events) > 0:
		e := pick(c, p.Events)
		list = []int64{e.At}
		if c.one(4) {
			list = append(list, dates(e.Properties)...)
		}
	}
	return pick(c, list)
}

// dates returns the dates of our time in v.
func dates(v any) (list []int64) {
	each(v, func(v any) {
		if s, ok := v.(string); ok && !strings.HasPrefix(s, "20") {
			return
		}
		if at, ok := date(v); ok && at > 1e12 {
			list = append(list, at)
		}
	})
	return list
}

// durations returns the durations in a rule.
func durations(rule any) (list []string) {
	each(rule, func(v any) {
		if node, ok := v.(object); ok {
			for _, name := range []string{"within", "value"} {
				if s, ok := node[name].(string); ok && duration(s) > 0 {
					list = append(list, s)
				}
			}
		}
	})
	return list
}

// each calls fn for v and everything in it.
func each(v any, fn func(any)) {
	fn(v)
	switch v := v.(type) {
	case object:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			each(v[name], fn)
		}
	case []any:
		for _, element := range v {
			each(element, fn)
		}
	}
}
