package wire

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-playground/validator/v10"

	"github.com/mubatch/mubatch/activation"
)

// Check reads what somebody wants to store as a destination's settings, into pointers to structs, and holds them to their
// `validate` tags. What is wrong it returns as *[activation.FieldError]s, joined: all at once, one for each member.
//
// Secrets are taken for tokens, which somebody may have copied with white space around them: that is cut off, and none may
// be inside. A secret that may hold any, such as a password, says so with the tag `secret:"text"`.
func Check(s activation.Settings, config, secrets any) error {
	return errors.Join(
		check("/config", s.Config, config, nil),
		check("/secrets", s.Secrets, secrets, func() []*activation.FieldError { return tidyTokens(reflect.ValueOf(secrets)) }))
}

// check tells what is wrong with settings that it reads. tidy, if there is one, comes between reading and the tags.
func check(at string, v jsontext.Value, into any, tidy func() []*activation.FieldError) error {
	wrong := decode(v, into)
	if len(wrong) == 1 && wrong[0].Pointer == "" { // nothing could be read
		wrong[0].Pointer = at
		return wrong[0]
	}
	if tidy != nil {
		wrong = append(wrong, tidy()...)
	}
	err := fields.Struct(into)
	var broken validator.ValidationErrors
	if err != nil && !errors.As(err, &broken) {
		return err
	}
	for _, f := range broken {
		_, path, _ := strings.Cut(f.Namespace(), ".")
		fault := &activation.FieldError{
			Pointer: "/" + strings.NewReplacer(embedded+".", "", ".", "/", "[", "/", "]", "").Replace(path), Detail: detail(f),
		}
		if strings.HasPrefix(f.Tag(), "required") {
			fault.Code = activation.CodeRequired
		}
		same := func(w *activation.FieldError) bool {
			return w.Pointer == fault.Pointer || strings.HasPrefix(w.Pointer, fault.Pointer+"/")
		}
		if !slices.ContainsFunc(wrong, same) {
			wrong = append(wrong, fault)
		}
	}
	list := make([]error, len(wrong))
	for i, w := range wrong {
		w.Pointer = at + w.Pointer
		list[i] = w
	}
	return errors.Join(list...)
}

// decode reads settings and tells which members are unknown or of a wrong type. Those are left out: what is said of the
// others holds.
func decode(v jsontext.Value, into any) (wrong []*activation.FieldError) {
	var whole any
	for {
		err := read(v, into)
		if err == nil {
			return wrong
		}
		var semantic *json.SemanticError
		if !errors.As(err, &semantic) {
			return []*activation.FieldError{{Detail: "cannot be read"}}
		}
		fault := &activation.FieldError{Pointer: string(semantic.JSONPointer), Detail: "is not known here", Code: activation.CodeUnknownMember}
		unknown := errors.Is(err, json.ErrUnknownName)
		if !unknown {
			fault.Detail, fault.Code = "must be "+named(semantic.GoType), activation.CodeWrongType
		}
		if wrong = append(wrong, fault); fault.Pointer == "" {
			return wrong[len(wrong)-1:]
		}
		if whole == nil && json.Unmarshal(v, &whole) != nil || !cut(whole, semantic.JSONPointer, unknown) {
			return wrong
		}
		if v, err = json.Marshal(whole, json.Deterministic(true)); err != nil {
			return wrong
		}
	}
}

// cut leaves out what is at a place in a value, and makes it null in a list, where the others keep their places. It tells
// whether there was something.
func cut(whole any, at jsontext.Pointer, unknown bool) bool {
	for parent := range at.Parent().Tokens() {
		switch v := whole.(type) {
		case map[string]any:
			whole = v[parent]
		case []any:
			i, err := strconv.Atoi(parent)
			if err != nil || i >= len(v) {
				return false
			}
			whole = v[i]
		}
	}
	switch name := at.LastToken(); v := whole.(type) {
	case map[string]any:
		_, found := v[name]
		delete(v, name)
		return found
	case []any:
		i, err := strconv.Atoi(name)
		if err != nil || i >= len(v) || v[i] == nil {
			return false
		}
		v[i] = nil
		return true
	}
	return false
}

// named says what JSON a Go type is read from.
func named(t reflect.Type) string {
	switch {
	case t == nil:
		return "something else"
	case t.Kind() == reflect.Pointer:
		return named(t.Elem())
	case t == reflect.TypeFor[time.Time]():
		return "a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
	}
	switch kind := t.Kind(); {
	case kind == reflect.String:
		return "a string"
	case kind == reflect.Bool:
		return "true or false"
	case kind >= reflect.Int && kind <= reflect.Uint64:
		return "a whole number"
	case kind == reflect.Float32, kind == reflect.Float64:
		return "a number"
	case kind == reflect.Slice, kind == reflect.Array:
		return "an array"
	default:
		return "an object"
	}
}

// tidyTokens cuts white space off the strings of a struct of secrets, and tells which have some inside.
func tidyTokens(v reflect.Value) (wrong []*activation.FieldError) {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return nil
	}
	white := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	for i := range v.NumField() {
		switch f := v.Type().Field(i); {
		case f.Anonymous:
			wrong = append(wrong, tidyTokens(v.Field(i))...)
		case f.Type.Kind() == reflect.String && f.Tag.Get("secret") != "text":
			token := strings.TrimFunc(v.Field(i).String(), white)
			v.Field(i).SetString(token)
			if strings.ContainsFunc(token, white) {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				wrong = append(wrong, &activation.FieldError{Pointer: "/" + name, Detail: "holds a space or line break"})
			}
		}
	}
	return wrong
}

// Read reads a destination's settings into pointers to structs.
func Read(s activation.Settings, config, secrets any) error {
	return errors.Join(read(s.Config, config), read(s.Secrets, secrets))
}

func read(v jsontext.Value, into any) error {
	if len(v) == 0 {
		return nil
	}
	return json.Unmarshal(v, into, json.RejectUnknownMembers(true))
}

// Settings returns settings in the form in which they are stored: the same settings in the same bytes.
func Settings(config, secrets any) (activation.Settings, error) {
	c, err := json.Marshal(config, json.Deterministic(true))
	if err != nil {
		return activation.Settings{}, fmt.Errorf("encode a destination's config: %w", err)
	}
	s, err := json.Marshal(secrets, json.Deterministic(true))
	if err != nil {
		return activation.Settings{}, fmt.Errorf("encode a destination's secrets: %w", err)
	}
	return activation.Settings{Config: c, Secrets: s}, nil
}

// Mask returns a secret in a form that may be shown: its last four characters, if they do not give much of it away.
func Mask(secret string) string {
	if len(secret) < 12 {
		return "…"
	}
	return "…" + secret[len(secret)-4:]
}

// BadSettings is the outcome of settings that cannot be read.
func BadSettings() activation.Outcome {
	return activation.Outcome{Class: activation.Config, Reason: "the destination's settings cannot be read"}
}

var fields = newFields()

// embedded stands for an embedded struct, whose members are those of what it is in.
const embedded = "^"

func newFields() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string {
		if f.Anonymous {
			return embedded
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		return name
	})
	return v
}

// words matches where a word begins in a Go name.
var words = regexp.MustCompile(`([a-z])([A-Z])`)

// detail says what a rule asks for, to be read behind the pointer.
func detail(f validator.FieldError) string {
	many := f.Kind() == reflect.Slice
	switch number := f.Kind() >= reflect.Int && f.Kind() <= reflect.Float64; f.Tag() {
	case "required", "required_with", "required_if":
		return "is required"
	case "required_without":
		return "is required, unless there is a " + strings.ToLower(words.ReplaceAllString(f.Param(), "${1}_$2"))
	case "min", "gte":
		if number {
			return "must be at least " + f.Param()
		}
		if many {
			return "must have at least " + f.Param() + " of them"
		}
		return "must have at least " + f.Param() + " characters"
	case "max", "lte":
		if number {
			return "must be at most " + f.Param()
		}
		if many {
			return "must have at most " + f.Param() + " of them"
		}
		return "must have at most " + f.Param() + " characters"
	case "unique":
		return "must not have one twice"
	case "oneof":
		return "must be one of " + strings.Join(strings.Fields(f.Param()), ", ")
	case "numeric", "number":
		return "must be digits only"
	case "url", "http_url", "https_url":
		return "must be a URL"
	case "len":
		return "must have " + f.Param() + " characters"
	case "printascii":
		return "must be of printable ASCII characters"
	case "alpha":
		return "must be letters only"
	case "iso3166_1_alpha2":
		return "must be the two upper-case letters of a country (ISO 3166)"
	default:
		return "is not valid"
	}
}
