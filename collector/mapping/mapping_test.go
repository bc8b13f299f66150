package mapping_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/collector/mapping"
)

// input is what the cells of these tests look into.
var input = mapping.Input{
	Body: []byte(`{
		"id": 820982911946154508, "big": 123456789012345678901234567890, "price": "598.94", "exact": 0.10000000000000000001,
		"name": "  Ada \"Countess\" ", "empty": "", "none": null, "yes": true, "a.b": {"c d": 1}, "\u0061bc": "escaped",
		"amount": 1999, "list": [1, 2.50, "x", null, {"k": "v"}], "nothing": [], "when": 1700000000, "ms": 1700000000123,
		"customer": {"id": 115310627314723954, "email": "Ada@Example.com", "tags": "a, b,,c"},
		"lines": [{"sku": "A", "price": "1.00", "n": 2}, {"sku": "B", "price": "2.50", "n": 0}]
	}`),
	Headers:    map[string]string{"x-topic": "orders/create", "x-id": "w1"},
	Query:      map[string]string{"shop": "one"},
	Meta:       map[string]string{"source": "shop", "line": "7"},
	ReceivedAt: time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.UTC),
}

// properties maps input to an event whose only property is a cell, in YAML, and returns what it became.
func properties(t *testing.T, cell string, in mapping.Input) (string, error) {
	t.Helper()
	document := "version: 1\nrules:\n- event:\n    type: track\n    event: E\n    userId: u\n    properties:\n      x: " +
		strings.ReplaceAll(cell, "\n", "\n        ") + "\n"
	p, err := mapping.Compile([]byte(document))
	if err != nil {
		t.Fatalf("Compile(%s): %v", cell, err)
	}
	events, err := p.Map(in)
	if err != nil {
		return "", err
	}
	got, ok := bytes.CutPrefix(events[0], []byte(`{"type":"track","event":"E","userId":"u"`))
	if !ok {
		t.Fatalf("Map gave %s", events[0])
	}
	got = bytes.TrimPrefix(got, []byte(`,"properties":{"x":`))
	return string(bytes.TrimSuffix(bytes.TrimSuffix(got, []byte("}")), []byte("}"))), nil
}

func TestCells(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ cell, want string }{
		// Literals, with the numbers as they are written.
		{`text`, `"text"`},
		{`12.50`, `12.50`},
		{`820982911946154508`, `820982911946154508`},
		{`true`, `true`},
		{`null`, ``},
		{`"$$x"`, `"$x"`},
		{`"==x"`, `"=x"`},
		{`{$value: {a: $.id, b: [1, null]}}`, `{"a":"$.id","b":[1,null]}`},
		{`{$$set: {a: 1}}`, `{"$set":{"a":1}}`},
		{`2026-01-31`, `"2026-01-31"`},

		// Paths.
		{`$.id`, `820982911946154508`},
		{`$.big`, `123456789012345678901234567890`},
		{`$.exact`, `0.10000000000000000001`},
		{`$.customer.id`, `115310627314723954`},
		{`$body.customer`, `{"id":115310627314723954,"email":"Ada@Example.com","tags":"a, b,,c"}`},
		{`$['a.b']["c d"]`, `1`},
		{`$.abc`, `"escaped"`},
		{`$.list[1]`, `2.50`},
		{`$.list[-1].k`, `"v"`},
		{`$.list[9]`, ``},
		{`$.list[-9]`, ``},
		{`$.lines[*].sku`, `["A","B"]`},
		{`$.nothing`, `[]`},
		{`$.none`, ``},
		{`$.absent.deeper`, ``},
		{`$.yes.deeper`, ``},
		{`$headers.X-Topic`, `"orders/create"`},
		{`$headers`, `{"x-id":"w1","x-topic":"orders/create"}`},
		{`$query.shop`, `"one"`},
		{`$meta['line'] | int`, `7`},
		{`$received_at`, `"2026-01-02T03:04:05.678Z"`},
		{`$index`, `0`},
		{`$parent.id`, ``},

		// Objects and lists leave out what is absent.
		{`{a: $.id, b: $.absent}`, `{"a":820982911946154508}`},
		{`{a: {b: $.absent}}`, ``},
		{`[$.absent, $.price, 1]`, `["598.94",1]`},

		// Functions.
		{`$.id | string`, `"820982911946154508"`},
		{`$.price | number`, `598.94`},
		{`$.empty | number`, ``},
		{`$.name | number | default(0)`, `0`},
		{`$.name | number | default(null)`, ``},
		{`$.price | int`, `598`},
		{`$.yes | string | bool`, `true`},
		{`$.name | trim | lower`, `"ada \"countess\""`},
		{`$.customer.email | lower | sha256`, `"b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72"`},
		{`$.absent | default('d')`, `"d"`},
		{`$.empty | default($.price)`, `"598.94"`},
		{`$.absent | coalesce($.none, $.empty, $.id)`, `820982911946154508`},
		{`$.absent | lower`, ``},
		{`$.customer.tags | split(',')`, `["a","b","","c"]`},
		{`$.customer.tags | split(',') | join('+')`, `"a+b+c"`},
		{`$.customer.tags | split(',') | last`, `"c"`},
		{`$.list | first`, `1`},
		{`$.list | length`, `5`},
		{`$.price | slice(0, 3)`, `"598"`},
		{`$.list | slice(-2)`, `[null,{"k":"v"}]`},
		{`$.price | replace('.', ',')`, `"598,94"`},
		{`$.id | concat('-', $.price, $.absent)`, `"820982911946154508-598.94"`},
		{`$.amount | cents`, `19.99`},
		{`$.amount | cents('jpy')`, `1999`},
		{`$.amount | cents('KWD')`, `1.999`},
		{`$.amount | cents(1)`, `199.9`},
		{`$.when | date('unix')`, `"2023-11-14T22:13:20.000Z"`},
		{`$.ms | date('unix_ms')`, `"2023-11-14T22:13:20.123Z"`},
		{`$received_at | date`, `"2026-01-02T03:04:05.678Z"`},
		{`$.absent | default('3 Feb 2026, 04:05:06.7 PM') | date('D MMM YYYY, hh:mm:ss.SSS A')`, `"2026-02-03T16:05:06.700Z"`},
		{`$.absent | default('2026-02-03T04:05:06+0200') | date`, `"2026-02-03T02:05:06.000Z"`},
		{`$.absent | default('1767323045.1239') | date('unix')`, `"2026-01-02T03:04:05.123Z"`},
		{`$.absent | default('') | date('unix')`, ``},
		{`$.absent | default('1e300') | date('unix') | default(null)`, ``},
		{`$.absent | default(' +007.50 ') | number`, `7.50`},
		{`$.absent | default('.5e3') | number`, `500`},
		{`$.absent | default('-1e-3') | number`, `-1e-3`},
		{`$.absent | default('-0.9') | int`, `0`},
		{`$.absent | default('12e2') | int`, `1200`},
		{`$.absent | default('-5') | cents`, `-0.05`},
		{`$.absent | default('NO') | bool`, `false`},
		{`{$if: "true", $then: "$received_at | slice(0, 10) | date('YYYY-MM-DD', 'Europe/Berlin')"}`, `"2026-01-01T23:00:00.000Z"`},
		{`$.list[4] | json`, `"{\"k\":\"v\"}"`},
		{`$.list[4] | json | json`, `{"k":"v"}`},
		{`$.customer | pick('id', 'tags')`, `{"id":115310627314723954,"tags":"a, b,,c"}`},
		{`$.customer | omit('email')`, `{"id":115310627314723954,"tags":"a, b,,c"}`},
		{`$query.country | default('Germany') | country`, `"DE"`},
		{`$query.country | default('Côte d’Ivoire') | country`, `"CI"`},
		{`$query.country | default('usa') | country`, `"US"`},
		{`$query.country | default('uk') | country`, `"GB"`},
		{`$query.shop | country | default('?')`, `"?"`},

		// Directives.
		{
			"{$each: $.lines, $set: {sku: $.sku, at: $index, of: $parent.id}}",
			`[{"sku":"A","at":0,"of":820982911946154508},{"sku":"B","at":1,"of":820982911946154508}]`,
		},
		{"{$each: $.lines, $when: 'item.n > 0', $set: $.sku}", `["A"]`},
		{"{$each: $.absent, $set: $.sku}", ``},
		{"{$if: 'body.yes', $then: a, $else: b}", `"a"`},
		{"{$if: 'body.absent', $then: a, $else: b}", `"b"`},
		{"{$lookup: $query.shop, $in: {one: Eins, two: Zwei}}", `"Eins"`},
		{"{$lookup: $.price, $in: {one: Eins}, $else: $.id}", `820982911946154508`},
		{"{$first: [$.empty, '= body.absent', $.price]}", `"598.94"`},
		{"{$merge: [$.absent, '$.list[4]', {k: w, l: 1}]}", `{"k":"w","l":1}`},

		// Segment's mapping-kit.
		{`{"@path": "$.customer.id"}`, `115310627314723954`},
		{`{"@path": "customer.email"}`, `"Ada@Example.com"`},
		{`{"@literal": "$.id"}`, `"$.id"`},
		{`{"@template": "{{customer.id}}-{{$.absent}}-{{ price }}"}`, `"115310627314723954--598.94"`},
		{`{"@if": {"exists": {"@path": "$.price"}, "then": yes please, "else": 0}}`, `"yes please"`},
		{`{"@if": {"exists": {"@path": "$.none"}, "then": 1, "else": {"@path": "$.amount"}}}`, `1999`},
		{`{"@if": {"blank": {"@path": "$.empty"}, "then": 1}}`, `1`},
		{`{"@if": {"blank": {"@path": "$.id"}, "then": 1}}`, ``},
		{`{"@arrayPath": ["$.lines", {"id": {"@path": "$.sku"}}]}`, `[{"id":"A"},{"id":"B"}]`},
		{`{"@arrayPath": ["$.nothing"]}`, `[]`},
		{`{"@case": {"operator": "lower", "value": {"@path": "$.customer.email"}}}`, `"ada@example.com"`},
		{`{"@json": {"mode": "encode", "value": {"@path": "$.list[4]"}}}`, `"{\"k\":\"v\"}"`},
		{`{"@merge": {"objects": [{"a": 1, "b": 1}, {"b": 2}], "direction": "right"}}`, `{"a":1,"b":2}`},
		{`{"@merge": {"objects": [{"a": 1, "b": 1}, {"b": 2}], "direction": "left"}}`, `{"b":1,"a":1}`},
		{`{"@type": "Offer"}`, `{"@type":"Offer"}`},

		// Expressions. 64-bit integers are exact.
		{`= body.id + 1`, `820982911946154509`},
		{`= body.id == 820982911946154508 && body.id != 820982911946154507`, `true`},
		{`= body.id > 820982911946154507`, `true`},
		{`= body.big`, `123456789012345678901234567890`},
		{`= body.customer`, `{"id":115310627314723954,"email":"Ada@Example.com","tags":"a, b,,c"}`},
		{`= body.price + '!'`, `"598.94!"`},
		{`= double(body.price) * 2.0`, `1197.88`},
		{`= body.absent + 'x'`, ``},
		{`= body.none`, ``},
		{`= has(body.customer.email)`, `true`},
		{`= body.?customer.?phone.orValue('none')`, `"none"`},
		{`= body.lines.filter(l, l.n > 0).map(l, l.sku)`, `["A"]`},
		{`= {'b': 1, 'a': [body.id, null]}`, `{"a":[820982911946154508,null],"b":1}`},
		{`= headers['x-topic'].startsWith('orders/') && query.shop == 'one'`, `true`},
		{`= date('2026-01-02')`, `"2026-01-02T00:00:00.000Z"`},
		{`= number(' 7.50 ') > 7.4`, `true`},
		{`= country('Germany') + upper('x')`, `"DEX"`},
		{`= lower(body.customer.email)`, `"ada@example.com"`},
		{`= body.list == body.list && body.customer == body.customer && 'k' in body.list[4] && 1 in body.list`, `true`},
		{`= size(body.lines + [1])`, `3`},
		{`= received_at`, `"2026-01-02T03:04:05.678Z"`},
	} {
		t.Run(tt.cell, func(t *testing.T) {
			t.Parallel()
			cell := tt.cell
			if strings.HasPrefix(cell, "=") || strings.HasPrefix(cell, "$") {
				cell = "'" + strings.ReplaceAll(cell, "'", "''") + "'"
			}
			got, err := properties(t, cell, input)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, document, body string
		want                 []string
	}{
		{
			name: "every rule that applies makes its event",
			document: `{"version": 1, "rules": [
				{"when": "body.a == 1", "event": {"type": "track", "event": "One", "userId": "u"}},
				{"when": "body.a == 2", "event": {"type": "track", "event": "Two", "userId": "u"}},
				{"when": "body.missing == 2", "event": {"type": "track", "event": "Never", "userId": "u"}},
				{"event": {"type": "identify", "userId": "u"}}]}`,
			body: `{"a": 1}`,
			want: []string{`{"type":"track","event":"One","userId":"u"}`, `{"type":"identify","userId":"u"}`},
		},
		{
			name: "only the first, if the document says so",
			document: "version: 1\nmatch: first\nrules:\n- {when: 'body.a == 1', event: {type: page, userId: u}}\n" +
				"- {event: {type: screen, userId: u}}\n",
			body: `{"a": 1}`,
			want: []string{`{"type":"page","userId":"u"}`},
		},
		{
			name:     "no event, if no rule applies",
			document: "version: 1\nrules:\n- {when: 'body.a == 2', event: {type: page, userId: u}}\n",
			body:     `{"a": 1}`,
		},
		{
			name: "an event for each element that the condition holds for",
			document: "version: 1\nrules:\n- {for_each: $.all, when: 'item.n > 1', event: {type: page, userId: $.n | string, " +
				"properties: {shop: $body.shop, at: $index}}}\n",
			body: `{"shop": "s", "all": [{"n": 1}, {"n": 2}, {"n": 3}]}`,
			want: []string{
				`{"type":"page","userId":"2","properties":{"shop":"s","at":1}}`, `{"type":"page","userId":"3","properties":{"shop":"s","at":2}}`,
			},
		},
		{
			name:     "none, if there is no list",
			document: "version: 1\nrules:\n- {for_each: $.all, event: {type: page, userId: u}}\n",
			body:     `{}`,
		},
		{
			name: "defaults, which null takes away",
			document: "version: 1\ndefaults: {type: track, timestamp: $.at, context: {app: {name: a, build: 1}}}\n" +
				"rules:\n- {event: {event: E, userId: u, timestamp: null, context: {app: {build: 2}, ip: $.ip}}}\n",
			body: `{"at": "2026-01-01", "ip": "192.0.2.1"}`,
			want: []string{`{"type":"track","context":{"app":{"name":"a","build":2},"ip":"192.0.2.1"},"event":"E","userId":"u"}`},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := mapping.Compile([]byte(tt.document))
			if err != nil {
				t.Fatal(err)
			}
			events, err := p.Map(mapping.Input{Body: []byte(tt.body)})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range events {
				got = append(got, string(e))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCompileSaysWhatIsWrongWhere(t *testing.T) {
	t.Parallel()
	const event = "  event: {type: page, userId: u}\n"
	for _, tt := range []struct {
		name, document string
		line           int
		path, code, in string
	}{
		{"an empty document", "", 0, "", "malformed", "empty"},
		{"neither JSON nor YAML", "version: 1\nrules: [\n", 2, "", "malformed", "neither"},
		{"an unknown version", "version: 2\nrules:\n- " + event, 1, "version", "unknown_version", "must be 1"},
		{"no rules", "version: 1\n", 1, "rules", "required", "required"},
		{"an unknown member", "version: 1\nrules:\n- if: 'true'\n" + event, 3, "rules[0].if", "unknown_member", "when"},
		{"a member twice", "version: 1\nrules:\n- event:\n    type: page\n    type: page\n    userId: u\n", 5, "rules[0].event.type", "duplicate_member", "twice"},
		{"a condition that is not CEL", "version: 1\nrules:\n- when: 'body.a = 1'\n" + event, 3, "rules[0].when", "invalid_expression", "column 8"},
		{"a condition that is a number", "version: 1\nrules:\n- when: 'index + 1'\n" + event, 3, "rules[0].when", "wrong_type", "true or false"},
		{"an unknown variable", "version: 1\nrules:\n- when: 'order.a == 1'\n" + event, 3, "rules[0].when", "invalid_expression", "order"},
		{"an unknown function", "version: 1\nrules:\n- event:\n    type: page\n    userId: $.a | lowr\n", 5, "rules[0].event.userId", "invalid_path", `"lowr"`},
		{"too few arguments", "version: 1\nrules:\n- event:\n    type: page\n    userId: $.a | default\n", 5, "rules[0].event.userId", "invalid_path", "0 arguments"},
		{"an unknown date format", "version: 1\nrules:\n- event:\n    type: page\n    userId: u\n    timestamp: $.a | date('ddd')\n", 6, "rules[0].event.timestamp", "invalid_path", "format"},
		{"a path to nothing", "version: 1\nrules:\n- event:\n    type: page\n    userId: $user.id\n", 5, "rules[0].event.userId", "invalid_path", "$.user"},
		{"no identity", "version: 1\nrules:\n- event: {type: page}\n", 3, "rules[0].event.userId", "required", "anonymousId"},
		{"no name of a track event", "version: 1\nrules:\n- event: {type: track, userId: u}\n", 3, "rules[0].event.event", "required", "name"},
		{"no such type", "version: 1\nrules:\n- event: {type: buy, userId: u}\n", 3, "rules[0].event.type", "invalid", "track"},
		{"an unknown directive", "version: 1\nrules:\n- event:\n    type: page\n    userId: {$path: $.x}\n", 5, "rules[0].event.userId", "unknown_directive", "$path"},
		{"half a directive", "version: 1\nrules:\n- event:\n    type: page\n    userId: {$if: 'true'}\n", 5, "rules[0].event.userId.$then", "required", "$if"},
		{"an alias", "version: 1\nrules:\n- event: &a {type: page, userId: u}\n- event: *a\n", 3, "rules[0].event", "unsupported", "anchor"},
		{"a fault in JSON", "{\"version\": 1,\n\"rules\": [\n{\"event\": {\"type\": \"page\",\n\"userId\": \"$.\"}}]}", 4, "rules[0].event.userId", "invalid_path", "no name"},
		{"a template that is not closed", "version: 1\nrules:\n- event:\n    type: page\n    userId: {'@template': 'a{{b'}\n", 5, "rules[0].event.userId[\"@template\"]", "invalid_path", "closed"},
		{"a condition of two", "version: 1\nrules:\n- event:\n    type: page\n    userId: {'@if': {exists: a, blank: b}}\n", 5, "rules[0].event.userId[\"@if\"]", "wrong_type", "either"},
		{"infinity", "version: 1\nrules:\n- event: {type: page, userId: .inf}\n", 3, "rules[0].event.userId", "unsupported", "quotes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := mapping.Compile([]byte(tt.document))
			var invalid *mapping.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("Compile: %v, want an *InvalidError", err)
			}
			f := invalid.Faults[0]
			if f.Line != tt.line || f.Path != tt.path || f.Code != tt.code || !strings.Contains(f.Detail, tt.in) {
				t.Errorf("got %+v, want line %d, path %s, code %s, %q in its detail", f, tt.line, tt.path, tt.code, tt.in)
			}
		})
	}
}

func TestTemplatesCompile(t *testing.T) {
	t.Parallel()
	for _, name := range mapping.Templates() {
		document, ok := mapping.Template(name)
		if !ok {
			t.Fatalf("there is no template %s", name)
		}
		if _, err := mapping.Compile(document); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := mapping.Template("../template"); ok {
		t.Error("a template was found outside their folder")
	}
}
