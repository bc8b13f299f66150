package brute_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles/profilestest/brute"
)

// noon is when the tables ask, unless they say otherwise.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixMilli()

// person makes somebody of lines such as
//
//	trait plan "pro"
//	consent ads true
//	12.5 Order {"revenue":5}
//
// of which the last is an event so many seconds before noon.
func person(t *testing.T, lines ...string) *brute.Person {
	t.Helper()
	p := &brute.Person{Traits: map[string]any{}, Consent: map[string]bool{}}
	for _, line := range lines {
		head, rest, _ := strings.Cut(line, " ")
		name, text, _ := strings.Cut(rest, " ")
		switch head {
		case "trait":
			p.Traits[name] = brute.Decode([]byte(text))
		case "consent":
			p.Consent[name] = text == "true"
		default:
			ago, err := time.ParseDuration(head + "s")
			if err != nil {
				t.Fatal(err)
			}
			if text == "" {
				text = "{}"
			}
			p.Events = append(p.Events, brute.Occurrence{Name: name, Properties: brute.Decode([]byte(text)), At: noon - ago.Milliseconds()})
		}
	}
	return p
}

// Each rule is asked at some moments, in seconds from noon. The answers were found by hand.
func TestHolds(t *testing.T) {
	t.Parallel()
	type answers map[float64]bool
	tests := []struct {
		name    string
		rule    string
		history []string
		want    answers
	}{
		{"all needs all", `{"all":[{"event":"A"},{"event":"B"}]}`, []string{"1 A"}, answers{0: false}},
		{"all has all", `{"all":[{"event":"A"},{"event":"B"}]}`, []string{"1 A", "1 B"}, answers{0: true}},
		{"any needs one", `{"any":[{"event":"A"},{"event":"B"}]}`, []string{"1 B"}, answers{0: true}},
		{"any has none", `{"any":[{"event":"A"},{"event":"B"}]}`, []string{"1 C"}, answers{0: false}},
		{"not is the opposite", `{"not":{"event":"A","within":"10s"}}`, []string{"1 A"}, answers{0: false, 8.999: false, 9: true}},

		{"a trait", `{"trait":"address.city","op":"eq","value":"Ulm"}`, []string{`trait address {"city":"Ulm"}`}, answers{0: true}},
		{"a trait with dots", `{"trait":"address.city","op":"eq","value":"Ulm"}`, []string{`trait address.city "Ulm"`}, answers{0: true}},
		{"no trait", `{"trait":"address.city","op":"neq","value":"Ulm"}`, nil, answers{0: true}},
		{"a trait in the last minute", `{"trait":"d","op":"within_last","value":"1m"}`, []string{`trait d "2026-03-01T12:00:10Z"`}, answers{9.999: false, 10: true, 69.999: true, 70: false}},
		{"a trait in the next minute", `{"trait":"d","op":"within_next","value":"1m"}`, []string{`trait d "2026-03-01T12:02:00Z"`}, answers{60: false, 60.001: true, 120: true, 120.001: false}},
		{"a trait a minute ago", `{"trait":"d","op":"more_than_ago","value":"1m"}`, []string{`trait d "2026-03-01T12:00:10Z"`}, answers{69.999: false, 70: true}},

		{"consent is granted", `{"consent":"ads","is":"granted"}`, []string{"consent ads true"}, answers{0: true}},
		{"consent is denied", `{"consent":"ads","is":"denied"}`, []string{"consent ads false"}, answers{0: true}},
		{"denied is not unknown", `{"consent":"ads","is":"unknown"}`, []string{"consent ads false"}, answers{0: false}},
		{"consent to something else is unknown", `{"consent":"ads","is":"unknown"}`, []string{"consent mail true"}, answers{0: true}},
		{"unknown is not denied", `{"consent":"ads","is":"denied"}`, nil, answers{0: false}},

		{"a segment", `{"not":{"segment":"buyers"}}`, []string{"1 Order"}, answers{0: false, 98.999: false, 99: true}},
		{"a segment of a segment", `{"segment":"lost"}`, []string{"1 Order"}, answers{0: false, 98.999: false, 99: true}},

		{"never did", `{"event":"A"}`, []string{"1 B"}, answers{0: false}},
		{"will have done", `{"event":"A"}`, []string{"-5 A"}, answers{0: true}},
		{"did with a property", `{"event":"A","where":[{"property":"n","op":"gt","value":1}]}`, []string{`1 A {"n":1.01}`}, answers{0: true}},
		{"did without it", `{"event":"A","where":[{"property":"n","op":"gt","value":1},{"property":"n","op":"lt","value":3}]}`, []string{`1 A {"n":1}`, `1 A {"n":3}`}, answers{0: false}},
		{"did within", `{"event":"A","within":"10s"}`, []string{"1 A"}, answers{0: true, 8.999: true, 9: false}},
		{"twice within", `{"event":"A","count":{"gte":2},"within":"10s"}`, []string{"1 A", "5 A", "5 A"}, answers{4.999: true, 5: false}},
		{"exactly once within", `{"event":"A","count":{"eq":1},"within":"10s"}`, []string{"1 A", "5 A"}, answers{4.999: false, 5: true, 8.999: true, 9: false}},
		{"between two moments", `{"event":"A","count":{"gt":0,"lt":2},"between":{"from":"2026-03-01T11:59:55Z","to":"2026-03-01T12:00:00Z"}}`, []string{"5.001 A", "5 A", "0 A"}, answers{-600: true, 600: true}},
		{"since a moment", `{"event":"A","count":{"eq":2},"between":{"from":1772366395}}`, []string{"5.001 A", "5 A", "0 A"}, answers{0: true}},
		{"until a moment", `{"event":"A","count":{"eq":2},"between":{"to":"2026-03-01T12:00:00Z"}}`, []string{"5.001 A", "5 A", "0 A"}, answers{0: true}},

		{"a sum", `{"event":"A","sum":{"property":"n","eq":0.3}}`, []string{`1 A {"n":0.1}`, `2 A {"n":0.2}`, `3 A {"n":"7"}`, `3 A`}, answers{0: true}},
		{"a sum of many", `{"event":"A","sum":{"property":"l.n","gte":6,"lt":7}}`, []string{`1 A {"l":[{"n":1},{"n":[2,3]}]}`}, answers{0: true}},
		{"a sum of nothing", `{"event":"A","sum":{"property":"n","lte":0}}`, nil, answers{0: true}},
		// The window's end waits for that of the second: 11:59:59.5 counts until 12:00:10.
		{"a sum within", `{"event":"A","sum":{"property":"n","gte":2},"within":"10s"}`, []string{`0.5 A {"n":2}`}, answers{9.5: true, 9.999: true, 10: false}},
		// 13 minutes are more than 720 seconds: the buckets have two seconds.
		{"a sum within longer", `{"event":"A","sum":{"property":"n","gte":2},"within":"13m"}`, []string{`2 A {"n":2}`}, answers{779.999: true, 780: false}},
		{"a sum between", `{"event":"A","sum":{"property":"n","eq":2},"between":{"from":"2026-03-01T11:59:59Z"}}`, []string{`1 A {"n":2}`, `1.001 A {"n":3}`}, answers{0: true}},
		{"numbers beyond reckoning are absent", `{"event":"A","sum":{"property":"n","eq":1}}`, []string{
			`1 A {"n":1e34}`, `1 A {"n":9e-35}`, `1 A {"n":1.0000000000000000000000000000000001}`, `1 A {"n":1.0000000000000000000000000000000000}`,
		}, answers{0: true}},
		{"an average", `{"event":"A","avg":{"property":"n","gt":1.33,"lt":1.34}}`, []string{`1 A {"n":[1,2]}`, `2 A {"n":1}`}, answers{0: true}},
		{"an average of nothing", `{"event":"A","avg":{"property":"n","gte":0}}`, []string{`1 A {"n":"1"}`}, answers{0: false}},
		{"the opposite of an average of nothing", `{"not":{"event":"A","avg":{"property":"n","gte":0}}}`, nil, answers{0: true}},
		{"a least", `{"event":"A","min":{"property":"n","eq":-2}}`, []string{`1 A {"n":[1,-2.0]}`, `2 A {"n":1}`}, answers{0: true}},
		{"a least within", `{"event":"A","min":{"property":"n","eq":1},"within":"10s"}`, []string{`2 A {"n":-2}`, `1 A {"n":1}`}, answers{8.999: false, 9: true, 9.999: true, 10: false}},
		{"a least of nothing", `{"event":"A","min":{"property":"n","lt":1}}`, nil, answers{0: false}},
		{"a greatest", `{"event":"A","max":{"property":"n","gte":1e33}}`, []string{`1 A {"n":1e33}`, `1 A {"n":1e34}`}, answers{0: true}},
		{"a greatest of nothing", `{"event":"A","max":{"property":"n","lt":1}}`, nil, answers{0: false}},

		{"different values", `{"event":"A","distinct":{"property":"v","eq":4}}`, []string{`1 A {"v":1}`, `1 A {"v":[1.0,"1"]}`, `2 A {"v":true}`, `2 A {"v":"true"}`, `3 A {"v":[null,{},[2]]}`}, answers{0: true}},
		{"different values within", `{"event":"A","distinct":{"property":"v","gte":2},"within":"10s"}`, []string{`5 A {"v":1}`, `1 A {"v":1}`, `2 A {"v":2}`}, answers{7.999: true, 8: false}},
		{"no values", `{"event":"A","distinct":{"property":"v","lt":1}}`, []string{`1 A`}, answers{0: true}},

		{"the last value", `{"event":"A","last":{"property":"v","op":"eq","value":"x"}}`, []string{`2 A {"v":"x"}`, `3 A {"v":"y"}`, `1 A`, `1 A {"v":null}`}, answers{0: true}},
		{"the last value within", `{"event":"A","last":{"property":"v","op":"neq","value":"y"},"within":"10s"}`, []string{`2 A {"v":"x"}`}, answers{7.999: true, 8: false}},
		{"the greatest of the last values", `{"event":"A","last":{"property":"v","op":"eq","value":7}}`, []string{`2 A {"v":[10,7.0]}`, `2 A {"v":"z"}`}, answers{0: true}},
		{"the first value", `{"event":"A","first":{"property":"v","op":"eq","value":"y"}}`, []string{`2 A {"v":"x"}`, `3 A {"v":"y"}`, `4 A`}, answers{0: true}},
		{"the first value within", `{"event":"A","first":{"property":"v","op":"eq","value":"x"},"within":"10s"}`, []string{`1.5 A {"v":"x"}`, `3 A {"v":"y"}`}, answers{7.999: false, 8: true, 8.999: true, 9: false}},
		{"the smallest of the first values", `{"event":"A","first":{"property":"v","op":"eq","value":"z"}}`, []string{`2 A {"v":7}`, `2 A {"v":"z"}`}, answers{0: true}},
		{"a large number has an exponent", `{"event":"A","last":{"property":"v","op":"gt","value":100}}`, []string{`2 A {"v":[12,1000000000000000000000]}`}, answers{0: true}},
		{"a less large one has none", `{"event":"A","last":{"property":"v","op":"gt","value":100}}`, []string{`2 A {"v":[12,1e20]}`}, answers{0: false}},
		{"so has a small one", `{"event":"A","last":{"property":"v","op":"lt","value":2}}`, []string{`2 A {"v":[11,0.0000001]}`}, answers{0: true}},
		{"a less small one has none", `{"event":"A","last":{"property":"v","op":"lt","value":2}}`, []string{`2 A {"v":[11,1.0e-6]}`}, answers{0: false}},
		{"the last value is a date", `{"event":"A","last":{"property":"v","op":"more_than_ago","value":"1m"}}`, []string{`2 A {"v":"2026-03-01T12:00:00Z"}`}, answers{59.999: false, 60: true}},
		{"no last value", `{"event":"A","last":{"property":"v","op":"neq","value":1}}`, []string{`2 A`}, answers{0: false}},
		{"a long string is no value", `{"event":"A","last":{"property":"v","op":"exists"}}`, []string{`2 A {"v":"` + strings.Repeat("é", 256) + `x"}`}, answers{0: false}},
		{"a less long one is", `{"event":"A","last":{"property":"v","op":"exists"}}`, []string{`2 A {"v":"` + strings.Repeat("é", 256) + `"}`}, answers{0: true}},
		{"the last time", `{"event":"A","last":{"op":"more_than_ago","value":"1m"}}`, []string{"2 A", "1 A"}, answers{58.999: false, 59: true}},
		{"the last time within", `{"event":"A","last":{"op":"after","value":"2026-03-01"},"within":"10s"}`, []string{"2 A", "1 A"}, answers{8.999: true, 9: false}},
		{"the first time", `{"event":"A","first":{"op":"before","value":"2026-03-01T11:59:59Z"}}`, []string{"2 A", "1 A"}, answers{0: true}},
		{"the first time within", `{"event":"A","first":{"op":"before","value":"2026-03-01T11:59:59Z"},"within":"10s"}`, []string{"2 A", "1 A"}, answers{8.999: true, 9: false}},
		{"no last time", `{"event":"A","last":{"op":"within_last","value":"1m"}}`, nil, answers{0: false}},

		{"one after another", `{"sequence":[{"event":"A"},{"event":"B"}]}`, []string{"2 A", "1 B"}, answers{0: true}},
		{"at once is not after", `{"sequence":[{"event":"A"},{"event":"B"}]}`, []string{"2 A", "2 B"}, answers{0: false}},
		{"the other way round", `{"sequence":[{"event":"A"},{"event":"B"}]}`, []string{"1 A", "2 B"}, answers{0: false}},
		{"three times the same", `{"sequence":[{"event":"A"},{"event":"A"},{"event":"A"}]}`, []string{"1 A", "2 A", "2 A"}, answers{0: false}},
		{"soon enough", `{"sequence":[{"event":"A"},{"event":"B","within":"5s"}]}`, []string{"6 A", "1 B"}, answers{0: true}},
		{"too late", `{"sequence":[{"event":"A"},{"event":"B","within":"5s"}]}`, []string{"6.001 A", "1 B"}, answers{0: false}},
		// The A that is soon enough for B is too late for the C, but another B is not.
		{"some way through", `{"sequence":[{"event":"C"},{"event":"A","within":"5s"},{"event":"B","within":"5s"}]}`, []string{"20 C", "17 A", "13 A", "12 B", "9 B"}, answers{0: true}},
		{"no way through", `{"sequence":[{"event":"C"},{"event":"A","within":"5s"},{"event":"B","within":"5s"}]}`, []string{"20 C", "17 A", "13 A", "9 B"}, answers{0: false}},
		{"lately", `{"sequence":[{"event":"A"},{"event":"B"}],"within":"10s"}`, []string{"3 A", "2 A", "1 B"}, answers{0: true, 7.999: true, 8: false}},
		{"and then not", `{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"30s"}}`, []string{"1 A"}, answers{28.999: false, 29: false, 29.001: true, 1e6: true}},
		{"but then", `{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"30s"}}`, []string{"31 A", "1 B"}, answers{0: false, 1e6: false}},
		{"but too late", `{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"30s"}}`, []string{"31.001 A", "1 B"}, answers{0: true}},
		{"at once is not then", `{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"30s"}}`, []string{"31 A", "31 B"}, answers{0: true}},
		{"and then never", `{"sequence":[{"event":"A"},{"event":"B"}],"then_not":{"event":"A"}}`, []string{"5 A", "4 B"}, answers{0: true}},
		{"but then again", `{"sequence":[{"event":"A"},{"event":"B"}],"then_not":{"event":"A"}}`, []string{"5 A", "4 B", "3 A"}, answers{0: false}},
		{"lately, and then not", `{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"5s"},"within":"10s"}`, []string{"1 A"}, answers{4: false, 4.001: true, 8.999: true, 9: false}},
	}
	segments := map[string]any{
		"buyers": brute.Decode([]byte(`{"event":"Order","within":"100s"}`)),
		"lost":   brute.Decode([]byte(`{"all":[{"event":"Order"},{"not":{"segment":"buyers"}}]}`)),
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for in, want := range tt.want {
				now := noon + int64(in*1000)
				if got := brute.Holds(brute.Decode([]byte(tt.rule)), person(t, tt.history...), segments, now); got != want {
					t.Errorf("%v s after noon: %v, want %v", in, got, want)
				}
			}
		})
	}
}

func TestOnlyTheNewestHundredAreLookedAt(t *testing.T) {
	t.Parallel()
	p := person(t, "500 A")
	for i := range 100 {
		p.Events = append(p.Events, person(t, fmt.Sprintf("%d B", 300-i)).Events...)
	}
	never := brute.Decode([]byte(`{"sequence":[{"event":"A"}],"then_not":{"event":"B","within":"100s"}}`))
	if !brute.Holds(never, p, nil, noon) {
		t.Error("of a hundred, all are looked at, and none was in time")
	}
	p.Events = append(p.Events, person(t, "100 B").Events...)
	if brute.Holds(never, p, nil, noon) {
		t.Error("of a hundred and one, one is not looked at, and it may have been in time")
	}
	after := brute.Decode([]byte(`{"sequence":[{"event":"B"},{"event":"C"}]}`))
	p.Events = append(p.Events, person(t, "299.5 C").Events...)
	if brute.Holds(after, p, nil, noon) {
		t.Error("the only B before the C is not looked at")
	}
}

// The operators on one property.
func TestOperators(t *testing.T) {
	t.Parallel()
	tests := []struct {
		op, value string
		yes, no   []string
	}{
		{"eq", `"x"`, []string{`"x"`, `["y","x"]`}, []string{`"X"`, `[["x"]]`, `{"x":"x"}`, `null`, `1`}},
		{"eq", `2`, []string{`2`, `2.0`, `20e-1`}, []string{`"2"`, `2.0000000000000000000000001`, `true`}},
		{"eq", `9007199254740993`, []string{`9007199254740993`}, []string{`9007199254740992`}},
		{"neq", `true`, []string{`null`, `false`, `"true"`}, []string{`true`, `[false,true]`}},
		{"in", `["x",1]`, []string{`"x"`, `1.0`, `[3,1]`}, []string{`"1"`, `[]`}},
		{"not_in", `["x",1]`, []string{`"1"`, `[]`, `null`}, []string{`"x"`, `1.0`, `[3,1]`}},
		{"gt", `2`, []string{`2.1`, `[1,3]`}, []string{`2`, `"3"`, `null`}},
		{"gte", `2`, []string{`2`}, []string{`1.9`}},
		{"lt", `2`, []string{`1.9`, `-3`}, []string{`2`, `"1"`}},
		{"lte", `2`, []string{`2`}, []string{`2.1`}},
		{"contains", `"b"`, []string{`"abc"`, `["a","b"]`}, []string{`"B"`, `["abc"]`, `7`, `null`}},
		{"contains", `7`, []string{`[7.0]`}, []string{`7`, `"7"`, `77`}},
		{"not_contains", `"b"`, []string{`"B"`, `["abc"]`, `7`, `null`}, []string{`"abc"`, `["a","b"]`}},
		{"starts_with", `"a"`, []string{`"ab"`, `["b","ab"]`}, []string{`"ba"`, `1`}},
		{"ends_with", `"a"`, []string{`"ba"`}, []string{`"ab"`}},
		{"matches", `"^a.$"`, []string{`"ab"`, `["b","ab"]`}, []string{`"abc"`, `1`}},
		{"exists", ``, []string{`""`, `false`, `[]`, `{}`}, []string{`null`}},
		{"not_exists", ``, []string{`null`}, []string{`""`, `false`, `[]`, `{}`}},
		{"before", `"2026-03-01T12:00:00Z"`, []string{`"2026-03-01"`, `1772366399.999`, `1772366399999`, `"2026-03-01T13:00:00+01:01"`}, []string{`"2026-03-01T12:00:00Z"`, `1772366400`, `"noon"`, `true`, `null`, `"2026-02-30"`}},
		{"after", `1772366400`, []string{`"2026-03-01T12:00:00.001Z"`, `"2026-03-02"`, `99999999999`}, []string{`"2026-03-01T12:00:00.0009Z"`, `100000000000`, `1772366400000.9`}},
	}
	for _, tt := range tests {
		for want, values := range map[bool][]string{true: tt.yes, false: tt.no} {
			for _, v := range values {
				condition := fmt.Sprintf(`{"property":"p.q","op":%q,"value":%s}`, tt.op, tt.value)
				condition = strings.Replace(condition, `,"value":}`, `}`, 1)
				rule := brute.Decode([]byte(`{"event":"A","where":[` + condition + `]}`))
				if got := brute.Holds(rule, person(t, `1 A {"p":{"q":`+v+`}}`), nil, noon); got != want {
					t.Errorf("%s of %s: %v, want %v", condition, v, got, want)
				}
			}
		}
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		path, properties string
		want             bool
	}{
		{"a.b", `{"a":{"b":"x"}}`, true},
		{"a.b", `{"a.b":"x"}`, true},
		{"a.b.c", `{"a.b":{"c":"y"},"a":{"b.c":"x"}}`, true},
		{"a.1", `{"a":["y","x"]}`, true},
		{"a.2", `{"a":["y","x"]}`, false},
		{"a.b", `{"a":[{"b":"y"},{"b":"x"}]}`, true},
		{"a.0.b", `{"a":[{"b":"y"},{"b":"x"}]}`, false},
		{"a.b", `{"a":[[{"b":"x"}]]}`, false},
		{"a", `{"a":{"b":"x"}}`, false},
		{"a", ``, false},
	} {
		rule := brute.Decode([]byte(`{"event":"A","where":[{"property":"` + tt.path + `","op":"eq","value":"x"}]}`))
		if got := brute.Holds(rule, person(t, "1 A "+tt.properties), nil, noon); got != tt.want {
			t.Errorf("%s in %s: %v, want %v", tt.path, tt.properties, got, tt.want)
		}
	}
}

func TestValue(t *testing.T) {
	t.Parallel()
	history := []string{
		`0.5 A {"n":1,"v":"x"}`, `3 A {"n":[2,0.5],"v":[true,"z",3.50]}`, `3 A {"v":"y"}`, `7 A {"n":"no"}`,
		`5 Half {"n":[1e-12,0]}`, `5 Half {"n":[0]}`, `5 Even {"n":[1e-12,2e-12]}`, `5 Odd {"n":[3e-12,2e-12]}`, `5 Less {"n":[-1,-1,-3]}`,
	}
	for _, tt := range []struct {
		computed string
		want     map[float64]any // by seconds from noon
	}{
		{`{"event":"A","count":{}}`, map[float64]any{0: json.Number("4")}},
		{`{"event":"A","count":{},"within":"10s"}`, map[float64]any{7.999: json.Number("3"), 8: json.Number("1"), 9.999: json.Number("1"), 10: json.Number("0")}},
		{`{"event":"A","sum":{"property":"n"}}`, map[float64]any{0: json.Number("3.5")}},
		{`{"event":"A","sum":{"property":"n"},"within":"10s"}`, map[float64]any{7.999: json.Number("3.5"), 8: json.Number("1"), 10: json.Number("0")}},
		{`{"event":"B","sum":{"property":"n"}}`, map[float64]any{0: json.Number("0")}},
		{`{"event":"A","avg":{"property":"n"}}`, map[float64]any{0: json.Number("1.166666666667")}},
		{`{"event":"Half","avg":{"property":"n"}}`, map[float64]any{0: json.Number("0")}},
		{`{"event":"Even","avg":{"property":"n"}}`, map[float64]any{0: json.Number("0.000000000002")}},
		{`{"event":"Odd","avg":{"property":"n"}}`, map[float64]any{0: json.Number("0.000000000002")}},
		{`{"event":"Less","avg":{"property":"n"}}`, map[float64]any{0: json.Number("-1.666666666667")}},
		{`{"event":"B","avg":{"property":"n"}}`, map[float64]any{0: nil}},
		{`{"event":"A","min":{"property":"n"}}`, map[float64]any{0: json.Number("0.5")}},
		{`{"event":"A","max":{"property":"n"},"within":"10s"}`, map[float64]any{0: json.Number("2"), 8: json.Number("1"), 10: nil}},
		{`{"event":"A","distinct":{"property":"v"}}`, map[float64]any{0: json.Number("5")}},
		{`{"event":"A","distinct":{"property":"v"},"within":"10s"}`, map[float64]any{6.999: json.Number("5"), 7: json.Number("1")}},
		{`{"event":"A","first":{}}`, map[float64]any{0: "2026-03-01T11:59:53.000Z"}},
		{`{"event":"A","last":{}}`, map[float64]any{0: "2026-03-01T11:59:59.500Z"}},
		{`{"event":"B","last":{}}`, map[float64]any{0: nil}},
		{`{"event":"A","first":{"property":"v"}}`, map[float64]any{0: "y"}},
		{`{"event":"A","last":{"property":"v"},"between":{"to":"2026-03-01T11:59:59Z"}}`, map[float64]any{0: true}},
	} {
		for in, want := range tt.want {
			got := brute.Value(brute.Decode([]byte(tt.computed)), person(t, history...), noon+int64(in*1000))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %v s after noon (-want +got):\n%s", tt.computed, in, diff)
			}
		}
	}
}

// What chance draws is neither nearly always true nor nearly always false, whatever the kind of rule, or it would show
// little.
func TestChanceIsFair(t *testing.T) {
	t.Parallel()
	c := &brute.Chance{
		Rand: rand.New(rand.NewPCG(1, 1)), Start: noon, Span: 40_000, Grid: 500,
		Windows: []string{"1s", "5s", "10s", "20s", "40s"},
	}
	holds, asked := map[string]int{}, map[string]int{}
	for range 5000 {
		rule := c.Rule(1)
		p := c.Person(c.IntN(15))
		for kind := range rule.(map[string]any) {
			asked[kind]++
			if brute.Holds(rule, p, nil, c.Now(rule, p)) {
				holds[kind]++
			}
		}
	}
	for _, kind := range []string{"trait", "consent", "event", "sequence", "then_not", "count", "sum", "avg", "min", "max", "distinct", "first", "last", "between"} {
		share := new(big.Rat).SetFrac64(int64(holds[kind]), int64(max(1, asked[kind])))
		if f, _ := share.Float64(); asked[kind] < 75 || f < 0.1 || f > 0.9 {
			t.Errorf("%s: %d of %d hold", kind, holds[kind], asked[kind])
		}
	}
}
