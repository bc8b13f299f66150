package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-playground/validator/v10"

	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
)

const (
	maxBody  = 256 << 10
	maxDepth = 64 // of arrays and objects in a body
)

// readBody returns the body of r, of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	if r.Body == nil || r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		p := problem.New(http.StatusRequestEntityTooLarge, "too_large", "The request body is too large.")
		p.Detail = fmt.Sprintf("At most %d bytes are read.", limit)
		return nil, p
	case err != nil:
		return nil, malformed("The body ended before its length was reached.")
	}
	return body, nil
}

// decode reads the body into v, a pointer to a struct, and validates it. Members that v does not have are refused, and so
// is null for any but those that nullable names. What is wrong is returned as a problem.
func (c *call) decode(v any, nullable ...string) error {
	if err := c.checkMediaType(); err != nil {
		return err
	}
	if err := scan(c.body, nullable); err != nil {
		return err
	}
	err := json.Unmarshal(c.body, v, json.RejectUnknownMembers(true))
	var semantic *json.SemanticError
	switch {
	case err == nil:
		return validate(v)
	case errors.As(err, &semantic) && errors.Is(semantic.Err, json.ErrUnknownName):
		p := problem.New(http.StatusBadRequest, "unknown_member", "The request body has a member that is not known here.")
		p.Errors = []problem.FieldError{{Pointer: pointer(semantic.JSONPointer), Code: "unknown_member", Detail: "is not known here"}}
		return p
	case errors.As(err, &semantic):
		return invalid(problem.FieldError{Pointer: pointer(semantic.JSONPointer), Code: "wrong_type", Detail: "must be " + named(semantic.GoType)})
	default:
		return malformed("The body is not valid JSON.")
	}
}

// noBody refuses a body where none is read, but for an empty object.
func (c *call) noBody() error {
	if body := bytes.TrimSpace(c.body); len(body) > 0 && string(body) != "{}" {
		return malformed("This operation takes no body.")
	}
	return nil
}

func (c *call) checkMediaType() error {
	want := []string{"application/json"}
	if c.Method == http.MethodPatch {
		want = append(want, "application/merge-patch+json")
	}
	got, params, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	encoding := c.Header.Get("Content-Encoding")
	if err != nil || !slices.Contains(want, got) || charset != "" && charset != "utf-8" ||
		encoding != "" && !strings.EqualFold(encoding, "identity") {
		p := problem.New(http.StatusUnsupportedMediaType, "unsupported_media_type", "The body is of a type that is not read here.")
		p.Detail = "Send JSON in UTF-8, unencoded, with Content-Type: " + strings.Join(want, " or ") + "."
		return p
	}
	return nil
}

// scan finds what is wrong with a body whatever it is about: it must be one JSON object, without duplicate names, invalid
// UTF-8, or NULs, which Postgres cannot keep.
func scan(body []byte, nullable []string) error {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		t, err := d.ReadToken()
		if err == io.EOF && d.StackDepth() == 0 && d.InputOffset() > 0 && len(bytes.TrimSpace(body)) > 0 {
			return nil
		}
		if err != nil {
			var syntactic *jsontext.SyntacticError
			switch {
			case len(bytes.TrimSpace(body)) == 0:
				return malformed("The body is empty; send a JSON object.")
			case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
				p := malformed("A name occurs twice in one object.")
				p.Errors = []problem.FieldError{{Pointer: pointer(syntactic.JSONPointer), Code: "duplicate_member", Detail: "occurs twice"}}
				return p
			default:
				return malformed(fmt.Sprintf("The body is not valid JSON at or after byte %d.", d.InputOffset()))
			}
		}
		at := func() string { return pointer(d.StackPointer()) }
		switch {
		case d.StackDepth() > maxDepth:
			return malformed(fmt.Sprintf("The body is nested more than %d deep.", maxDepth))
		case d.StackDepth() == 0 && t.Kind() != '}':
			return invalid(problem.FieldError{Pointer: "#", Code: "wrong_type", Detail: "must be an object"})
		case d.StackDepth() == 1 && t.Kind() == '[':
			return invalid(problem.FieldError{Pointer: "#", Code: "wrong_type", Detail: "must be an object"})
		case d.StackDepth() == 1 && t.Kind() == 'n' && !slices.Contains(nullable, d.StackPointer().LastToken()):
			return invalid(problem.FieldError{Pointer: at(), Code: "wrong_type", Detail: "must not be null"})
		case t.Kind() == '"' && strings.ContainsRune(t.String(), 0):
			return invalid(problem.FieldError{Pointer: at(), Code: "nul", Detail: "must not contain U+0000"})
		}
	}
}

// validate checks the tags of v, a pointer to a struct.
func validate(v any) error {
	err := validators.Struct(v)
	var faults validator.ValidationErrors
	if err == nil {
		return nil
	}
	if !errors.As(err, &faults) {
		return err
	}
	list := make([]problem.FieldError, len(faults))
	for i, f := range faults {
		list[i] = problem.FieldError{Pointer: namespacePointer(v, f.Namespace()), Code: f.Tag(), Detail: detail(f)}
	}
	return invalid(list...)
}

var validators = newValidators()

func newValidators() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		return name
	})
	must := func(tag string, holds func(validator.FieldLevel) bool) {
		if err := v.RegisterValidation(tag, holds); err != nil {
			panic(err) // the tag is empty or reserved
		}
	}
	must("key", func(f validator.FieldLevel) bool {
		s := f.Field().String()
		return humanKey.MatchString(s) && !looksLikeID.MatchString(s)
	})
	must("dialect", func(f validator.FieldLevel) bool { return slices.Contains(collector.Dialects(), f.Field().String()) })
	must("future", func(f validator.FieldLevel) bool {
		t, ok := f.Field().Interface().(time.Time)
		return ok && t.After(time.Now())
	})
	return v
}

var (
	humanKey    = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	looksLikeID = regexp.MustCompile(`^(ws|src|seg|dst|ct|map)_[0-9]+$`)
)

// detail says what a rule asks for, to be read behind the pointer.
func detail(f validator.FieldError) string {
	length, things := "have ", " characters"
	switch f.Kind() {
	case reflect.Slice:
		things = " items"
	case reflect.Int:
		length, things = "be ", ""
	}
	switch f.Tag() {
	case "required":
		return "is required"
	case "key":
		return "must be 1 to 63 lower-case letters, digits, - and _, the first a letter or digit, and not of the form of an id"
	case "max":
		return "must " + length + "at most " + f.Param() + things
	case "min":
		return "must " + length + "at least " + f.Param() + things
	case "oneof":
		return "must be one of " + strings.Join(strings.Fields(f.Param()), ", ")
	case "unique":
		return "must not contain anything twice"
	case "dialect":
		return "must be one of " + strings.Join(collector.Dialects(), ", ")
	case "future":
		return "must be in the future"
	case "required_with":
		return "is required with " + strings.ToLower(f.Param())
	default:
		return "is invalid"
	}
}

// namespacePointer turns "newKey.scopes[1]", or "scopes[1]" if the type of v has no name, into "#/scopes/1".
func namespacePointer(v any, namespace string) string {
	if name := reflect.TypeOf(v).Elem().Name(); name != "" {
		namespace = strings.TrimPrefix(namespace, name+".")
	}
	path := strings.NewReplacer("[", ".", "]", "").Replace(namespace)
	return problem.Pointer(strings.Split(path, ".")...)
}

func pointer(p jsontext.Pointer) string { return problem.Pointer(slices.Collect(p.Tokens())...) }

// named says what JSON a Go type is read from.
func named(t reflect.Type) string {
	if t == nil {
		return "something else"
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[time.Time]() {
		return "a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "an array"
	default:
		return "an object"
	}
}

func malformed(detail string) *problem.Problem {
	p := problem.New(http.StatusBadRequest, "malformed", "The request body cannot be read.")
	p.Detail = detail
	return p
}

func invalid(faults ...problem.FieldError) *problem.Problem {
	p := problem.New(http.StatusUnprocessableEntity, "invalid", "The request body is invalid.")
	p.Errors = faults
	return p
}

func badParameter(name, detail string) *problem.Problem {
	p := problem.New(http.StatusBadRequest, "bad_parameter", "A parameter of the request is wrong.")
	p.Detail = "The parameter " + strconv.Quote(name) + " " + detail + "."
	return p
}
