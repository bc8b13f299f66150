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
		rapid.SampledFrom([]int64{0, 999, 1000, 1001, 2000, 5000, 6000, 10_000}),
		rapid.Int64Range(0, 12_000),
	).Draw(t, "instant")
}

func anyEventName(t *rapid.T) string { return pick(t, "event", "Bought", "Viewed") }

func anyDuration(t *rapid.T) string { return pick(t, "duration", `"1s"`, `"5s"`, `"1m"`, `"1m5s"`) }

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
	return pick(t, "number", "0", "-0", "1", "1.0", "10e-1", "1e1", "10", "0.1", "-3", "-2.5", "9007199254740992", "9007199254740993", "1e30")
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
	kinds := []string{"trait", "event", "event"}
	if depth > 0 {
		kinds = append(kinds, "all", "any", "not")
	}
	switch kind := pick(t, "condition", kinds...); kind {
	case "all", "any":
		return fmt.Sprintf(`{%q:[%s]}`, kind, several(t, "nodes", 1, 4, func() string { return anyRule(t, depth-1) }))
	case "not":
		return `{"not":` + anyRule(t, depth-1) + `}`
	case "trait":
		return anyCondition(t, "trait", append([]string{"within_last", "within_next", "more_than_ago"}, absolute...))
	}
	parts := []string{`"event":"` + anyEventName(t) + `"`}
	if rapid.Bool().Draw(t, "with where") {
		parts = append(parts, `"where":[`+several(t, "where", 0, 2, func() string { return anyCondition(t, "property", absolute) })+`]`)
	}
	if rapid.Bool().Draw(t, "with count") {
		parts = append(parts, `"count":`+anyCount(t))
	}
	if rapid.IntRange(0, 3).Draw(t, "with within") > 0 {
		parts = append(parts, `"within":`+anyDuration(t))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

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
	return string(b)
}
