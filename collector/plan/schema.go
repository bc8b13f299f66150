// Package plan tells whether events are as somebody said they would be, in JSON Schema 2020-12.
//
// A schema is compiled when it is saved, and only if checking any event by it takes a bounded time: see [Compile]. Numbers
// are compared exactly.
package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Bounds of a schema, and of the events that are checked.
const (
	MaxBytes = 64 << 10
	maxDepth = 32
	maxNodes = 5000 // values in the text

	// What checking takes, with everything that is referred to in its place: the schemas that are applied to one value of the
	// event, those that may be applied to every value, and the instructions of all patterns.
	maxSchemas  = 5000
	maxRepeated = 500
	maxProgram  = 2000

	maxPattern = 1000 // bytes
	maxSubject = 4096 // bytes of a text that a pattern is tried on
	maxValues  = 2000 // of an event
	maxNumber  = 330  // characters
)

// Fault is what is wrong with a schema, and where in it.
type Fault struct {
	Pointer string
	Reason  string
}

func (f *Fault) Error() string { return f.Pointer + " " + f.Reason }

// Schema is a compiled schema. It may be used at once.
type Schema struct{ compiled *jsonschema.Schema }

// location is where a schema lies as far as references in it are concerned. Nothing else can be referred to.
const location = "urn:mubatch:schema"

// Compile returns the schema in text, a JSON object. It refuses, with a [*Fault], what is not a schema of the draft
// 2020-12, refers to anything outside itself or to what it is a part of, has a pattern that is not RE2, or goes beyond a
// bound.
func Compile(text []byte) (*Schema, error) {
	if len(text) > MaxBytes {
		return nil, &Fault{"", fmt.Sprintf("is larger than %d bytes", MaxBytes)}
	}
	r := reader{d: jsontext.NewDecoder(bytes.NewReader(text)), most: maxNodes}
	doc, err := r.value(1)
	if err == nil && r.d.PeekKind() != 0 {
		err = errTrailing
	}
	switch {
	case errors.Is(err, errTooMany):
		return nil, &Fault{"", fmt.Sprintf("has more than %d values", maxNodes)}
	case errors.Is(err, errTooDeep):
		return nil, &Fault{"", fmt.Sprintf("is nested deeper than %d levels", maxDepth)}
	case err != nil:
		return nil, &Fault{"", "is not JSON, or has a name twice or a number out of all proportion"}
	}
	object, ok := doc.(map[string]any)
	if !ok {
		return nil, &Fault{"", "must be an object"}
	}
	if draft, given := object["$schema"]; given && draft != "https://json-schema.org/draft/2020-12/schema" {
		return nil, &Fault{"/$schema", "must be https://json-schema.org/draft/2020-12/schema, if it is given"}
	}
	if f := refuse(object, ""); f != nil {
		return nil, f
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(nothing{})
	c.UseRegexpEngine(compilePattern)
	if err := c.AddResource(location, doc); err != nil {
		return nil, faultOf(err)
	}
	compiled, err := c.Compile(location)
	if err != nil {
		return nil, faultOf(err)
	}
	m := measure{under: map[*jsonschema.Schema]bool{}}
	if f := m.schema(compiled, false); f != nil {
		return nil, f
	}
	return &Schema{compiled}, nil
}

// refuse finds what would change what references mean.
func refuse(v any, at string) *Fault {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			here := at + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
			switch name {
			case "$id", "$dynamicRef", "$dynamicAnchor", "$vocabulary":
				if _, isText := value.(string); isText || name == "$vocabulary" {
					return &Fault{here, "is not supported"}
				}
			case "$ref":
				if to, isText := value.(string); isText && !strings.HasPrefix(to, "#") {
					return &Fault{here, "must begin with #: only what is in the schema itself can be referred to"}
				}
			}
			if f := refuse(value, here); f != nil {
				return f
			}
		}
	case []any:
		for i, value := range v {
			if f := refuse(value, fmt.Sprintf("%s/%d", at, i)); f != nil {
				return f
			}
		}
	}
	return nil
}

// nothing loads nothing: what is referred to must be there.
type nothing struct{}

func (nothing) Load(string) (any, error) {
	return nil, errors.New("refers to something outside the schema")
}

// faultOf says of an error of the library what whoever wrote the schema can use.
func faultOf(err error) *Fault {
	var invalid *jsonschema.SchemaValidationError
	var pattern *jsonschema.InvalidRegexError
	var violation *jsonschema.ValidationError
	var missing *jsonschema.JSONPointerNotFoundError
	var anchor *jsonschema.AnchorNotFoundError
	switch {
	case errors.As(err, &pattern):
		_, at, _ := strings.Cut(pattern.URL, "#")
		return &Fault{at, "is a pattern that is not of RE2, or too large"}
	case errors.As(err, &missing), errors.As(err, &anchor):
		return &Fault{"", "refers to something that it does not have"}
	case errors.As(err, &invalid) && errors.As(invalid.Err, &violation):
		if list := violations(violation, nil); len(list) > 0 {
			return &Fault{strings.TrimPrefix(list[0].Pointer, "#"), list[0].Detail}
		}
	}
	return &Fault{"", "is not a schema of JSON Schema 2020-12"}
}

// subject is a compiled pattern.
type subject struct{ *regexp.Regexp }

// MatchString tells whether a text matches. One that is too long does not.
func (s subject) MatchString(text string) bool {
	return len(text) <= maxSubject && s.Regexp.MatchString(text)
}

func compilePattern(text string) (jsonschema.Regexp, error) {
	if len(text) > maxPattern {
		return nil, errors.New("too long")
	}
	re, err := regexp.Compile(text)
	return subject{re}, err
}

// measure finds out how much work a schema may be.
type measure struct {
	under                      map[*jsonschema.Schema]bool // those that it is a part of
	schemas, repeated, program int
}

// schema adds a schema. One that is repeated may be applied to every value of an event, any other to one.
func (m *measure) schema(s *jsonschema.Schema, repeated bool) *Fault {
	if s == nil {
		return nil
	}
	_, at, _ := strings.Cut(s.Location, "#")
	if m.under[s] {
		return &Fault{at, "refers to itself, or to what it is a part of"}
	}
	m.under[s] = true
	defer delete(m.under, s)

	size := 1 + len(s.Required) + len(s.DependentRequired)
	if s.Enum != nil {
		size += len(s.Enum.Values)
	}
	if m.schemas += size; repeated {
		m.repeated += size
	}
	patterns := []jsonschema.Regexp{s.Pattern}
	for p := range s.PatternProperties {
		patterns = append(patterns, p)
	}
	for _, p := range patterns {
		if p != nil {
			m.program += instructions(p.String())
		}
	}
	if m.schemas > maxSchemas || m.repeated > maxRepeated || m.program > maxProgram {
		return &Fault{at, "takes the schema beyond what may be checked of an event: it has too many parts, references to " +
			"large parts, parts for any item or member, or patterns"}
	}

	once := append([]*jsonschema.Schema{s.Ref, s.Not, s.If, s.Then, s.Else}, s.PrefixItems...)
	for _, list := range [][]*jsonschema.Schema{s.AllOf, s.AnyOf, s.OneOf} {
		once = append(once, list...)
	}
	for _, named := range []map[string]*jsonschema.Schema{s.Properties, s.DependentSchemas} {
		for _, sub := range named {
			once = append(once, sub)
		}
	}
	for _, d := range s.Dependencies {
		if sub, ok := d.(*jsonschema.Schema); ok {
			once = append(once, sub)
		}
	}
	often := []*jsonschema.Schema{s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems}
	if sub, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
		often = append(often, sub)
	}
	for _, sub := range s.PatternProperties {
		often = append(often, sub)
	}
	for _, sub := range once {
		if f := m.schema(sub, repeated); f != nil {
			return f
		}
	}
	for _, sub := range often {
		if f := m.schema(sub, true); f != nil {
			return f
		}
	}
	return nil
}

// instructions is how large a pattern's program is.
func instructions(pattern string) int {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return maxProgram + 1
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return maxProgram + 1
	}
	return len(prog.Inst)
}

// reader decodes JSON with exact numbers, up to a number of values.
type reader struct {
	d    *jsontext.Decoder
	most int
	read int
}

var (
	errTooMany = errors.New("too many values")
	errTooDeep = errors.New("too deep")
	errNumber  = errors.New("a number out of all proportion")

	errTrailing = errors.New("something behind the value")
)

func (r *reader) value(depth int) (any, error) {
	if r.read++; r.read > r.most {
		return nil, errTooMany
	}
	t, err := r.d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch t.Kind() {
	case '{', '[':
		if depth > maxDepth {
			return nil, errTooDeep
		}
	case '"':
		return t.String(), nil
	case '0':
		n := t.String()
		if i := strings.IndexAny(n, "eE"); len(n) > maxNumber || i >= 0 && len(strings.TrimLeft(n[i+1:], "+-0")) > 3 {
			return nil, errNumber // exact, it might fill the memory
		}
		return json.Number(n), nil
	case 't', 'f':
		return t.Bool(), nil
	default:
		return nil, nil
	}
	if t.Kind() == '[' {
		list := []any{}
		for r.d.PeekKind() != ']' {
			v, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := r.d.ReadToken()
		return list, err
	}
	object := map[string]any{}
	for r.d.PeekKind() != '}' {
		name, err := r.d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		if object[key], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	_, err = r.d.ReadToken()
	return object, err
}
