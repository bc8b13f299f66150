package rule_test

import (
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch/profiles/rule"
)

func TestOperators(t *testing.T) {
	t.Parallel()
	const dates = `"2026-03-01T12:00:00Z"`
	tests := []struct {
		op, value  string
		yes, no    []string // values of the property; "" is absent
		exceptions string   // why, where it is not obvious
	}{
		{
			op: "eq", value: `"x"`,
			yes: []string{`"x"`, `"\u0078"`, `["y","x"]`},
			no:  []string{``, `null`, `"X"`, `"xy"`, `""`, `1`, `true`, `[]`, `["y"]`, `[["x"]]`, `{"x":"x"}`, `[null]`},
		},
		{
			op: "eq", value: `1`,
			yes: []string{`1`, `1.0`, `10e-1`, `0.1E+1`, `[2,1]`},
			no:  []string{``, `"1"`, `true`, `-1`, `11`, `1.0000000000000000000000001`},
		},
		{op: "eq", value: `0`, yes: []string{`0`, `-0`, `0.00`, `0e99`}, no: []string{`1e-300`, `false`, `""`, `null`}},
		{op: "eq", value: `9007199254740993`, yes: []string{`9007199254740993`, `9007199254740993.0`}, no: []string{`9007199254740992`}},
		{op: "eq", value: `0.3`, yes: []string{`0.3`, `0.30`}, no: []string{`0.30000000000000001`, `0.3000000000000000444`}},
		{op: "eq", value: `true`, yes: []string{`true`, `[false,true]`}, no: []string{``, `false`, `"true"`, `1`}},
		{op: "neq", value: `"x"`, yes: []string{``, `null`, `"y"`, `1`, `[]`}, no: []string{`"x"`, `["y","x"]`}},
		{op: "in", value: `["DE", "FR", 7, true]`, yes: []string{`"DE"`, `"FR"`, `7.0`, `true`, `["IT","FR"]`}, no: []string{``, `null`, `"IT"`, `"7"`, `8`, `false`}},
		{op: "not_in", value: `["DE", "FR"]`, yes: []string{``, `null`, `"IT"`, `[]`}, no: []string{`"DE"`, `["IT","FR"]`}},
		{op: "gt", value: `50`, yes: []string{`50.01`, `1e2`, `[1,51]`, `1e999999999999`}, no: []string{``, `50`, `"51"`, `-51`, `true`, `1e-999999999999`}},
		{op: "gte", value: `50`, yes: []string{`50`, `50.0`, `51`}, no: []string{``, `49.99`, `"50"`}},
		{op: "lt", value: `-0.5`, yes: []string{`-0.51`, `-1`, `-1e999999999999`}, no: []string{``, `-0.5`, `-0.49`, `0`, `"-1"`}},
		{op: "lte", value: `-0.5`, yes: []string{`-0.5`, `-5e-1`}, no: []string{``, `-0.4999`, `0`}},
		{op: "contains", value: `"ab"`, yes: []string{`"ab"`, `"xaby"`, `["x","ab"]`}, no: []string{``, `"a b"`, `"AB"`, `["xaby"]`, `7`}, exceptions: "of an array, an element must be equal"},
		{op: "contains", value: `7`, yes: []string{`[1,7.0]`}, no: []string{``, `7`, `17`, `"7"`, `["7"]`}},
		{op: "not_contains", value: `"ab"`, yes: []string{``, `"a b"`, `["xaby"]`, `7`}, no: []string{`"xaby"`, `["x","ab"]`}},
		{op: "starts_with", value: `"ab"`, yes: []string{`"ab"`, `"abc"`, `["x","abc"]`}, no: []string{``, `"xab"`, `"a"`, `7`}},
		{op: "ends_with", value: `"é"`, yes: []string{`"caf\u00e9"`, `"é"`}, no: []string{``, `"cafe"`, `"éa"`}},
		{op: "matches", value: `"^v[0-9]+$"`, yes: []string{`"v10"`, `["x","v1"]`}, no: []string{``, `"v"`, `"xv1"`, `1`}},
		{op: "matches", value: `"b"`, yes: []string{`"abc"`}, no: []string{`"ac"`}, exceptions: "a pattern may match anywhere"},
		{op: "exists", yes: []string{`""`, `0`, `false`, `[]`, `{}`, `[null]`}, no: []string{``, `null`}},
		{op: "not_exists", yes: []string{``, `null`}, no: []string{`""`, `0`, `false`, `[]`}},
		{
			op: "before", value: dates,
			yes: []string{`"2026-03-01T11:59:59.999Z"`, `"2026-03-01T12:59:59+01:00"`, `"2026-03-01"`, `1772366399`, `1772366399999`, `-1`, `0`, `-0.0001`},
			no:  []string{``, `null`, dates, `"2026-03-02"`, `1772366400`, `1772366400000`, `"yesterday"`, `"2026-02-30"`, `"1772366399"`, `"2026-03-01 11:00"`, `1e30`, `true`, `{}`},
		},
		{
			op: "after", value: `1772366400`,
			yes: []string{`"2026-03-01T12:00:00.001Z"`, `1772366400.001`, `1772366400001`, `["2020-01-01","2027-01-01"]`, `99999999999`},
			no:  []string{``, dates, `1772366400.0009`, `1772366400000.9`, `100000000000`, `"2026-03-01T12:00:00.0009Z"`},
		},
		{op: "after", value: `"1969-12-31T23:59:59.998Z"`, yes: []string{`-0.001`, `0`, `-0.0001`}, no: []string{`-0.002`, `-0.0011`}, exceptions: "what is cut to the millisecond is cut downwards"},
	}
	for _, tt := range tests {
		t.Run(tt.op+" "+tt.value, func(t *testing.T) {
			t.Parallel()
			value := ""
			if tt.value != "" {
				value = `,"value":` + tt.value
			}
			b := behaviour(t, fmt.Sprintf(`{"property":"p","op":%q%s}`, tt.op, value))
			for want, values := range map[bool][]string{true: tt.yes, false: tt.no} {
				for _, v := range values {
					properties := ` { "o" : "}\\\"" , "p" : ` + v + ` , "q" : [ ] } `
					if v == "" {
						properties = `{"q":1}`
					}
					if got := b.Matches(jsontext.Value(properties)); got != want {
						t.Errorf("%s: %v, want %v", properties, got, want)
					}
				}
			}
		})
	}
}

// behaviour returns an event with one condition on its properties.
func behaviour(t fataler, conditions ...string) rule.Behaviour {
	return parse(t, `{"event":"E","where":[`+strings.Join(conditions, ",")+`]}`).Behaviours()[0]
}

func TestPaths(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path, properties string
		want                   bool
	}{
		{"a member of an object", "address.city", `{"address":{"zip":"1","city":"x"}}`, true},
		{"a name that holds dots", "address.city", `{"address.city":"x"}`, true},
		{"a name that holds dots on the way", "a.b.c", `{"a.b":{"c":"x"}}`, true},
		{"a name with escapes", "käse", `{"k\u00e4se":"x"}`, true},
		{"an index", "products.1.sku", `{"products":[{"sku":"y"},{"sku":"x"}]}`, true},
		{"another index", "products.0.sku", `{"products":[{"sku":"y"},{"sku":"x"}]}`, false},
		{"an index beyond the end", "products.2.sku", `{"products":[{"sku":"x"}]}`, false},
		{"an index of plain values", "tags.0", `{"tags":["x"]}`, true},
		{"any object of an array", "products.sku", `{"products":[{"sku":"y"},7,{"sku":"x"}]}`, true},
		{"no object of an array", "products.sku", `{"products":["sku","x"]}`, false},
		{"arrays in objects of arrays", "orders.products.sku", `{"orders":[{"products":[]},{"products":[{"sku":"x"}]}]}`, true},
		{"an array in an array is not searched", "products.sku", `{"products":[[{"sku":"x"}]]}`, false},
		{"an array in an array has indexes", "products.0.sku", `{"products":[[{"sku":"x"}]]}`, true},
		{"a member named like an index", "products.0", `{"products":[{"1":"y"},{"0":"x"}]}`, true},
		{"the beginning of a name is not the name", "a", `{"ab":"x"}`, false},
		{"a longer path than the value", "a.b", `{"a":"x"}`, false},
		{"a shorter path than the value", "a", `{"a":{"b":"x"}}`, false},
		{"names are case-sensitive", "a", `{"A":"x"}`, false},
		{"no properties", "a", ``, false},
		{"properties that are null", "a", `null`, false},
		{"properties that are no object", "0", `["x"]`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			yes := behaviour(t, fmt.Sprintf(`{"property":%q,"op":"eq","value":"x"}`, tt.path))
			if got := yes.Matches(jsontext.Value(tt.properties)); got != tt.want {
				t.Errorf("eq: %v, want %v", got, tt.want)
			}
			no := behaviour(t, fmt.Sprintf(`{"property":%q,"op":"neq","value":"x"}`, tt.path))
			if got := no.Matches(jsontext.Value(tt.properties)); got == tt.want {
				t.Errorf("neq: %v, want %v", got, !tt.want)
			}
		})
	}
}

func TestMatchesNeedsEveryCondition(t *testing.T) {
	t.Parallel()
	b := behaviour(t, `{"property":"a","op":"gt","value":1}`, `{"property":"a","op":"lt","value":3}`)
	for properties, want := range map[string]bool{`{"a":2}`: true, `{"a":1}`: false, `{"a":3}`: false} {
		if got := b.Matches(jsontext.Value(properties)); got != want {
			t.Errorf("%s: %v, want %v", properties, got, want)
		}
	}
	if !(rule.Behaviour{Event: "E"}).Matches(nil) {
		t.Error("no conditions are not met")
	}
}

// Numbers compare as the rational numbers that they are.
func TestNumbersAreExact(t *testing.T) {
	t.Parallel()
	literal := rapid.Custom(func(t *rapid.T) string {
		s := rapid.StringMatching(`-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?`).Draw(t, "number")
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := literal.Draw(t, "a"), literal.Draw(t, "b")
		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		order := x.Cmp(y)
		if rapid.Bool().Draw(t, "the same") {
			b, order = a, 0
			if !strings.ContainsAny(b, ".eE") {
				b += ".0"
			}
		}
		for op, want := range map[string]bool{
			"eq": order == 0, "neq": order != 0, "lt": order < 0, "lte": order <= 0, "gt": order > 0, "gte": order >= 0,
		} {
			c := behaviour(t, fmt.Sprintf(`{"property":"n","op":%q,"value":%s}`, op, b))
			if got := c.Matches(jsontext.Value(`{"n":` + a + `}`)); got != want {
				t.Fatalf("%s %s %s: %v, want %v", a, op, b, got, want)
			}
		}
		in := behaviour(t, fmt.Sprintf(`{"property":"n","op":"in","value":["x",%s]}`, b))
		if got := in.Matches(jsontext.Value(`{"n":` + a + `}`)); got != (order == 0) {
			t.Fatalf("%s in [%s]: %v, want %v", a, b, got, order == 0)
		}
	})
}

// Whatever bytes the properties are, nothing panics, and if they are JSON the answer is that of the naive evaluator.
func FuzzMatches(f *testing.F) {
	conditions := []string{
		`{"property":"a","op":"eq","value":"x"}`,
		`{"property":"a.b","op":"exists"}`,
		`{"property":"list.a","op":"in","value":["x",1,true]}`,
		`{"property":"list.0","op":"lt","value":2.5}`,
		`{"property":"d","op":"before","value":"2026-03-01"}`,
		`{"property":"a","op":"contains","value":"\\"}`,
		`{"property":"0","op":"matches","value":"^.$"}`,
	}
	for _, s := range []string{
		`{"a":"x"}`, `{"a":{"b":[1]},"a.b":null}`, `{"list":[{"a":1},[2]]}`, `{"d":1700000000.5}`, `{"a":"\\\""}`, `["é"]`,
		`{"a"`, `{"a":`, `"\`, `[`, `]`, `{"a":1e}`, `{"a":-}`, `{x:1}`, `{"\ud800":1}`, `{"d":"2026-03-01T00:00:00Z"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, properties string) {
		for _, c := range conditions {
			got := behaviour(t, c).Matches(jsontext.Value(properties))
			if v := jsontext.Value(properties); !v.IsValid() || len(properties) > 1000 {
				continue
			}
			want := naive{}.where(t, map[string]any{"where": []any{decode(t, c)}}, properties)
			if got != want && !strings.ContainsAny(properties, "eE") { // the naive one takes no huge exponents
				t.Errorf("%s of %s: %v, want %v", c, properties, got, want)
			}
		}
	})
}
