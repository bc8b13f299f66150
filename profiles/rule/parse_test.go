package rule_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/rule"
	"github.com/mubatch/mubatch/profiles/timeline"
)

func TestParsePrintsCanonically(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, give, want string }{
		{
			"the parts come in one order", ` { "value" : ["b","a","b"], "op":"in", "trait":"t" } `,
			`{"trait":"t","op":"in","value":["b","a"]}`,
		},
		{
			"a count says what it is by default", `{"event":"E"}`,
			`{"event":"E","count":{"gte":1}}`,
		},
		{
			"bounds are inclusive", `{"event":"E","count":{"gt":1,"lt":5}}`,
			`{"event":"E","count":{"gte":2,"lte":4}}`,
		},
		{
			"a range of one is that one", `{"event":"E","count":{"gte":3,"lte":3.0}}`,
			`{"event":"E","count":{"eq":3}}`,
		},
		{
			"durations have no weeks", `{"event":"E","within":"1w36h90m60s"}`,
			`{"event":"E","count":{"gte":1},"within":"8d13h31m"}`,
		},
		{
			"dates are RFC 3339 in UTC", `{"all":[{"trait":"t","op":"after","value":"2026-03-01"},{"trait":"t","op":"before","value":1772366400.25}]}`,
			`{"all":[{"trait":"t","op":"after","value":"2026-03-01T00:00:00Z"},{"trait":"t","op":"before","value":"2026-03-01T12:00:00.25Z"}]}`,
		},
		{
			"numbers are plain, unless that is long", `{"trait":"t","op":"in","value":[1e3,-0.0,0.050,12345678901234567890123,1e-9,-1.50E+300]}`,
			`{"trait":"t","op":"in","value":[1000,0,0.05,1.2345678901234567890123e22,1e-9,-1.5e300]}`,
		},
		{
			"strings are escaped only where they must be", `{"trait":"\u0074","op":"eq","value":"\u00e9\/\"<\u0001"}`,
			`{"trait":"t","op":"eq","value":"é/\"<\u0001"}`,
		},
		{
			"bounds of numbers are as given, in one order", `{"event":"E","sum":{"lt":1e3,"property":"a.b","gt":-0.50},"within":"1w"}`,
			`{"event":"E","sum":{"property":"a.b","gt":-0.5,"lt":1000},"within":"7d"}`,
		},
		{
			"a range of one number is that one", `{"any":[{"event":"E","avg":{"property":"n","gte":3.10,"lte":31e-1}},{"event":"E","max":{"property":"n","eq":7}}]}`,
			`{"any":[{"event":"E","avg":{"property":"n","eq":3.1}},{"event":"E","max":{"property":"n","eq":7}}]}`,
		},
		{
			"different values are counted like occurrences", `{"event":"E","distinct":{"gt":1,"property":"sku"}}`,
			`{"event":"E","distinct":{"property":"sku","gte":2}}`,
		},
		{
			"first and last are conditions", `{"all":[{"event":"E","first":{"value":["a","a"],"op":"in","property":"p"}},{"event":"E","last":{"op":"more_than_ago","value":"48h"},"within":"90d"}]}`,
			`{"all":[{"event":"E","first":{"property":"p","op":"in","value":["a"]}},{"event":"E","last":{"op":"more_than_ago","value":"2d"},"within":"90d"}]}`,
		},
		{
			"a period is of dates", `{"event":"E","between":{"to":"2026-02-01","from":1767225600}}`,
			`{"event":"E","count":{"gte":1},"between":{"from":"2026-01-01T00:00:00Z","to":"2026-02-01T00:00:00Z"}}`,
		},
		{
			"a sequence", `{"within":"60m","then_not":{"within":"30s","event":"C","where":[]},"sequence":[{"event":"A"},{"within":"60s","event":"B","where":[{"property":"p","op":"exists"}]}]}`,
			`{"sequence":[{"event":"A"},{"event":"B","where":[{"property":"p","op":"exists"}],"within":"1m"}],"then_not":{"event":"C","within":"30s"},"within":"1h"}`,
		},
		{
			"consent and segments", `{"not":{"any":[{"is":"denied","consent":"ad_storage"},{"segment":"vip"}]}}`,
			`{"not":{"any":[{"consent":"ad_storage","is":"denied"},{"segment":"vip"}]}}`,
		},
		{
			"an empty where is none", `{"not":{"event":"E","where":[]}}`,
			`{"not":{"event":"E","count":{"gte":1}}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parse(t, tt.give).MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("printed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseListsEveryProblem(t *testing.T) {
	t.Parallel()
	const (
		known    = "known here are eq, neq, in, not_in, gt, gte, lt, lte, contains, not_contains, starts_with, ends_with, matches, exists, not_exists, before, after"
		duration = `must be a duration of w, d, h, m and s, in this order, like "30d" or "1d12h"`
		members  = "known here are event, where, count, sum, avg, min, max, distinct, first, last, within, between"
		date     = "must be a date of RFC 3339, or YYYY-MM-DD, or Unix seconds or milliseconds, in the years 0 to 9999"
	)
	tests := []struct {
		name, give string
		want       []rule.Problem
	}{
		{"nothing", " ", []rule.Problem{{"#", "is empty"}}},
		{"no JSON", `{"all":[}`, []rule.Problem{{"#/all/0", "is not JSON: invalid character '}' at start of value within \"/all/0\" after offset 8"}}},
		{"a repeated member", `{"event":"E","event":"F"}`, []rule.Problem{{"#/event", `is not JSON: duplicate object member name "event"`}}},
		{"two values", `{"event":"E"} {}`, []rule.Problem{{"#", "is not JSON: more follows after its end"}}},
		{"not an object", `[]`, []rule.Problem{{"#", "must be an object with one of all, any, not, trait, event, sequence, consent, segment"}}},
		{"an empty object", `{}`, []rule.Problem{{"#", "must have one of all, any, not, trait, event, sequence, consent, segment"}}},
		{"a kind that is unknown", `{"cohort":"vip"}`, []rule.Problem{{"#/cohort", "is unknown; known here are all, any, not, trait, event, sequence, consent, segment"}}},
		{"two kinds", `{"all":[],"trait":"t"}`, []rule.Problem{{"#", "has all and trait, of which a condition has only one"}}},
		{"nothing in a group", `{"any":[]}`, []rule.Problem{{"#/any", "must have at least one condition"}}},
		{"a group that is no array", `{"all":{}}`, []rule.Problem{{"#/all", "must be an array"}}},
		{"an event with unknown members", `{"event":"E","frequency":["2026-01-01","2026-02-01"],"a/b~ c":1}`, []rule.Problem{
			{"#/frequency", "is unknown; " + members},
			{"#/a~1b~0%20c", "is unknown; " + members},
		}},
		{
			"problems everywhere",
			`{"all":[{"trait":"t","op":"is","value":1},{"any":[7,{"event":"","within":"1x"}]},{"event":"E","where":[{"property":"p","op":"eq"},{"op":"gt","value":"1"}]}]}`,
			[]rule.Problem{
				{"#/all/0/op", `"is" is unknown; ` + known + ", within_last, within_next, more_than_ago"},
				{"#/all/1/any/0", "must be an object with one of all, any, not, trait, event, sequence, consent, segment"},
				{"#/all/1/any/1/event", "must not be empty"},
				{"#/all/1/any/1/within", duration},
				{"#/all/2/where/0", "must have a value to compare with"},
				{"#/all/2/where/1", "must have property"},
				{"#/all/2/where/1/value", "must be a number; dates are compared by before and after"},
			},
		},
		{"a behaviour that depends on the present", `{"event":"E","where":[{"property":"p","op":"within_last","value":"1d"}]}`, []rule.Problem{
			{"#/where/0/op", "within_last depends on the present, which what happened must not: use within of the event, or before and after"},
		}},
		{"an unknown operator in where", `{"event":"E","where":[{"property":"p","op":"is","value":1}]}`, []rule.Problem{{"#/where/0/op", `"is" is unknown; ` + known}}},
		{"an operator that is no string", `{"trait":"t","op":7}`, []rule.Problem{{"#/op", "must be a string"}}},
		{"no operator", `{"trait":"t"}`, []rule.Problem{{"#", "must have op"}}},
		{"a value too many", `{"trait":"t","op":"exists","value":true}`, []rule.Problem{{"#/value", "must be left out: exists compares with nothing"}}},
		{"null", `{"trait":"t","op":"eq","value":null}`, []rule.Problem{{"#/value", "must not be null, which is the same as absent: use exists or not_exists"}}},
		{"an array for one value", `{"trait":"t","op":"eq","value":[1]}`, []rule.Problem{{"#/value", "must be a string, a number, true or false"}}},
		{"one value for an array", `{"trait":"t","op":"in","value":1}`, []rule.Problem{{"#/value", "must be an array"}}},
		{"no values", `{"trait":"t","op":"in","value":[]}`, []rule.Problem{{"#/value", "must have at least one value"}}},
		{"a list in a list", `{"trait":"t","op":"in","value":[1,[2]]}`, []rule.Problem{{"#/value/1", "must be a string, a number, true or false"}}},
		{"too many values", `{"trait":"t","op":"in","value":[1` + strings.Repeat(",1", 1000) + `]}`, []rule.Problem{{"#/value", "has 1001 elements, at most 1000 are allowed"}}},
		{"too many digits", `{"trait":"t","op":"eq","value":1` + strings.Repeat("1", 40) + `}`, []rule.Problem{{"#/value", "must have at most 40 digits, and a power of ten from -308 to 308"}}},
		{"too large a power", `{"trait":"t","op":"eq","value":1e309}`, []rule.Problem{{"#/value", "must have at most 40 digits, and a power of ten from -308 to 308"}}},
		{"U+0000", `{"trait":"t","op":"eq","value":"\u0000"}`, []rule.Problem{{"#/value", "must not contain U+0000, which no stored value does"}}},
		{"an empty beginning", `{"trait":"t","op":"starts_with","value":""}`, []rule.Problem{{"#/value", "must not be empty"}}},
		{"a broken pattern", `{"trait":"t","op":"matches","value":"("}`, []rule.Problem{{"#/value", "is not a regular expression of RE2: missing closing ): `(`"}}},
		{"a pattern beyond RE2", `{"trait":"t","op":"matches","value":"(a)\\1"}`, []rule.Problem{{"#/value", "is not a regular expression of RE2: invalid escape sequence: `\\1`"}}},
		{"a costly pattern", `{"trait":"t","op":"matches","value":"(a{50}){20}"}`, []rule.Problem{{"#/value", "repeats too much: a pattern may take 1000 steps, all patterns of a rule 10000"}}},
		{"a date that is none", `{"trait":"t","op":"before","value":"2026-02-30"}`, []rule.Problem{{"#/value", date}}},
		{"a date beyond the years", `{"trait":"t","op":"before","value":"9999-12-31T23:59:59-01:00"}`, []rule.Problem{{"#/value", date}}},
		{"a path with an empty step", `{"trait":"a..b","op":"exists"}`, []rule.Problem{{"#/trait", "has an empty step: names are separated by single dots"}}},
		{"a path with too many steps", `{"trait":"a` + strings.Repeat(".a", 32) + `","op":"exists"}`, []rule.Problem{{"#/trait", "has 33 steps, at most 32 are allowed"}}},
		{"too long a path", `{"trait":"` + strings.Repeat("a", 513) + `","op":"exists"}`, []rule.Problem{{"#/trait", "is 513 bytes long, at most 512 are allowed"}}},
		{"no duration", `{"event":"E","within":""}`, []rule.Problem{{"#/within", duration}}},
		{"a duration that is a number", `{"event":"E","within":30}`, []rule.Problem{{"#/within", "must be a string"}}},
		{"units out of order", `{"event":"E","within":"12h1d"}`, []rule.Problem{{"#/within", duration}}},
		{"a fraction of a day", `{"event":"E","within":"1.5d"}`, []rule.Problem{{"#/within", duration}}},
		{"no time at all", `{"event":"E","within":"0d"}`, []rule.Problem{{"#/within", "must be longer than nothing"}}},
		{"more than ten years", `{"event":"E","within":"3653d1s"}`, []rule.Problem{{"#/within", "must be at most 3653d"}}},
		{"far more than ten years", `{"event":"E","within":"99999999999999999999d"}`, []rule.Problem{{"#/within", "must be at most 3653d"}}},
		{"an empty count", `{"event":"E","count":{}}`, []rule.Problem{{"#/count", "must have one of gte, gt, lte, lt, eq"}}},
		{"two lower bounds", `{"event":"E","count":{"gte":1,"gt":1}}`, []rule.Problem{{"#/count", "may have one of gte and gt with one of lte and lt, or eq alone"}}},
		{"a count that cannot be", `{"event":"E","count":{"gt":1,"lt":2}}`, []rule.Problem{{"#/count", "can never be true"}}},
		{"less than none", `{"event":"E","count":{"lt":0}}`, []rule.Problem{{"#/count", "can never be true"}}},
		{"half an occurrence", `{"event":"E","count":{"gte":0.5}}`, []rule.Problem{{"#/count/gte", "must be a whole number from 0 to 1000000000"}}},
		{"a negative count", `{"event":"E","count":{"gte":-1}}`, []rule.Problem{{"#/count/gte", "must be a whole number from 0 to 1000000000"}}},
		{"more than is kept", `{"event":"E","count":{"lte":1000},"within":"1d"}`, []rule.Problem{
			{"#/count", "needs the newest 1001 occurrences to tell, and at most 1000 are kept: count less, or leave out within"},
		}},
		{"two aggregates", `{"event":"E","count":{"gte":1},"sum":{"property":"n","gt":1}}`, []rule.Problem{{"#", "has count and sum, of which there may be only one"}}},
		{"two windows", `{"event":"E","within":"1d","between":{"from":"2026-01-01"}}`, []rule.Problem{{"#", "has within and between, of which there may be only one"}}},
		{"an open period", `{"event":"E","between":{}}`, []rule.Problem{{"#/between", "must have from or to"}}},
		{"a period without time", `{"event":"E","between":{"from":"2026-01-02","to":"2026-01-02"}}`, []rule.Problem{{"#/between", "is empty: from must be before to"}}},
		{"a period of no dates", `{"event":"E","between":{"from":"2026","to":null}}`, []rule.Problem{{"#/between/from", date}, {"#/between/to", date}}},
		{"a sum of nothing", `{"event":"E","sum":{"gte":1}}`, []rule.Problem{{"#/sum", "must have property"}}},
		{"a sum that is a number", `{"event":"E","sum":1}`, []rule.Problem{{"#/sum", "must be an object"}}},
		{"a sum without bounds", `{"event":"E","sum":{"property":"n"}}`, []rule.Problem{{"#/sum", "must have one of gte, gt, lte, lt, eq"}}},
		{"a sum with bounds that are texts", `{"event":"E","sum":{"property":"n","gte":"1"}}`, []rule.Problem{{"#/sum/gte", "must be a number"}}},
		{"a sum with too large a bound", `{"event":"E","sum":{"property":"n","gte":1e309}}`, []rule.Problem{{"#/sum/gte", "must have at most 40 digits, and a power of ten from -308 to 308"}}},
		{"an average that cannot be", `{"event":"E","avg":{"property":"n","gt":1,"lte":1.0}}`, []rule.Problem{{"#/avg", "can never be true"}}},
		{"an average with two upper bounds", `{"event":"E","avg":{"property":"n","lt":1,"lte":1}}`, []rule.Problem{{"#/avg", "may have one of gte and gt with one of lte and lt, or eq alone"}}},
		{"a minimum of an empty step", `{"event":"E","min":{"property":"a..b","lt":1}}`, []rule.Problem{{"#/min/property", "has an empty step: names are separated by single dots"}}},
		{"more different values than are kept", `{"event":"E","distinct":{"property":"p","gte":1000}}`, []rule.Problem{{"#/distinct", "needs more different values than are kept: count to at most 999"}}},
		{"as many different values as are kept", `{"event":"E","distinct":{"property":"p","lte":1000},"within":"1d"}`, []rule.Problem{{"#/distinct", "needs more different values than are kept: count to at most 999"}}},
		{"a last of no operator", `{"event":"E","last":{"property":"p"}}`, []rule.Problem{{"#/last", "must have op"}}},
		{"a last time of no operator", `{"event":"E","last":{}}`, []rule.Problem{{"#/last", "must have op"}}},
		{"a last time that is equal", `{"event":"E","last":{"op":"eq","value":1}}`, []rule.Problem{{"#/last/op", "must be one of before, after, within_last, within_next, more_than_ago, unless there is a property"}}},
		{"a last time without a value", `{"event":"E","first":{"op":"before"}}`, []rule.Problem{{"#/first", "must have a value to compare with"}}},
		{"a last time of no duration", `{"event":"E","first":{"op":"within_last","value":"soon"}}`, []rule.Problem{{"#/first/value", duration}}},
		{"no steps", `{"sequence":[]}`, []rule.Problem{{"#/sequence", "must have at least one step"}}},
		{"one step", `{"sequence":[{"event":"E"}]}`, []rule.Problem{{"#/sequence", "must have at least two steps, or one with then_not"}}},
		{"too many steps", `{"sequence":[{"event":"E"}` + strings.Repeat(`,{"event":"E"}`, 8) + `]}`, []rule.Problem{{"#/sequence", "has 9 elements, at most 8 are allowed"}}},
		{"a gap before the first step", `{"sequence":[{"event":"E","within":"1s"},{"event":"E"}]}`, []rule.Problem{{"#/sequence/0/within", "must be left out: there is no step before the first"}}},
		{"a step without an event", `{"sequence":[{"event":"E"},{"where":[]}],"then_not":[]}`, []rule.Problem{{"#/sequence/1", "must have event"}, {"#/then_not", "must be an object"}}},
		{"a step that is counted", `{"sequence":[{"event":"E","count":{"gte":2}},{"event":"E"}]}`, []rule.Problem{{"#/sequence/0/count", "is unknown; known here are event, where, within"}}},
		{"a sequence with an event", `{"sequence":[{"event":"E"},{"event":"E"}],"event":"F"}`, []rule.Problem{{"#", "has sequence and event, of which a condition has only one"}}},
		{"a consent to what", `{"consent":"","is":"yes"}`, []rule.Problem{{"#/consent", "must not be empty"}, {"#/is", "must be one of unknown, denied, granted"}}},
		{"a consent of too many bytes", `{"consent":"` + strings.Repeat("a", 101) + `"}`, []rule.Problem{{"#/consent", "is 101 bytes long, at most 100 are allowed"}, {"#", "must have is"}}},
		{"a segment that has no key", `{"segment":"My segment"}`, []rule.Problem{{"#/segment", "must be the key of a segment: at most 63 of a-z, 0-9, _ and -, the first a letter or a digit"}}},
		{"a segment and more", `{"segment":"vip","op":"eq"}`, []rule.Problem{{"#/op", "is unknown; known here are segment"}}},
		{"too deep", strings.Repeat(`{"not":`, 16) + `{"event":"E"}` + strings.Repeat(`}`, 16), []rule.Problem{
			{"#" + strings.Repeat("/not", 16), "is nested more than 16 deep"},
		}},
		{"too many conditions", `{"all":[{"event":"E"}` + strings.Repeat(`,{"event":"E"}`, 499) + `]}`, []rule.Problem{
			{"#/all/499", "is one condition too many, at most 500 are allowed"},
		}},
		{"too many bytes", strings.Repeat(" ", 65537), []rule.Problem{{"#", "is 65537 bytes, at most 65536 are allowed"}}},
		{"too many bytes when printed", `{"any":[` + strings.Repeat(`{"trait":"t","op":"in","value":[`+numbers(150)+`]},`, 39) + `{"event":"E"}]}`, []rule.Problem{
			{"#", "is 125855 bytes when printed, at most 65536 are allowed"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := rule.Parse([]byte(tt.give))
			var e *rule.Error
			if !errors.As(err, &e) {
				t.Fatalf("parsed as %v with error %v, want an *Error", r, err)
			}
			if diff := cmp.Diff(tt.want, e.Problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// numbers returns n different numbers that are longer when printed.
func numbers(n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf("%de18", i+1)
	}
	return strings.Join(parts, ",")
}

func TestParseStopsAtAHundredProblems(t *testing.T) {
	t.Parallel()
	_, err := rule.Parse([]byte(`{"all":[0` + strings.Repeat(",0", 400) + `]}`))
	var e *rule.Error
	if !errors.As(err, &e) || len(e.Problems) != 100 {
		t.Errorf("error is %v, want 100 problems", err)
	}
}

func TestBehaviours(t *testing.T) {
	t.Parallel()
	type behaviour struct {
		Canonical string
		Keep      int
	}
	r := parse(t, `{"all":[
		{"event":"Bought"},
		{"not":{"event":"Bought","count":{"gte":3},"within":"1d"}},
		{"event":"Bought","count":{"lte":3},"within":"2d"},
		{"event":"Bought","where":[{"property":"b","op":"eq","value":1.0},{"property":"a","op":"in","value":["y","x"]}],"count":{"eq":0},"within":"1d"},
		{"event":"Viewed","count":{"gte":0,"lte":7},"within":"1d"},
		{"event":"Bought","where":[{"property":"a","op":"in","value":["x","y","x"]},{"property":"b","op":"eq","value":1},{"property":"b","op":"eq","value":1e0}]},
		{"event":"Clicked","count":{"gte":1000000}},
		{"event":"Opened","count":{"gte":0},"within":"1d"},
		{"event":"Left","count":{"gte":1000},"within":"1d"}
	]}`)
	want := []behaviour{
		{`{"event":"Bought"}`, 4},
		{`{"event":"Bought","where":[{"property":"a","op":"in","value":["x","y"]},{"property":"b","op":"eq","value":1}]}`, 1},
		{`{"event":"Viewed"}`, 8},
		{`{"event":"Clicked"}`, 0},
		{`{"event":"Opened"}`, 0},
		{`{"event":"Left"}`, 1000},
	}
	var got []behaviour
	for _, b := range r.Behaviours() {
		got = append(got, behaviour{string(b.Canonical()), b.Keep})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("behaviours (-want +got):\n%s", diff)
	}
}

func TestTraits(t *testing.T) {
	t.Parallel()
	r := parse(t, `{"any":[
		{"trait":"plan","op":"exists"},
		{"not":{"trait":"address.city.name","op":"exists"}},
		{"all":[{"trait":"plan","op":"eq","value":"pro"},{"event":"E","where":[{"property":"p","op":"exists"}]}]}
	]}`)
	want := []string{"address", "address.city", "address.city.name", "plan"}
	if diff := cmp.Diff(want, r.Traits()); diff != "" {
		t.Errorf("traits (-want +got):\n%s", diff)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	tests := []struct{ give, want string }{
		{
			`{"all":[
				{"trait":"country","op":"in","value":["DE","FR"]},
				{"event":"Order Completed","where":[{"property":"revenue","op":"gte","value":50},{"property":"products.sku","op":"eq","value":"85123A"}],"count":{"gte":2},"within":"30d"},
				{"not":{"event":"Unsubscribed","within":"1d12h"}},
				{"any":[{"trait":"plan","op":"neq","value":"pro"},{"event":"Visited","count":{"lte":3}}]}
			]}`,
			`Everyone whose country is one of "DE", "FR" and who did "Order Completed" (where revenue is at least 50 and products.sku is "85123A") ` +
				`at least 2 times in the last 30 days and who did not do "Unsubscribed" in the last 1 day 12 hours ` +
				`and (whose plan is not "pro" or who did "Visited" at most 3 times).`,
		},
		{
			`{"not":{"any":[{"trait":"a","op":"not_exists"},{"trait":"b","op":"more_than_ago","value":"1d"},{"event":"E","count":{"eq":0}},{"event":"F","count":{"gte":2,"lte":3}}]}}`,
			`Everyone whose a is known and whose b is not as long ago as 1 day and who did "E" and who did "F" fewer than 2 or more than 3 times.`,
		},
		{
			`{"all":[{"trait":"n","op":"not_in","value":[1,2,3,4,5,6,7]}]}`,
			`Everyone whose n is none of 1, 2, 3, 4, 5, 2 other values.`,
		},
		{
			`{"trait":"at","op":"before","value":"2026-03-01"}`,
			`Everyone whose at is before 2026-03-01T00:00:00Z.`,
		},
		{
			`{"any":[{"trait":"m","op":"matches","value":"^a|b$"},{"event":"E","count":{"eq":1}},{"not":{"event":"E","count":{"eq":2}}},{"event":"E","count":{"gte":1,"lte":2}}]}`,
			`Everyone whose m matches "^a|b$" or who did "E" exactly 1 time or who did "E" more or less often than 2 times or who did "E" 1 to 2 times.`,
		},
	}
	tests = append(tests, []struct{ give, want string }{
		{
			`{"all":[
				{"event":"Order Completed","where":[{"property":"revenue","op":"gte","value":50}],"sum":{"property":"revenue","gte":500,"lt":1000.50},"within":"30d"},
				{"not":{"event":"Order Completed","avg":{"property":"revenue","gt":1,"lt":2}}},
				{"event":"Order Completed","distinct":{"property":"products.sku","gte":3}},
				{"event":"Order Completed","last":{"property":"coupon","op":"in","value":["A","B"]}},
				{"not":{"event":"Order Completed","first":{"op":"within_last","value":"1d"}}}
			]}`,
			`Everyone whose sum of revenue over "Order Completed" (where revenue is at least 50) in the last 30 days is at least 500 and less than 1000.5 ` +
				`and whose average revenue over "Order Completed" is not both more than 1 and less than 2 ` +
				`and whose number of different values of products.sku over "Order Completed" is at least 3 ` +
				`and whose last coupon in "Order Completed" is one of "A", "B" and whose first "Order Completed" is not within the last 1 day.`,
		},
		{
			`{"any":[
				{"sequence":[{"event":"Product Added"},{"event":"Checkout Started","within":"1h"}],"then_not":{"event":"Order Completed","within":"24h"}},
				{"not":{"sequence":[{"event":"A"},{"event":"B"}],"within":"2d"}},
				{"consent":"ad_storage","is":"granted"},
				{"not":{"consent":"ad_storage","is":"unknown"}},
				{"segment":"vip"},
				{"not":{"segment":"lost"}},
				{"event":"E","between":{"from":"2026-01-01","to":"2026-02-01"}},
				{"event":"E","count":{"eq":0},"between":{"from":"2026-01-01"}},
				{"event":"E","distinct":{"property":"p","eq":0}}
			]}`,
			`Everyone (who did "Product Added", then "Checkout Started" within 1 hour, then not "Order Completed" within 1 day) ` +
				`or (of whom it is not true that they did "A", then "B", all begun in the last 2 days) ` +
				`or whose consent to "ad_storage" is granted or whose consent to "ad_storage" is not unknown ` +
				`or who is in the segment "vip" or who is not in the segment "lost" ` +
				`or who did "E" from 2026-01-01T00:00:00Z up to 2026-02-01T00:00:00Z or who did not do "E" since 2026-01-01T00:00:00Z ` +
				`or whose number of different values of p over "E" is 0.`,
		},
	}...)
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, parse(t, tt.give).Describe()); diff != "" {
			t.Errorf("described (-want +got):\n%s", diff)
		}
	}
}

// However the conditions of a behaviour are ordered and repeated, it is the same behaviour, and reads back as itself.
func TestCanonicalIsOneForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var conditions []string
		for range rapid.IntRange(1, 4).Draw(t, "conditions") {
			conditions = append(conditions, anyCondition(t, "property", absolute))
		}
		again := rapid.Permutation(append(conditions, rapid.SliceOf(rapid.SampledFrom(conditions)).Draw(t, "repeated")...)).Draw(t, "again")

		one := behaviour(t, conditions...)
		if got, want := behaviour(t, again...).Canonical(), one.Canonical(); !bytes.Equal(got, want) {
			t.Fatalf("%s, want %s", got, want)
		}
		back, err := rule.ParseBehaviour(one.Canonical(), 7)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := back.Canonical(), one.Canonical(); !bytes.Equal(got, want) || back.Keep != 7 || back.Event != "E" {
			t.Fatalf("%s with keep %d, want %s", got, back.Keep, want)
		}
		properties := jsontext.Value(anyObject(t, 2))
		if got, want := back.Matches(properties), one.Matches(properties); got != want {
			t.Fatalf("%s: %v, want %v", properties, got, want)
		}
	})
}

func TestParseBehaviourRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, give string
		keep       int
		want       []rule.Problem
	}{
		{"no event", `{"where":[]}`, 0, []rule.Problem{{"#", "must have event"}}},
		{"what a behaviour does not have", `{"event":"E","within":"1d"}`, 0, []rule.Problem{{"#/within", "is unknown; known here are event, where, between, tally, property, resolution, span"}}},
		{"no object", `7`, 0, []rule.Problem{{"#", "must be an object"}}},
		{"a keep beyond what is kept", `{"event":"E"}`, timeline.MaxKeep + 1, []rule.Problem{{"#", "keep is 1001, must be from 0 to 1000"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := rule.ParseBehaviour([]byte(tt.give), tt.keep)
			var e *rule.Error
			if !errors.As(err, &e) {
				t.Fatalf("error is %v, want an *Error", err)
			}
			if diff := cmp.Diff(tt.want, e.Problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// What Parse accepts, it prints in a form that it reads back as the same rule.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"all":[{"trait":"country","op":"in","value":["DE","FR"]},{"not":{"event":"E","where":[{"property":"revenue","op":"gte","value":50}],"count":{"gte":2,"lt":5},"within":"1w2d"}}]}`,
		`{"any":[{"trait":"a.b","op":"matches","value":"^x(?i)y+"},{"trait":"d","op":"within_last","value":"30d"},{"trait":"d","op":"before","value":1700000000.123}]}`,
		`{"trait":"n","op":"not_in","value":[1e3,-0.00,12345678901234567890,0.1,"é",true]}`,
		`{"trait":"t","op":"not_exists"}`,
		`{"trait":"t","op":"after","value":"0000-01-01"}`,
		`{"event":"E","count":{"eq":0},"within":"3653d"}`,
		`{"any":[{"event":"E","sum":{"property":"a.b","gte":-1.50},"within":"30d"},{"event":"E","avg":{"property":"n","eq":3},"between":{"from":"2026-01-01"}},{"event":"E","min":{"property":"n","lt":1e30}},{"event":"E","max":{"property":"n","gt":0,"lte":9007199254740993},"within":"1s"}]}`,
		`{"any":[{"event":"E","distinct":{"property":"p","gte":3},"within":"1d"},{"event":"E","first":{"property":"p","op":"neq","value":"x"}},{"event":"E","last":{"op":"more_than_ago","value":"1d"}},{"event":"E","first":{"op":"after","value":0},"within":"1d"}]}`,
		`{"sequence":[{"event":"A"},{"event":"E","where":[{"property":"revenue","op":"exists"}],"within":"1h"}],"then_not":{"event":"B","within":"1d"},"within":"2d"}`,
		`{"all":[{"consent":"ad_storage","is":"granted"},{"not":{"segment":"vip"}}]}`,
		`{"all":[]}`, `[`, `"`, ``,
	} {
		f.Add([]byte(s))
	}
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := rule.Parse(b)
		if err != nil {
			var e *rule.Error
			if !errors.As(err, &e) || len(e.Problems) == 0 {
				t.Fatalf("error is %v, want an *Error", err)
			}
			return
		}
		printed, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := rule.Parse(printed)
		if err != nil {
			t.Fatalf("printed as %s: %v", printed, err)
		}
		reprinted, err := again.MarshalJSON()
		if err != nil || !bytes.Equal(printed, reprinted) {
			t.Fatalf("printed as %s, then as %s, error %v", printed, reprinted, err)
		}
		if r.Describe() != again.Describe() || !cmp.Equal(r.Traits(), again.Traits()) ||
			!cmp.Equal(r.Consents(), again.Consents()) || !cmp.Equal(r.Segments(), again.Segments()) || len(r.Behaviours()) != len(again.Behaviours()) {
			t.Fatalf("%s reads back as another rule", printed)
		}
		events := []naiveEvent{{"E", `{"revenue":50}`, at.UnixMilli()}, {"E", `{}`, at.UnixMilli() - 1000}}
		traits := map[string]string{"t": `"x"`, "n": `1000`, "d": `"2026-02-28T12:00:00Z"`, "a": `{"b":"xy"}`}
		holds, until := r.Eval(remember(r, traits, events), at)
		holdsAgain, untilAgain := again.Eval(remember(again, traits, events), at)
		if holds != holdsAgain || until != untilAgain || !until.IsZero() && !until.After(at) {
			t.Fatalf("%s: %v until %v, read back: %v until %v", printed, holds, until, holdsAgain, untilAgain)
		}
		if x, y := r.Explain(remember(r, traits, events), at), again.Explain(remember(again, traits, events), at); x.Holds != holds || !cmp.Equal(x, y) {
			t.Fatalf("%s is explained as %+v, read back as %+v", printed, x, y)
		}
		for i, b := range r.Behaviours() {
			back, err := rule.ParseBehaviour(b.Canonical(), b.Keep)
			if err != nil || !bytes.Equal(b.Canonical(), back.Canonical()) || !bytes.Equal(b.Canonical(), again.Behaviours()[i].Canonical()) {
				t.Fatalf("behaviour %s reads back as %s, error %v", b.Canonical(), back.Canonical(), err)
			}
		}
	})
}

// What ParseBehaviour accepts, it writes in a form that it reads back the same, and there is a timeline that keeps it.
func FuzzParseBehaviour(f *testing.F) {
	for _, s := range []string{
		`{"event":"E","where":[{"property":"revenue","op":"gte","value":50}]}`,
		`{"event":"E","between":{"from":"2026-01-01T00:00:00Z"},"tally":"sum","property":"n"}`,
		`{"event":"E","tally":"first","resolution":"1h","span":"30d"}`,
		`{"event":"E","tally":"count","resolution":"1s","span":"1s"}`,
		`{"event":"E","tally":"distinct","property":"p"}`,
		`{"event":"E","tally":"last","property":"p"}`,
		`{"event":"E","tally":"avg","property":"p"}`, `{"event"`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		b, err := rule.ParseBehaviour(s, 3)
		if err != nil {
			var e *rule.Error
			if !errors.As(err, &e) || len(e.Problems) == 0 {
				t.Fatalf("error is %v, want an *Error", err)
			}
			return
		}
		back, err := rule.ParseBehaviour(b.Canonical(), 3)
		if err != nil || !bytes.Equal(b.Canonical(), back.Canonical()) {
			t.Fatalf("%s reads back as %s, error %v", b.Canonical(), back.Canonical(), err)
		}
		tl := b.Empty()
		for _, properties := range []string{`{"n":[1,2.5],"p":"x","revenue":50}`, `{"n":1e30,"p":[1,true]}`, `{}`} {
			b.Fold(&tl, noon.UnixMilli(), jsontext.Value(properties))
		}
		if _, err := tl.AppendBinary(nil); err != nil {
			t.Fatalf("%s: %v", b.Canonical(), err)
		}
	})
}
