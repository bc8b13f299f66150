package mapping_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mubatch/mubatch/collector/mapping"
)

// document returns one with a rule for each of the events, in YAML.
func document(events ...string) string {
	return "version: 1\nrules:\n- event: " + strings.Join(events, "\n- event: ") + "\n"
}

func TestDocumentsStopAtTheirBounds(t *testing.T) {
	t.Parallel()
	const event = "{type: page, userId: u}"
	with := func(cell string) string { return document("{type: page, userId: u, properties: {x: " + cell + "}}") }
	many := func(n int, format string) string {
		cells := make([]string, n)
		for i := range cells {
			cells[i] = fmt.Sprintf(format, i)
		}
		return "{" + strings.Join(cells, ", ") + "}"
	}
	for _, tt := range []struct{ name, document, code string }{
		{"bytes", document(event) + strings.Repeat("#", 256<<10), "too_large"},
		{"rules", document(slices.Repeat([]string{event}, 201)...), "too_many_rules"},
		{"depth in YAML", with(strings.Repeat("[", 100) + strings.Repeat("]", 100)), "too_deep"},
		{"depth in JSON", `{"version": ` + strings.Repeat(`[`, 100) + strings.Repeat(`]`, 100) + `}`, "too_deep"},
		{"depth beyond what JSON is read to", `{"version": ` + strings.Repeat(`{"a":`, 30_000) + "1" + strings.Repeat(`}`, 30_000) + `}`, "malformed"},
		{"values", with(many(10_001, "a%d: 1")), "too_many_values"},
		{"values in JSON", `{"version": [` + strings.Repeat("1,", 20_000) + `1]}`, "too_many_values"},
		{
			"values of defaults, rule by rule", "version: 1\ndefaults: {x: " + many(5000, "a%d: 1") + "}\nrules:\n" +
				strings.Repeat("- event: {type: page, userId: u}\n", 200), "too_many_values",
		},
		{"the length of a name", document("{type: page, userId: u, " + strings.Repeat("n", 257) + ": 1}"), "name_too_long"},
		{"the length of a name in JSON", `{"version": 1, "` + strings.Repeat("n", 257) + `": [1]}`, "name_too_long"},
		{"the length of a path", with(strings.Repeat("{"+strings.Repeat("n", 250)+": ", 5) + "1" + strings.Repeat("}", 5)), "path_too_long"},
		{"expressions", with(many(501, "a%d: '= 1'")), "too_many_expressions"},
		{"the length of an expression", with("'= " + strings.Repeat("1+", 3000) + "1'"), "invalid_expression"},
		{"the depth of an expression", with("'= " + strings.Repeat("(", 200) + "1" + strings.Repeat(")", 200) + "'"), "invalid_expression"},
		{"the size of a pattern", with("\"= body.a.matches('(a{1,100}){1,9}')\""), "invalid_expression"},
		{"bytes in an expression", with("\"= b'a' + b'b'\""), "invalid_expression"},
		{"a text as bytes", with("= size(bytes(body.t))"), "invalid_expression"},
		{"messages", with("'= google.protobuf.ListValue{values: [1]}'"), "invalid_expression"},
		{"a pattern that is not known", with("= body.t.matches(body.p)"), "invalid_expression"},
		{"what an alias would stand for", "a: &a [1]\nb: [*a, *a]\n", "unsupported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := mapping.Compile([]byte(tt.document))
			var invalid *mapping.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("Compile: %v, want an *InvalidError", err)
			}
			if !slices.ContainsFunc(invalid.Faults, func(f mapping.Fault) bool { return f.Code == tt.code }) {
				t.Errorf("got %.300v, want a fault %s", err, tt.code)
			}
		})
	}
}

// Whatever is wrong with a document, it takes memory in proportion to the document to say so.
func TestDocumentsTakeMemoryInProportion(t *testing.T) {
	ones := strings.Repeat("1,", 9000) + "1"
	nested := strings.Repeat(`{"`+strings.Repeat("n", 250)+`":`, 50)
	for _, tt := range []struct{ name, document string }{
		{"a long name", `{"version": 1, "` + strings.Repeat("n", 200<<10) + `": [` + ones + `]}`},
		{"many names that are not long", `{"version": ` + nested + `[` + ones + `]` + strings.Repeat("}", 50) + `}`},
		{"too many values in a long path", `{"version": {"` + strings.Repeat("n", 250) + `": [` + strings.Repeat("1,", 100_000) + `1]}}`},
		{
			"a path that cannot be read in the defaults of many rules",
			"version: 1\ndefaults: {x: '$.a " + strings.Repeat("x", 200_000) + "'}\nrules:\n" + strings.Repeat("- event: {type: page, userId: u}\n", 200),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := mapping.Compile([]byte(tt.document)); err == nil || len(err.Error()) > 64<<10 {
				t.Errorf("got %.300v, want a short error", err)
			}
			runtime.ReadMemStats(&after)
			if made := after.TotalAlloc - before.TotalAlloc; made > 40<<20 {
				t.Errorf("allocated %d MiB, want at most 40", made>>20)
			}
		})
	}
}

// doubled returns an expression that makes each of its variables of the one before, and comes to what last says of the last.
func doubled(levels int, next, first, last string) string {
	inner := fmt.Sprintf(last, fmt.Sprintf("v%d", levels-1))
	for n := levels - 1; n > 0; n-- {
		inner = fmt.Sprintf("[%s].map(v%d, %s)", fmt.Sprintf(next, fmt.Sprintf("v%d", n-1)), n, inner)
	}
	return "[" + first + "].map(v0, " + inner + ")"
}

func TestInputsStopAtTheirBounds(t *testing.T) {
	t.Parallel()
	items := func(n int) []byte { return []byte("[" + strings.Repeat("1,", n-1) + "1]") }
	each := func(event string) string { return "version: 1\nrules:\n- for_each: $\n  event: " + event + "\n" }
	for _, tt := range []struct {
		name, document string
		body           []byte
		code           string
	}{
		{"no JSON", document("{type: page, userId: u}"), []byte(`{"a"`), "malformed_json"},
		{"a member twice", document("{type: page, userId: u}"), []byte(`{"a": 1, "a": 2}`), "malformed_json"},
		{"bytes", document("{type: page, userId: u}"), items(600_000), "input_too_large"},
		{"depth", document("{type: page, userId: u}"), []byte(strings.Repeat("[", 65) + strings.Repeat("]", 65)), "input_too_deep"},
		{"events", each("{type: page, userId: u}"), items(2501), "too_many_events"},
		{"the size of an event", document("{type: page, userId: u, properties: {x: $}}"), items(20_000), "event_too_large"},
		{"the size of all events", each("{type: page, userId: u, properties: {x: $body}}"), items(2400), "output_too_large"},
		{"the cost of an expression", document("{type: page, userId: u, properties: {x: '= body.all(a, body.all(b, a == b))'}}"), items(2000), "too_much_work"},
		{
			"the cost of many expressions", each("{type: page, userId: u, properties: {x: '= body.filter(a, a == 2)'}}"),
			items(2400), "too_much_work",
		},
		{
			"measuring a long text again and again", document("{type: page, userId: u, properties: {x: '= [body.t + body.t].map(s, body.l.map(n, size(s)))'}}"),
			[]byte(`{"t": "` + strings.Repeat("a", 100_000) + `", "l": [1` + strings.Repeat(",1", 1000) + `]}`), "too_much_work",
		},
		{
			"adding to it", document("{type: page, userId: u, properties: {x: '= body.l.map(n, size(body.l.map(m, body.t + body.t)))'}}"),
			[]byte(`{"t": "` + strings.Repeat("a", 1000) + `", "l": [1` + strings.Repeat(",1", 1000) + `]}`), "too_much_work",
		},
		{
			"comparing long lists", document("{type: page, userId: u, properties: {x: '= [body.l.map(n, [n])].map(s, body.l.all(n, [s] == [s]))'}}"),
			[]byte(`{"l": [1` + strings.Repeat(",1", 1000) + `]}`), "too_much_work",
		},
		{
			"hashing it", document("{type: page, userId: u, properties: {x: '= [body.t + body.t].map(s, body.l.map(n, sha256(s)))'}}"),
			[]byte(`{"t": "` + strings.Repeat("a", 100_000) + `", "l": [1` + strings.Repeat(",1", 1000) + `]}`), "too_much_work",
		},
		{
			"comparing everything with itself", each("{type: page, userId: u, properties: {x: '= body == body'}}"),
			[]byte("[" + strings.Repeat(`[`, 1) + strings.Repeat(`"abcdefgh",`, 20_000) + "1]" + strings.Repeat(",1", 2000) + "]"), "too_much_work",
		},
		{
			"lists of lists", document("{type: page, userId: u, properties: {x: {$each: $, $set: {$each: $body, $set: {$each: $body, $set: 1}}}}}"),
			items(1000), "too_much_work",
		},
		{
			"lists of lists in an expression",
			document("{type: page, userId: u, properties: {x: '= body.map(a, body.map(b, body))'}}"),
			items(250), "too_much_work",
		},
		{
			"a pattern with many states", document("{type: page, userId: u, properties: {x: \"= body.t.matches('(a{1,20}){1,20}b')\"}}"),
			[]byte(`{"t": "` + strings.Repeat("a", 40_000) + `"}`), "too_much_work",
		},
		{
			"a list that doubles", document("{type: page, userId: u, properties: {x: '= " + doubled(22, "%[1]s + %[1]s", "[1]", "size(%s)") + "'}}"),
			[]byte(`{}`), "too_much_work",
		},
		{
			"a list that is twice in each", document("{type: page, userId: u, properties: {x: '= " + doubled(22, "[%[1]s, %[1]s]", "[1]", "size(%s)") + "'}}"),
			[]byte(`{}`), "too_much_work",
		},
		{
			"arguments that are long", "version: 1\nrules:\n- for_each: $.l\n  event: {type: page, userId: u, properties: {" +
				"y: [" + strings.TrimSuffix(strings.Repeat("{'@if': {exists: \"$body.s | concat($body.big)\", then: null}}, ", 400), ", ") + "]}}\n",
			[]byte(`{"s": "a", "big": "` + strings.Repeat("a", 60_000) + `", "l": [1` + strings.Repeat(",1", 100) + `]}`), "too_much_work",
		},
		{"a text that grows by itself", document(`{type: page, userId: u, properties: {x: "$.t | replace('a', $.t)"}}`), []byte(`{"t": "` + strings.Repeat("a", 1000) + `"}`), "cannot_convert"},
		{"what is no list", each("{type: page, userId: u}"), []byte(`{"a": 1}`), "wrong_type"},
		{"what is no number", document("{type: page, userId: u, properties: {x: $.t | number}}"), []byte(`{"t": "secret"}`), "cannot_convert"},
		{"types that do not go together", document("{type: page, userId: u, properties: {x: '= body.t + 1'}}"), []byte(`{"t": "secret"}`), "wrong_type"},
		{"beyond 64 bits", document("{type: page, userId: u, properties: {x: '= body.t + 9223372036854775807'}}"), []byte(`{"t": 1}`), "number_out_of_range"},
		{"division by zero", document("{type: page, userId: u, properties: {x: '= 1 / body.t'}}"), []byte(`{"t": 0}`), "division_by_zero"},
		{"infinity", document("{type: page, userId: u, properties: {x: '= 1.0 / body.t'}}"), []byte(`{"t": 0.0}`), "wrong_type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := mapping.Compile([]byte(tt.document))
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Map(mapping.Input{Body: tt.body})
			var fault *mapping.FaultError
			if !errors.As(err, &fault) || fault.Code != tt.code {
				t.Fatalf("Map: %v, want a fault %s", err, tt.code)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells what is in the input: %v", err)
			}
		})
	}
}

func TestOneElementAtFaultDoesNotConcernTheOthers(t *testing.T) {
	t.Parallel()
	p, err := mapping.Compile([]byte("version: 1\nrules:\n- name: rows\n  for_each: $\n  event:\n    type: page\n    userId: $.id\n" +
		"    timestamp: $.at | date\n"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := p.Map(mapping.Input{Body: []byte(`[{"id":"a"},{"id":"b","at":"?"},{"id":"c","at":"2026-01-02"},{"id":"d","at":"!"}]`)})
	var fault *mapping.FaultError
	if !errors.As(err, &fault) {
		t.Fatalf("Map: %v, want a *FaultError", err)
	}
	want := mapping.FaultError{
		Rule: "rows", Line: 8, Path: "rules[0].event.timestamp", Index: 1, Code: "cannot_convert",
		Detail: "date: is no time of the format", More: 1,
	}
	if *fault != want {
		t.Errorf("got %+v, want %+v", *fault, want)
	}
	const made = `{"type":"page","userId":"a"},{"type":"page","userId":"c","timestamp":"2026-01-02T00:00:00.000Z"}`
	if got := string(bytes.Join(events, []byte(","))); got != made {
		t.Errorf("events: %s, want %s", got, made)
	}
}

func TestOneProgramServesManyGoroutines(t *testing.T) {
	t.Parallel()
	p, err := mapping.Compile([]byte(document("{type: track, event: '= body.name + string(body.n + 1)', userId: $.n | string}")))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 200 {
				id := n*1000 + i
				events, err := p.Map(mapping.Input{Body: fmt.Appendf(nil, `{"name": "E", "n": %d}`, id)})
				want := fmt.Sprintf(`{"type":"track","event":"E%d","userId":"%d"}`, id+1, id)
				if err != nil || string(events[0]) != want {
					t.Errorf("Map: %s, %v, want %s", events, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

// FuzzMap: what is compiled maps any input without a panic, to valid JSON, and twice to the same.
func FuzzMap(f *testing.F) {
	for _, cells := range []string{
		`$.a | number`, `$.a | date`, `$.a | cents($.b)`, `= body.a + body.b`, `= body.a == body.b || size(body.a) > 1`, `$.a[*].b | join(',')`,
		`{$each: $.a, $set: {x: $.b | json, y: $parent.b, z: "= string(item)"}}`, `{$merge: [$.a, $.b]}`, `$.a | slice(-1, 3) | replace('a', $.b)`,
		`{$lookup: $.a, $in: {"1": $.b | json}, $else: $ | omit('b') | json}`, `= [body.a, {'k': body.b}]`, `$.a | split($.b) | first`,
	} {
		for _, body := range []string{
			`{"a": 1, "b": "2"}`, `{"a": [{"b": 1}, {"b": "x"}, null], "b": ["y"]}`, `{"a": "1e308", "b": -0.0}`, `{"a": "\ud800\u0000", "b": {"b": []}}`,
			`[[], {}]`, "{\"a\": \"\xff\", \"b\": 1e400}", `null`, ``,
		} {
			f.Add(document("{type: page, userId: u, properties: {x: "+quoteUnlessFlow(cells)+"}}"), []byte(body))
		}
	}
	for _, name := range mapping.Templates() {
		template, _ := mapping.Template(name)
		f.Add(string(template), []byte(`{"id": 1, "line_items": [{}]}`))
	}
	f.Fuzz(func(t *testing.T, document string, body []byte) {
		p, err := mapping.Compile([]byte(document))
		if err != nil {
			var invalid *mapping.InvalidError
			if !errors.As(err, &invalid) || len(invalid.Faults) == 0 {
				t.Fatalf("Compile: %v, want an *InvalidError", err)
			}
			return
		}
		in := mapping.Input{Body: body, Headers: map[string]string{"x-shopify-topic": "orders/create"}}
		events, err := p.Map(in)
		for _, e := range events {
			if !json.Valid(e) || len(e) > 32<<10 {
				t.Errorf("%q is no event", e)
			}
		}
		again, err2 := p.Map(in)
		if !slices.EqualFunc(events, again, bytes.Equal) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Errorf("%s, %v became %s, %v", events, err, again, err2)
		}
	})
}

func quoteUnlessFlow(cell string) string {
	if strings.HasPrefix(cell, "{") {
		return cell
	}
	return strconv.Quote(cell)
}
