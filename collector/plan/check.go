package plan

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/profiles"
)

// maxViolations is how many are told of one event.
const maxViolations = 10

// Check returns what is wrong with an event, JSON without anything twice, or nothing if it is as the schema says. An event
// without properties, or of identify and group calls without traits, is checked as if it had empty ones. What is told tells of the schema, and of the event no more than the names of members. It is safe for concurrent use.
func (s *Schema) Check(event []byte) []profiles.Violation {
	r := reader{d: jsontext.NewDecoder(bytes.NewBuffer(event)), most: maxValues}
	v, err := r.value(1)
	if errors.Is(err, errTooMany) {
		return []profiles.Violation{{Code: "too_complex", Pointer: "#", Detail: fmt.Sprintf("has more than %d values, which is too much to be checked", maxValues)}}
	}
	if err != nil {
		return []profiles.Violation{{Code: "unreadable", Pointer: "#", Detail: "cannot be read"}}
	}
	if object, ok := v.(map[string]any); ok {
		member := "properties"
		if object["type"] == "identify" || object["type"] == "group" {
			member = "traits"
		}
		if _, given := object[member]; !given {
			object[member] = map[string]any{}
		}
	}
	var invalid *jsonschema.ValidationError
	if err := s.compiled.Validate(v); !errors.As(err, &invalid) {
		return nil
	}
	list := violations(invalid, nil)
	if len(list) == 0 {
		list = []profiles.Violation{{Code: "schema", Pointer: "#", Detail: "is not as the schema says"}}
	}
	return list
}

// violations appends what an error of the library says, as far as it is about something in particular.
func violations(e *jsonschema.ValidationError, list []profiles.Violation) []profiles.Violation {
	add := func(code, detail string, more ...string) {
		if len(list) < maxViolations {
			at := append(append([]string(nil), e.InstanceLocation...), more...)
			list = append(list, profiles.Violation{Code: code, Pointer: problem.Pointer(at...), Detail: detail})
		}
	}
	switch k := e.ErrorKind.(type) {
	case *kind.Schema, *kind.Group, *kind.Reference, *kind.AllOf:
		for _, cause := range e.Causes {
			list = violations(cause, list)
		}
	case *kind.Required:
		for _, name := range k.Missing {
			add("required", "is required", name)
		}
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			add("additional_properties", "is not in the plan", name)
		}
	case *kind.DependentRequired:
		for _, name := range k.Missing {
			add("dependent_required", "is required with "+k.Prop, name)
		}
	case *kind.Type:
		add("type", "must be "+strings.Join(k.Want, " or "))
	case *kind.Enum:
		add("enum", "must be one of "+values(k.Want...))
	case *kind.Const:
		add("const", "must be "+values(k.Want))
	case *kind.Format:
		if k.Want == "regex" { // of a schema's own pattern
			add("format", "must be a regular expression of RE2, of no more than 1000 bytes")
			break
		}
		add("format", "must be of the format "+k.Want)
	case *kind.Pattern:
		add("pattern", "must match "+k.Want)
	case *kind.Minimum:
		add("minimum", "must be at least "+number(k.Want))
	case *kind.Maximum:
		add("maximum", "must be at most "+number(k.Want))
	case *kind.ExclusiveMinimum:
		add("exclusive_minimum", "must be more than "+number(k.Want))
	case *kind.ExclusiveMaximum:
		add("exclusive_maximum", "must be less than "+number(k.Want))
	case *kind.MultipleOf:
		add("multiple_of", "must be a multiple of "+number(k.Want))
	case *kind.MinLength:
		add("min_length", fmt.Sprintf("must have at least %d characters", k.Want))
	case *kind.MaxLength:
		add("max_length", fmt.Sprintf("must have at most %d characters", k.Want))
	case *kind.MinItems:
		add("min_items", fmt.Sprintf("must have at least %d items", k.Want))
	case *kind.MaxItems:
		add("max_items", fmt.Sprintf("must have at most %d items", k.Want))
	case *kind.MinProperties:
		add("min_properties", fmt.Sprintf("must have at least %d members", k.Want))
	case *kind.MaxProperties:
		add("max_properties", fmt.Sprintf("must have at most %d members", k.Want))
	case *kind.UniqueItems:
		add("unique_items", "must not have an item twice")
	case *kind.Contains, *kind.MinContains:
		add("contains", "has too few items of a kind")
	case *kind.MaxContains:
		add("contains", "has too many items of a kind")
	case *kind.PropertyNames:
		add("property_names", "has a member that may not be called so")
	case *kind.AnyOf:
		add("any_of", "is none of what it may be")
	case *kind.OneOf:
		add("one_of", "is not exactly one of what it may be")
	case *kind.Not:
		add("not", "is what it must not be")
	case *kind.FalseSchema:
		add("not_allowed", "is not allowed")
	default:
		add("schema", "is not as the schema says")
	}
	return list
}

// values prints values of the schema.
func values(list ...any) string {
	const most = 200
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
	}
	text := strings.Join(texts, ", ")
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// number prints a number as briefly as it can be exactly.
func number(n *big.Rat) string {
	if n.IsInt() && n.Num().BitLen() < 200 {
		return n.Num().String()
	}
	if text := strings.TrimRight(n.FloatString(20), "0"); len(text) < 50 {
		return text
	}
	f, _ := n.Float64()
	return fmt.Sprint(f)
}
