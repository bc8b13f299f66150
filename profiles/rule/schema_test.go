package rule_test

import (
	"encoding/json"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"pgregory.net/rapid"

	"github.com/mubatch/mubatch"
	"github.com/mubatch/mubatch/profiles/rule"
)

var openAPI = sync.OnceValues(func() (*openapi3.T, error) {
	return openapi3.NewLoader().LoadFromData([]byte(mubatch.OpenAPI()))
})

// described returns what the API's description has against a value.
func described(t fataler, schema, value string) error {
	doc, err := openAPI()
	if err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	var v any
	if err := json.Unmarshal([]byte(value), &v); err != nil {
		t.Fatalf("decode %s: %v", value, err)
	}
	return doc.Components.Schemas[schema].Value.VisitJSON(v)
}

// Whatever is accepted is described as it was given and as it is printed.
func TestTheSchemaDescribesTheLanguage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := anyRule(t, 3)
		printed, err := parse(t, text).MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{text, string(printed)} {
			if err := described(t, "Rule", s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
		text = anyComputed(t)
		c, err := rule.ParseComputed([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if printed, err = c.MarshalJSON(); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{text, string(printed)} {
			if err := described(t, "ComputedValue", s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	})
}

// What is refused for its form is not described either.
func TestTheSchemaRefusesWhatParseRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		`{}`,
		`{"event":"E","segment":"vip"}`,
		`{"event":"E","wihtin":"1d"}`,
		`{"event":"E","within":"1 day"}`,
		`{"event":"E","count":{"gte":1},"sum":{"property":"n","gte":1}}`,
		`{"event":"E","within":"1d","between":{"from":"2026-01-01"}}`,
		`{"event":"E","between":{}}`,
		`{"event":"E","sum":{"gte":1}}`,
		`{"event":"E","sum":{"property":"n"}}`,
		`{"event":"E","sum":{"property":"n","gte":"1"}}`,
		`{"event":"E","distinct":{"property":"n","gte":1000}}`,
		`{"event":"E","first":{"op":"eq","value":1}}`,
		`{"event":"E","first":{"op":"before"}}`,
		`{"event":"E","last":{"property":"p"}}`,
		`{"sequence":[]}`,
		`{"sequence":[{"where":[]}],"then_not":{"event":"E"}}`,
		`{"sequence":[{"event":"A"},{"event":"A"},{"event":"A"},{"event":"A"},{"event":"A"},{"event":"A"},{"event":"A"},{"event":"A"},{"event":"A"}]}`,
		`{"consent":"ad_storage"}`,
		`{"consent":"ad_storage","is":"yes"}`,
		`{"segment":"Very Important"}`,
	} {
		if r, err := rule.Parse([]byte(s)); err == nil {
			t.Errorf("%s is parsed as %v", s, r.Describe())
		}
		if described(t, "Rule", s) == nil {
			t.Errorf("%s is described", s)
		}
	}
	for _, s := range []string{
		`{"event":"E"}`,
		`{"count":{}}`,
		`{"event":"E","count":{},"sum":{"property":"n"}}`,
		`{"event":"E","count":{"gte":1}}`,
		`{"event":"E","sum":{}}`,
		`{"event":"E","sum":{"property":"n","gte":1}}`,
	} {
		if c, err := rule.ParseComputed([]byte(s)); err == nil {
			t.Errorf("%s is parsed as %v", s, c.Describe())
		}
		if described(t, "ComputedValue", s) == nil {
			t.Errorf("%s is described", s)
		}
	}
}
