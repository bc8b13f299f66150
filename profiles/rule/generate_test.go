package rule_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"pgregory.net/rapid"
)

// All that is generated comes from small domains, so that things meet.

func pick(t *rapid.T, label string, from ...string) string {
	return rapid.SampledFrom(from).Draw(t, label)
}

func several(t *rapid.T, label string, least, most int, one func() string) string {
	parts := make([]string, rapid.IntRange(least, most).Draw(t, label))
	for i := range parts {
		parts[i] = one()
	}
	return strings.Join(parts, ",")
}

var epoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixMilli()

// anyInstant returns one of the first 12 seconds of a day, often one of a few.
func anyInstant(t *rapid.T) int64 {
	return epoch + rapid.OneOf(
		rapid.SampledFrom([]int64{3000, 2000, 7999, 1000, 4500, 6000, 5000, 0, 1001, 8000, 999, 10_000}),
		rapid.Int64Range(0, 12_000),
	).Draw(t, "instant")
}

func anyEventName(t *rapid.T) string { return pick(t, "event", "Bought", "Bought", "Viewed") }

func anyDuration(t *rapid.T) string {
	return pick(t, "duration", `"5s"`, `"1s"`, `"5s"`, `"3s"`, `"1m"`, `"1m5s"`, `"1h"`, `"1h1m"`)
}

// anyEvent returns an event whose time is like that of others or, now and then, much later.
func anyEvent(t *rapid.T) naiveEvent {
	e := naiveEvent{anyEventName(t), anyObject(t, 2), anyInstant(t)}
	if pick(t, "plain", "yes", "yes", "yes", "no") == "yes" { // so that there is much to measure
		e.properties = fmt.Sprintf(`{"a":%s,"list":[%s,%s]}`,
			pick(t, "a", "1", "2", "0.1", `"x"`, "-3", "10", "true", "10e-1", "9007199254740993"), pick(t, "number", "2", "1", "0.1", "-3", "10"), anyScalar(t))
	}
	e.at += rapid.SampledFrom([]int64{0, 0, 0, 0, 0, 0, 290_000, 320_000, 3_900_000}).Draw(t, "later")
	return e
}

func anyDate(t *rapid.T) string {
	at := anyInstant(t)
	switch pick(t, "date as", "text", "zone", "day", "seconds", "milliseconds") {
	case "text":
		return time.UnixMilli(at).UTC().Format(`"` + time.RFC3339Nano + `"`)
	case "zone":
		return time.UnixMilli(at).In(time.FixedZone("", -5400)).Format(`"` + time.RFC3339Nano + `"`)
	case "day":
		return `"2026-03-01"`
	case "seconds":
		return fmt.Sprintf("%d.%03d", at/1000, at%1000)
	}
	return fmt.Sprint(at)
}

func anyNumber(t *rapid.T) string {
	return pick(t, "number", "0", "-0", "1", "1.0", "10e-1", "1e1", "10", "0.1", "-3", "-2.5", "9007199254740992", "9007199254740993", "1e30",
		"0.00000000000000000000000000000000012", "1e34", "1e-34", "9e-35", "0.0000012", "9999999999999999999999999999999999", "12345678901234567890123456789012345")
}

func anyScalar(t *rapid.T) string {
	switch pick(t, "kind", "text", "number", "bool", "date") {
	case "text":
		return pick(t, "text", `""`, `"x"`, `"xy"`, `"\u0078"`, `"yx"`, `"1"`, `"true"`, `"\"\\"`, `"é"`, `"\u00e9"`)
	case "number":
		return anyNumber(t)
	case "bool":
		return pick(t, "bool", "true", "false")
	}
	return anyDate(t)
}

// anyValue returns what a trait or property may be.
func anyValue(t *rapid.T, depth int) string {
	kinds := []string{"scalar", "scalar", "null"}
	if depth > 0 {
		kinds = append(kinds, "array", "object")
	}
	switch pick(t, "value", kinds...) {
	case "null":
		return "null"
	case "array":
		return "[" + several(t, "elements", 0, 3, func() string { return anyValue(t, depth-1) }) + " ]"
	case "object":
		return anyObject(t, depth-1)
	}
	return anyScalar(t)
}

func anyObject(t *rapid.T, depth int) string {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{`"a"`, `"b"`, `"a.b"`, `"list"`, `"d"`, `"0"`}), 0, 4, rapid.ID).Draw(t, "members")
	for i := range names {
		names[i] += " : " + anyValue(t, depth)
	}
	return "{" + strings.Join(names, ", ") + "}"
}

var relative = []string{"within_last", "within_next", "more_than_ago"}

var absolute = []string{
	"eq", "neq", "in", "not_in", "gt", "gte", "lt", "lte", "contains", "not_contains", "starts_with", "ends_with",
	"matches", "exists", "not_exists", "before", "after",
}

func anyCondition(t *rapid.T, subject string, ops []string) string {
	path := pick(t, "path", "a", "b", "a.b", "a.0", "list", "list.a", "list.0.a", "list.1", "d", "a.b.a", "0")
	op := rapid.SampledFrom(ops).Draw(t, "op")
	value := ""
	switch op {
	case "eq", "neq", "contains", "not_contains":
		value = anyScalar(t)
	case "in", "not_in":
		value = "[" + several(t, "values", 1, 4, func() string { return anyScalar(t) }) + "]"
	case "gt", "gte", "lt", "lte":
		value = anyNumber(t)
	case "starts_with", "ends_with":
		value = pick(t, "text", `"x"`, `"y"`, `"\""`)
	case "matches":
		value = pick(t, "pattern", `"^x"`, `"(?i)Y$"`, `"."`, `"\\\\"`)
	case "before", "after":
		value = anyDate(t)
	case "within_last", "within_next", "more_than_ago":
		value = anyDuration(t)
	}
	if value != "" {
		value = `,"value":` + value
	}
	return fmt.Sprintf(`{%q:%q,"op":%q%s}`, subject, path, op, value)
}

func anyRule(t *rapid.T, depth int) string {
	kinds := []string{"event", "event", "event", "event", "event", "event", "event", "sequence", "sequence", "trait", "consent", "segment"}
	if depth > 0 {
		kinds = append(kinds, "all", "any", "not")
	}
	switch kind := pick(t, "condition", kinds...); kind {
	case "all", "any":
		return fmt.Sprintf(`{%q:[%s]}`, kind, several(t, "nodes", 1, 4, func() string { return anyRule(t, depth-1) }))
	case "not":
		return `{"not":` + anyRule(t, depth-1) + `}`
	case "trait":
		return anyCondition(t, "trait", append(relative, absolute...))
	case "sequence":
		return anySequence(t)
	case "consent":
		return fmt.Sprintf(`{"consent":%q,"is":%q}`, pick(t, "purpose", purposes...), pick(t, "is", "granted", "denied", "unknown"))
	case "segment":
		return fmt.Sprintf(`{"segment":%q}`, pick(t, "segment", keys...))
	}
	aggregate := ""
	switch kind := pick(t, "aggregate", "sum", "avg", "min", "max", "first", "last", "first time", "last time", "distinct", "count", "count", ""); kind {
	case "":
	case "count":
		aggregate = `"count":{` + anyCount(t) + `}`
	case "distinct":
		aggregate = fmt.Sprintf(`"distinct":{"property":%q,%s}`, anyProperty(t), anyCount(t))
	case "sum", "avg", "min", "max":
		aggregate = fmt.Sprintf(`%q:{"property":%q,%s}`, kind, anyProperty(t), anyBounds(t))
	case "first", "last":
		aggregate = fmt.Sprintf(`%q:%s`, kind, anyCondition(t, "property", append(relative, absolute...)))
	default:
		op := pick(t, "op", "before", "after", "within_last", "within_next", "more_than_ago")
		value := anyDate
		if op != "before" && op != "after" {
			value = anyDuration
		}
		aggregate = fmt.Sprintf(`%q:{"op":%q,"value":%s}`, strings.TrimSuffix(kind, " time"), op, value(t))
	}
	return anyHappening(t, aggregate)
}

// anyHappening returns an event of which something is to be told.
func anyHappening(t *rapid.T, aggregate string) string {
	parts := []string{anyEventAndWhere(t)}
	if aggregate != "" {
		parts = append(parts, aggregate)
	}
	switch pick(t, "window", "within", "within", "within", "within", "within", "within", "between", "from", "to", "") {
	case "within":
		parts = append(parts, `"within":`+anyDuration(t))
	case "between":
		from := anyInstant(t)
		to := from + rapid.SampledFrom([]int64{1, 1000, 3000, 300_000}).Draw(t, "for")
		parts = append(parts, fmt.Sprintf(`"between":{"from":%d,"to":%d}`, from, to))
	case "from":
		parts = append(parts, `"between":{"from":`+anyDate(t)+`}`)
	case "to":
		parts = append(parts, `"between":{"to":`+anyDate(t)+`}`)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func anyEventAndWhere(t *rapid.T) string {
	event := `"event":"` + anyEventName(t) + `"`
	if pick(t, "with where", "no", "no", "no", "yes") == "yes" {
		event += `,"where":[` + several(t, "where", 0, 2, func() string { return anyCondition(t, "property", absolute) }) + `]`
	}
	return event
}

func anySequence(t *rapid.T) string {
	first := true
	step := func() string {
		s := anyEventAndWhere(t)
		if !first && rapid.Bool().Draw(t, "with a gap") {
			s += `,"within":` + anyDuration(t)
		}
		first = false
		return "{" + s + "}"
	}
	least, then := 2, ""
	if rapid.Bool().Draw(t, "with a tail") {
		first = false
		least, then = 1, `,"then_not":`+step()
		first = true
	}
	q := `{"sequence":[` + several(t, "steps", least, 4, step) + `]` + then
	if rapid.Bool().Draw(t, "with within") {
		q += `,"within":` + anyDuration(t)
	}
	return q + "}"
}

// anyComputed returns the definition of a computed value.
func anyComputed(t *rapid.T) string {
	switch kind := pick(t, "aggregate", "count", "sum", "avg", "min", "max", "distinct", "first", "last", "first time", "last time"); kind {
	case "count":
		return anyHappening(t, `"count":{}`)
	case "first time", "last time":
		return anyHappening(t, fmt.Sprintf(`%q:{}`, strings.TrimSuffix(kind, " time")))
	default:
		return anyHappening(t, fmt.Sprintf(`%q:{"property":%q}`, kind, anyProperty(t)))
	}
}

var (
	purposes = []string{"ad_storage", "é"}
	keys     = []string{"vip", "0-lost_"}
)

func anyProperty(t *rapid.T) string {
	return pick(t, "property", "a", "b", "a.b", "list", "list.a", "d", "0")
}

// anyBounds returns bounds that can be true.
func anyBounds(t *rapid.T) string {
	switch pick(t, "bounds", "eq", "low", "high", "both") {
	case "eq":
		return `"eq":` + anyNumber(t)
	case "low":
		return fmt.Sprintf(`%q:%s`, pick(t, "lower", "gte", "gt"), anyNumber(t))
	case "high":
		return fmt.Sprintf(`%q:%s`, pick(t, "upper", "lte", "lt"), anyNumber(t))
	}
	lower := pick(t, "from", "-3", "0", "0.1", "1.00")
	upper := pick(t, "to", "1.5", "10", "9007199254740993", "1e30")
	return fmt.Sprintf(`%q:%s,%q:%s`, pick(t, "lower", "gte", "gt"), lower, pick(t, "upper", "lte", "lt"), upper)
}

// anyCount returns the bounds of a count.
func anyCount(t *rapid.T) string {
	low := rapid.IntRange(0, 4).Draw(t, "low")
	high := low + rapid.IntRange(0, 3).Draw(t, "more")
	bounds := map[string]int{}
	switch pick(t, "count", "eq", "low", "high", "both") {
	case "eq":
		bounds["eq"] = low
	case "low":
		bounds[pick(t, "lower", "gte", "gt")] = low
	case "high":
		bounds["lte"] = high
	default:
		bounds["gt"] = low
		bounds["lt"] = high + 2
	}
	b, err := json.Marshal(bounds)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[1 : len(b)-1])
}
