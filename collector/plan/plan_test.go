package plan

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mubatch/mubatch/profiles"
)

func compile(t testing.TB, text string) *Schema {
	t.Helper()
	s, err := Compile([]byte(text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return s
}

const orders = `{
	"type": "object",
	"required": ["properties"],
	"properties": {
		"properties": {
			"type": "object",
			"required": ["order_id", "revenue"],
			"properties": {
				"order_id": {"type": "integer", "minimum": 9007199254740993},
				"revenue": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.01},
				"currency": {"enum": ["EUR", "USD"]},
				"coupon": {"type": "string", "pattern": "^[A-Z]{3,8}$"},
				"email": {"type": "string", "format": "email"},
				"products": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/product"}}
			},
			"additionalProperties": false
		}
	},
	"$defs": {"product": {"type": "object", "required": ["sku"], "properties": {"sku": {"type": "string"}}}}
}`

func TestCheck(t *testing.T) {
	t.Parallel()
	s := compile(t, orders)
	for _, c := range []struct {
		name, event string
		want        []profiles.Violation
	}{
		{"as planned", `{"properties":{"order_id":9007199254740993,"revenue":19.99,"products":[{"sku":"a"}]}}`, nil},
		{"numbers are exact", `{"properties":{"order_id":9007199254740992,"revenue":0.07}}`, []profiles.Violation{
			{Code: "minimum", Pointer: "#/properties/order_id", Detail: "must be at least 9007199254740993"},
		}},
		{"a part of a cent", `{"properties":{"order_id":9007199254740993,"revenue":0.005}}`, []profiles.Violation{
			{Code: "multiple_of", Pointer: "#/properties/revenue", Detail: "must be a multiple of 0.01"},
		}},
		{"a text for a number", `{"properties":{"order_id":9007199254740993,"revenue":"19.99"}}`, []profiles.Violation{
			{Code: "type", Pointer: "#/properties/revenue", Detail: "must be number"},
		}},
		{"something missing", `{"properties":{"order_id":9007199254740993}}`, []profiles.Violation{
			{Code: "required", Pointer: "#/properties/revenue", Detail: "is required"},
		}},
		{"nothing at all", `{"type":"track"}`, []profiles.Violation{
			{Code: "required", Pointer: "#/properties/order_id", Detail: "is required"},
			{Code: "required", Pointer: "#/properties/revenue", Detail: "is required"},
		}},
		{"something more", `{"properties":{"order_id":9007199254740993,"revenue":1,"colour":"red"}}`, []profiles.Violation{
			{Code: "additional_properties", Pointer: "#/properties/colour", Detail: "is not in the plan"},
		}},
		{"within a list", `{"properties":{"order_id":9007199254740993,"revenue":1,"products":[{"sku":"a"},{"sku":7}]}}`, []profiles.Violation{
			{Code: "type", Pointer: "#/properties/products/1/sku", Detail: "must be string"},
		}},
		{"formats count", `{"properties":{"order_id":9007199254740993,"revenue":1,"email":"ada"}}`, []profiles.Violation{
			{Code: "format", Pointer: "#/properties/email", Detail: "must be of the format email"},
		}},
		{"nothing of the event is told", `{"properties":{"order_id":9007199254740993,"revenue":1,"currency":"ada@example.com"}}`, []profiles.Violation{
			{Code: "enum", Pointer: "#/properties/currency", Detail: "must be one of EUR, USD"},
		}},
		{"a text too long for patterns", `{"properties":{"order_id":9007199254740993,"revenue":1,"coupon":"` + strings.Repeat("A", maxSubject+1) + `"}}`, []profiles.Violation{
			{Code: "pattern", Pointer: "#/properties/coupon", Detail: "must match ^[A-Z]{3,8}$"},
		}},
		{"an event too large to be checked", `{"properties":{"list":[` + strings.Repeat("1,", maxValues) + `1]}}`, []profiles.Violation{
			{Code: "too_complex", Pointer: "#", Detail: "has more than 2000 values, which is too much to be checked"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, s.Check([]byte(c.event))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestWhatIsNoSchemaIsRefused(t *testing.T) {
	t.Parallel()
	// 40 definitions, each of which refers to the next twice: 2⁴⁰ schemas.
	var doubling strings.Builder
	doubling.WriteString(`{"$ref":"#/$defs/d0","$defs":{"d40":{"type":"string"}`)
	for i := range 40 {
		fmt.Fprintf(&doubling, `,"d%d":{"anyOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}`, i, i+1, i+1)
	}
	doubling.WriteString(`}}`)
	var patterns []string
	for i := range 5 {
		patterns = append(patterns, fmt.Sprintf(`"p%d":{"pattern":"(a|b){900}"}`, i))
	}
	for name, text := range map[string]string{
		"not JSON":               `{`,
		"two documents":          `{} {}`,
		"a list":                 `[]`,
		"a keyword misused":      `{"type":"text"}`,
		"another draft":          `{"$schema":"http://json-schema.org/draft-07/schema#"}`,
		"something remote":       `{"$ref":"https://example.com/schema.json"}`,
		"a file":                 `{"$ref":"file:///etc/passwd"}`,
		"a base of its own":      `{"$id":"https://example.com/","properties":{"a":{"$ref":"#"}}}`,
		"nothing referred to":    `{"$ref":"#/$defs/nothing"}`,
		"a reference to itself":  `{"properties":{"child":{"$ref":"#"}}}`,
		"references that double": doubling.String(),
		"a look-ahead":           `{"pattern":"(?=a)b"}`,
		"a pattern too large":    `{"properties":{` + strings.Join(patterns, ",") + `}}`,
		"a pattern too long":     `{"pattern":"` + strings.Repeat("a", maxPattern+1) + `"}`,
		"a number too large":     `{"minimum":1e999999999}`,
		"a name twice":           `{"type":"object","type":"string"}`,
		"too deep":               strings.Repeat(`{"not":`, maxDepth+1) + "{}" + strings.Repeat("}", maxDepth+1),
		"too large":              `{"description":"` + strings.Repeat("a", MaxBytes) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile([]byte(text))
			var fault *Fault
			if !errors.As(err, &fault) || fault.Reason == "" {
				t.Errorf("%v, want a fault", err)
			} else {
				t.Log(err)
			}
		})
	}
}

// What is accepted is checked in a bounded time, whatever comes. The bound is generous: a machine may be busy.
func TestTheWorstEventIsCheckedInTime(t *testing.T) {
	t.Parallel()
	var branches []string
	for i := range 200 {
		branches = append(branches, fmt.Sprintf(`{"type":"string","minLength":%d}`, 100+i))
	}
	s := compile(t, `{"properties":{"properties":{"items":{"anyOf":[`+strings.Join(branches, ",")+`]},"uniqueItems":true}}}`)
	patterned := compile(t, `{"properties":{"properties":{"items":{"pattern":"(a?){250}a{250}b"}}}}`)
	list := `{"properties":[` + strings.Repeat(`"aaaaaaaaaaaaaaa",`, maxValues-10) + `"b"]}`
	began := time.Now()
	if s.Check([]byte(list)) == nil || patterned.Check([]byte(`{"properties":["`+strings.Repeat("a", maxSubject)+`"]}`)) == nil {
		t.Error("nothing was wrong with them")
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(orders, `{"properties":{"order_id":1}}`)
	f.Add(`{"anyOf":[true,false]}`, `{}`)
	f.Add(`{"$defs":{"a":{"$anchor":"x"}},"$ref":"#x"}`, `[1,1.0,1e0]`)
	f.Fuzz(func(t *testing.T, text, event string) {
		s, err := Compile([]byte(text))
		if err != nil {
			return
		}
		for _, v := range s.Check([]byte(event)) {
			if v.Code == "" || !strings.HasPrefix(v.Pointer, "#") || v.Detail == "" {
				t.Errorf("%+v", v)
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	s := compile(b, orders)
	event := []byte(`{"type":"track","event":"Order Completed","messageId":"m1","userId":"ada","timestamp":"2026-11-01T10:00:00Z",` +
		`"context":{"page":{"path":"/checkout","url":"https://example.com/checkout"},"userAgent":"Mozilla/5.0"},` +
		`"properties":{"order_id":9007199254740993,"revenue":19.99,"currency":"EUR","products":[{"sku":"a","price":1.5},{"sku":"b"}]}}`)
	for b.Loop() {
		if v := s.Check(event); v != nil {
			b.Fatal(v)
		}
	}
}
