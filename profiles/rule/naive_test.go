package rule_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The naive evaluator knows the whole history of a profile and looks at all of it each time. It shares nothing with the
// package but the language.
type naive struct {
	traits   map[string]any
	consents map[string]bool
	segments map[string]bool
	events   []naiveEvent
	now      int64
}

type naiveEvent struct {
	name       string
	properties string // JSON
	at         int64
}

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Fatalf(format string, args ...any)
}

// decode reads JSON with its numbers as they are written.
func decode(t fataler, s string) any {
	d := json.NewDecoder(bytes.NewBufferString(s))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("decode %s: %v", s, err)
	}
	return v
}

// encode is the opposite of decode.
func encode(t fataler, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("encode %v: %v", v, err)
	}
	return string(b)
}

func (n naive) holds(t fataler, rule map[string]any) bool {
	switch {
	case rule["all"] != nil:
		return !slices.ContainsFunc(rule["all"].([]any), func(r any) bool { return !n.holds(t, r.(map[string]any)) })
	case rule["any"] != nil:
		return slices.ContainsFunc(rule["any"].([]any), func(r any) bool { return n.holds(t, r.(map[string]any)) })
	case rule["not"] != nil:
		return !n.holds(t, rule["not"].(map[string]any))
	case rule["trait"] != nil:
		return n.condition(rule["trait"].(string), rule, n.traits)
	case rule["consent"] != nil:
		granted, known := n.consents[rule["consent"].(string)]
		return map[string]bool{"unknown": !known, "granted": known && granted, "denied": known && !granted}[rule["is"].(string)]
	case rule["segment"] != nil:
		return n.segments[rule["segment"].(string)]
	case rule["sequence"] != nil:
		return n.sequence(t, rule)
	}
	for _, name := range []string{"sum", "avg", "min", "max"} {
		if of, ok := rule[name].(map[string]any); ok {
			v, ok := n.amount(t, rule, name, of["property"].(string))
			return ok && within(of, v)
		}
	}
	for _, name := range []string{"first", "last"} {
		if of, ok := rule[name].(map[string]any); ok {
			return n.extreme(t, rule, name, of)
		}
	}
	if of, ok := rule["distinct"].(map[string]any); ok {
		return within(of, new(big.Rat).SetInt64(int64(len(n.different(t, rule, of["property"].(string))))))
	}
	count := int64(len(n.occurrences(t, rule, false)))
	bounds, ok := rule["count"].(map[string]any)
	if !ok {
		return count >= 1
	}
	return within(bounds, new(big.Rat).SetInt64(count))
}

// within tells whether v meets every bound.
func within(bounds map[string]any, v *big.Rat) bool {
	for op, bound := range bounds {
		if op == "property" {
			continue
		}
		order := v.Cmp(rat(bound.(json.Number)))
		if !map[string]bool{"gte": order >= 0, "gt": order > 0, "lte": order <= 0, "lt": order < 0, "eq": order == 0}[op] {
			return false
		}
	}
	return true
}

// occurrences returns those of an event, a step, or a computed value that are in its window.
func (n naive) occurrences(t fataler, rule map[string]any, coarse bool) (found []naiveEvent) {
	for _, e := range n.events {
		if e.name == rule["event"] && n.inWindow(rule, e.at, coarse) && n.where(t, rule, e.properties) {
			found = append(found, e)
		}
	}
	return found
}

func (n naive) inWindow(rule map[string]any, at int64, coarse bool) bool {
	if between, ok := rule["between"].(map[string]any); ok {
		from, hasFrom := naiveDate(between["from"])
		to, hasTo := naiveDate(between["to"])
		return (!hasFrom || from <= at) && (!hasTo || at < to)
	}
	duration, ok := rule["within"].(string)
	if !ok {
		return true
	}
	d := naiveDuration(duration)
	if !coarse {
		return at > n.now-d
	}
	r := naiveResolution(d)
	return n.now < (at/r+1)*r+d // at is not negative
}

func naiveResolution(d int64) int64 {
	for _, r := range []string{
		"1s", "2s", "5s", "10s", "15s", "30s", "1m", "2m", "5m", "10m", "15m", "30m", "1h", "2h", "3h", "6h", "12h", "24h", "48h", "168h",
	} {
		if r := naiveDuration(r); 720*r >= d {
			return r
		}
	}
	panic("too long")
}

// values returns the scalars that a path leads to in properties.
func naiveValues(t fataler, properties, path string) (values []any) {
	for _, found := range lookUp(decode(t, properties), strings.Split(path, ".")) {
		elements, ok := found.([]any)
		if !ok {
			elements = []any{found}
		}
		for _, e := range elements {
			switch e.(type) {
			case string, bool, json.Number:
				values = append(values, e)
			}
		}
	}
	return values
}

// amount returns a sum, an average, a minimum or a maximum.
func (n naive) amount(t fataler, rule map[string]any, name, property string) (v *big.Rat, ok bool) {
	var numbers []*big.Rat
	for _, e := range n.occurrences(t, rule, true) {
		for _, v := range naiveValues(t, e.properties, property) {
			if number, ok := v.(json.Number); ok {
				if digits, exp := naiveDigits(rat(number)); len(digits) <= 34 && exp <= 34 && exp > -34 {
					numbers = append(numbers, rat(number))
				}
			}
		}
	}
	slices.SortFunc(numbers, (*big.Rat).Cmp)
	total := new(big.Rat)
	for _, number := range numbers {
		total.Add(total, number)
	}
	switch {
	case name == "sum":
		return total, true
	case len(numbers) == 0:
		return nil, false
	case name == "avg":
		return total.Quo(total, new(big.Rat).SetInt64(int64(len(numbers)))), true
	case name == "min":
		return numbers[0], true
	}
	return numbers[len(numbers)-1], true
}

// different returns the different values of a property, as they are written.
func (n naive) different(t fataler, rule map[string]any, property string) map[string]bool {
	found := map[string]bool{}
	for _, e := range n.occurrences(t, rule, false) {
		for _, v := range naiveValues(t, e.properties, property) {
			found[naiveText(v)] = true
		}
	}
	return found
}

// end is a first or last value and its time.
type end struct {
	at    int64
	value any
}

// ends returns the first or last value of a property or, if that is empty, the time.
func (n naive) end(t fataler, rule map[string]any, name, property string) (found end, ok bool) {
	for _, e := range n.occurrences(t, rule, name == "first") {
		values := []any{nil}
		if property != "" {
			values = naiveValues(t, e.properties, property)
		}
		for _, v := range values {
			if s, ok := v.(string); ok && len(s) > 512 {
				continue
			}
			order := cmp.Or(cmp.Compare(e.at, found.at), cmp.Compare(naiveText(v), naiveText(found.value)))
			if !ok || (order < 0) == (name == "first") {
				found, ok = end{e.at, v}, true
			}
		}
	}
	return found, ok
}

func (n naive) extreme(t fataler, rule map[string]any, name string, of map[string]any) bool {
	property, _ := of["property"].(string)
	found, ok := n.end(t, rule, name, property)
	switch {
	case !ok:
		return false
	case property == "":
		return n.meets(of, []any{json.Number(strconv.FormatInt(found.at, 10))})
	}
	return n.meets(of, []any{found.value})
}

// sequence tries every chain.
func (n naive) sequence(t fataler, rule map[string]any) bool {
	newest := func(step any) (times []int64, all bool) {
		for _, e := range n.occurrences(t, map[string]any{"event": step.(map[string]any)["event"], "where": step.(map[string]any)["where"]}, false) {
			times = append(times, e.at)
		}
		slices.Sort(times)
		if len(times) > 100 {
			return times[len(times)-100:], false
		}
		return times, true
	}
	not, tailed := rule["then_not"].(map[string]any)
	var times []int64
	all := true
	if tailed {
		times, all = newest(not)
	}
	holdsAfter := func(last int64) bool {
		if !tailed {
			return true
		}
		if !all && last < times[0] {
			return false
		}
		g, limited := not["within"].(string)
		if limited && n.now <= last+naiveDuration(g) {
			return false
		}
		return !slices.ContainsFunc(times, func(at int64) bool { return at > last && (!limited || at <= last+naiveDuration(g)) })
	}
	steps := rule["sequence"].([]any)
	lists := make([][]int64, len(steps))
	for i, step := range steps {
		lists[i], _ = newest(step)
	}
	var try func(i int, before int64) bool
	try = func(i int, before int64) bool {
		if i == len(steps) {
			return holdsAfter(before)
		}
		gap, limited := steps[i].(map[string]any)["within"].(string)
		return slices.ContainsFunc(lists[i], func(at int64) bool {
			switch {
			case i == 0:
				if within, ok := rule["within"].(string); ok && at <= n.now-naiveDuration(within) {
					return false
				}
			case at <= before || limited && at > before+naiveDuration(gap):
				return false
			}
			return try(i+1, at)
		})
	}
	return try(0, 0)
}

// computed returns the value of a computed trait.
func (n naive) computed(t fataler, c map[string]any) any {
	for name, of := range c {
		of, _ := of.(map[string]any)
		property, _ := of["property"].(string)
		switch name {
		case "count":
			return json.Number(strconv.Itoa(len(n.occurrences(t, c, true))))
		case "distinct":
			return json.Number(strconv.Itoa(len(n.different(t, c, property))))
		case "sum", "avg", "min", "max":
			v, ok := n.amount(t, c, name, property)
			if !ok {
				return nil
			}
			if name == "avg" {
				v = halfEven(v, 12)
			}
			return json.Number(naiveNumber(v))
		case "first", "last":
			found, ok := n.end(t, c, name, property)
			switch {
			case !ok:
				return nil
			case property == "":
				return time.UnixMilli(found.at).UTC().Format("2006-01-02T15:04:05.000Z")
			}
			return found.value
		}
	}
	panic("no aggregate")
}

func halfEven(v *big.Rat, places int64) *big.Rat {
	unit := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(places), nil))
	units := new(big.Rat).Mul(v, unit)
	low := new(big.Int).Div(units.Num(), units.Denom()) // rounds down
	rest := new(big.Rat).Sub(units, new(big.Rat).SetInt(low))
	if order := rest.Cmp(big.NewRat(1, 2)); order > 0 || order == 0 && low.Bit(0) == 1 {
		low.Add(low, big.NewInt(1))
	}
	return new(big.Rat).Quo(new(big.Rat).SetInt(low), unit)
}

// naiveText returns a scalar in its canonical form.
func naiveText(v any) string {
	switch v := v.(type) {
	case json.Number:
		return naiveNumber(rat(v))
	case bool:
		return strconv.FormatBool(v)
	case string:
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			panic(err)
		}
		return strings.TrimSpace(b.String())
	}
	return ""
}

// naiveDigits returns DIGITS and exp of 0.DIGITS × 10^exp.
func naiveDigits(r *big.Rat) (digits string, exp int) {
	whole, fraction, _ := strings.Cut(new(big.Rat).Abs(r).FloatString(120), ".")
	digits, exp = whole+fraction, len(whole)
	for strings.HasPrefix(digits, "0") {
		digits, exp = digits[1:], exp-1
	}
	if digits = strings.TrimRight(digits, "0"); digits == "" {
		exp = 0
	}
	return digits, exp
}

func naiveNumber(r *big.Rat) string {
	digits, exp := naiveDigits(r)
	sign := ""
	if r.Sign() < 0 {
		sign = "-"
	}
	switch {
	case digits == "":
		return "0"
	case exp > 21 || exp <= -6:
		if len(digits) > 1 {
			digits = digits[:1] + "." + digits[1:]
		}
		return sign + digits + "e" + strconv.Itoa(exp-1)
	case exp <= 0:
		return sign + "0." + strings.Repeat("0", -exp) + digits
	case exp < len(digits):
		return sign + digits[:exp] + "." + digits[exp:]
	}
	return sign + digits + strings.Repeat("0", exp-len(digits))
}

func (n naive) where(t fataler, rule map[string]any, properties string) bool {
	where, _ := rule["where"].([]any)
	return !slices.ContainsFunc(where, func(c any) bool {
		m := c.(map[string]any)
		return !n.condition(m["property"].(string), m, decode(t, properties))
	})
}

func (n naive) condition(path string, c map[string]any, in any) bool {
	return n.meets(c, lookUp(in, strings.Split(path, ".")))
}

// meets tells whether a condition is true of what was found.
func (n naive) meets(c map[string]any, found []any) bool {
	op, value := c["op"].(string), c["value"]
	if opposite, ok := map[string]string{"neq": "eq", "not_in": "in", "not_contains": "contains", "not_exists": "exists"}[op]; ok {
		return !n.meets(map[string]any{"op": opposite, "value": value}, found)
	}
	for _, found := range found {
		if found == nil {
			continue
		}
		if op == "exists" {
			return true
		}
		elements, isArray := found.([]any)
		if !isArray {
			elements = []any{found}
		}
		for _, e := range elements {
			if n.compare(op, e, value, isArray) {
				return true
			}
		}
	}
	return false
}

func lookUp(in any, steps []string) (found []any) {
	if len(steps) == 0 {
		return []any{in}
	}
	switch in := in.(type) {
	case map[string]any:
		for i := range steps {
			if v, ok := in[strings.Join(steps[:i+1], ".")]; ok {
				found = append(found, lookUp(v, steps[i+1:])...)
			}
		}
	case []any:
		for i, e := range in {
			if strconv.Itoa(i) == steps[0] {
				found = append(found, lookUp(e, steps[1:])...)
			}
			if _, ok := e.(map[string]any); ok {
				found = append(found, lookUp(e, steps)...)
			}
		}
	}
	return found
}

func (n naive) compare(op string, v, with any, inArray bool) bool {
	s, isText := v.(string)
	w, withText := with.(string)
	texts := isText && withText
	switch op {
	case "eq":
		return same(v, with)
	case "in":
		return slices.ContainsFunc(with.([]any), func(w any) bool { return same(v, w) })
	case "gt", "gte", "lt", "lte":
		a, ok := v.(json.Number)
		if !ok {
			return false
		}
		order := rat(a).Cmp(rat(with.(json.Number)))
		return map[string]bool{"gt": order > 0, "gte": order >= 0, "lt": order < 0, "lte": order <= 0}[op]
	case "contains":
		if inArray {
			return same(v, with)
		}
		return texts && strings.Contains(s, w)
	case "starts_with":
		return texts && strings.HasPrefix(s, w)
	case "ends_with":
		return texts && strings.HasSuffix(s, w)
	case "matches":
		return texts && regexp.MustCompile(w).MatchString(s)
	}
	at, ok := naiveDate(v)
	if !ok {
		return false
	}
	switch op {
	case "before":
		limit, _ := naiveDate(with)
		return at < limit
	case "after":
		limit, _ := naiveDate(with)
		return at > limit
	case "within_last":
		return n.now-naiveDuration(w) < at && at <= n.now
	case "within_next":
		return n.now <= at && at < n.now+naiveDuration(w)
	case "more_than_ago":
		return at <= n.now-naiveDuration(w)
	}
	panic("unknown operator " + op)
}

func same(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return ok && rat(a).Cmp(rat(b)) == 0
	case string, bool:
		return a == b
	}
	return false
}

func rat(n json.Number) *big.Rat {
	r, ok := new(big.Rat).SetString(string(n))
	if !ok {
		panic("not a number: " + n)
	}
	return r
}

func naiveDate(v any) (int64, bool) {
	switch v := v.(type) {
	case string:
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if at, err := time.Parse(layout, v); err == nil {
				return at.UnixMilli(), true
			}
		}
	case json.Number:
		ms := rat(v)
		if new(big.Rat).Abs(ms).Cmp(big.NewRat(100_000_000_000, 1)) < 0 {
			ms.Mul(ms, big.NewRat(1000, 1))
		}
		i := new(big.Int).Div(ms.Num(), ms.Denom()) // rounds down for a positive denominator
		return i.Int64(), i.IsInt64()
	}
	return 0, false
}

func naiveDuration(s string) int64 {
	d, err := time.ParseDuration(s) // the tests use no days here
	if err != nil {
		panic(err)
	}
	return d.Milliseconds()
}
