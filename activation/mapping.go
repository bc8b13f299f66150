package activation

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Mapping says what a partner calls an event, and where the fields of the partner's event come from.
type Mapping struct {
	Name   string           `json:"name,omitzero"`
	Fields map[string]Field `json:"fields,omitzero"` // by the partner's names
}

// Field is where one field of a partner's event comes from: a path into our event, a value that is always the same, or a
// cell that computes it.
type Field struct {
	// Path leads into the event as it came in, members and indexes of arrays separated by dots: properties.total,
	// context.page.url, properties.products.0.sku.
	Path string `json:"path,omitzero"`

	// Value is any JSON. null leaves the field out.
	Value jsontext.Value `json:"value,omitzero"`

	// Cell is what package mapping makes of the event: a path with functions, an expression, or an object that says how.
	Cell jsontext.Value `json:"cell,omitzero"`
}

// At returns the field that a path leads to.
func At(path string) Field { return Field{Path: path} }

const (
	maxFields  = 50
	maxPath    = 200
	maxLiteral = 1000
	maxCell    = 4000
)

// roots are what the paths of fields begin with.
var roots = []string{
	"anonymousId", "context", "event", "groupId", "messageId", "name", "properties", "timestamp", "traits", "type", "userId",
}

// over returns m with what a subscription says instead.
func (m Mapping) over(by Mapping) Mapping {
	if by.Name != "" {
		m.Name = by.Name
	}
	m.Fields = maps.Clone(m.Fields)
	if m.Fields == nil {
		m.Fields = map[string]Field{}
	}
	maps.Copy(m.Fields, by.Fields)
	return m
}

// check tells what is wrong with a mapping of any partner, as [*FieldError]s under /name and /fields.
func (m Mapping) check() error {
	var errs []error
	if len(m.Name) > 200 || strings.ContainsFunc(m.Name, func(r rune) bool { return r < ' ' }) {
		errs = append(errs, &FieldError{Pointer: "/name", Detail: "must be at most 200 bytes, without control characters"})
	}
	if len(m.Fields) > maxFields {
		errs = append(errs, &FieldError{Pointer: "/fields", Detail: "must be at most " + strconv.Itoa(maxFields)})
	}
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		at := "/fields/" + escapePointer.Replace(name)
		if name == "" || len(name) > 100 {
			errs = append(errs, &FieldError{Pointer: at, Detail: "must have a name of 1 to 100 bytes"})
		}
		if wrong, where := m.Fields[name].check(); wrong != "" {
			errs = append(errs, &FieldError{Pointer: at + where, Detail: wrong})
		}
	}
	return errors.Join(errs...)
}

var escapePointer = strings.NewReplacer("~", "~0", "/", "~1")

func (f Field) check() (wrong, where string) {
	given := 0
	for _, is := range []bool{f.Path != "", f.Value != nil, f.Cell != nil} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return "must have either path, value or cell", ""
	case len(f.Cell) > maxCell:
		return "must be at most " + strconv.Itoa(maxCell) + " bytes", "/cell"
	case f.Cell != nil:
		return wrongCell(f.Cell), "/cell"
	case len(f.Value) > maxLiteral:
		return "must be at most " + strconv.Itoa(maxLiteral) + " bytes", "/value"
	case f.Value != nil:
		return "", ""
	case len(f.Path) > maxPath:
		return "must be at most " + strconv.Itoa(maxPath) + " bytes", "/path"
	}
	steps := strings.Split(f.Path, ".")
	if slices.Contains(steps, "") {
		return "must not have empty steps", "/path"
	}
	if !slices.Contains(roots, steps[0]) {
		return "must begin with one of " + strings.Join(roots, ", "), "/path"
	}
	return "", ""
}

// apply returns the fields that a mapping finds in an event, its numbers as they were written, or why one of them cannot be
// made.
func (m Mapping) apply(body []byte, received time.Time) (fields map[string]jsontext.Value, reason string) {
	fields = make(map[string]jsontext.Value, len(m.Fields))
	var cells map[string]jsontext.Value
	for name, f := range m.Fields {
		v := f.Value
		switch {
		case f.Cell != nil:
			if cells == nil {
				cells = map[string]jsontext.Value{}
			}
			cells[name] = f.Cell
		case f.Path != "":
			v = lookUp(body, strings.Split(f.Path, "."))
		}
		if v != nil && v.Kind() != 'n' {
			fields[name] = v
		}
	}
	if cells == nil {
		return fields, ""
	}
	computed, reason := compute(cells, body, received)
	maps.Copy(fields, computed)
	return fields, reason
}

// lookUp returns what is at the end of a path, or nil.
func lookUp(v jsontext.Value, path []string) jsontext.Value {
	for _, step := range path {
		switch v.Kind() {
		case '{':
			v = membersOf(v)[step]
		case '[':
			var elements []jsontext.Value
			i, err := strconv.ParseUint(step, 10, 16)
			if err != nil || json.Unmarshal(v, &elements) != nil || int(i) >= len(elements) {
				return nil
			}
			v = elements[i]
		default:
			return nil
		}
	}
	return v
}
