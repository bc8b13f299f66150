package wire

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-playground/validator/v10"

	"github.com/mubatch/mubatch/activation"
)

// Check reads what somebody wants to store as a destination's settings, into pointers to structs, and holds them to their
// `validate` tags. What is wrong it returns as *[activation.FieldError]s, joined: all at once.
func Check(s activation.Settings, config, secrets any) error {
	return errors.Join(check("/config", s.Config, config), check("/secrets", s.Secrets, secrets))
}

func check(at string, v jsontext.Value, into any) error {
	if err := read(v, into); err != nil {
		var semantic *json.SemanticError
		if errors.As(err, &semantic) && semantic.JSONPointer != "" {
			detail := "has the wrong type"
			if errors.Is(err, json.ErrUnknownName) {
				detail = "is not known here"
			}
			return &activation.FieldError{Pointer: at + string(semantic.JSONPointer), Detail: detail}
		}
		return &activation.FieldError{Pointer: at, Detail: "cannot be read"}
	}
	err := fields.Struct(into)
	var faults validator.ValidationErrors
	if !errors.As(err, &faults) {
		return err
	}
	list := make([]error, len(faults))
	for i, f := range faults {
		_, path, _ := strings.Cut(f.Namespace(), ".")
		path = strings.NewReplacer(embedded+".", "", ".", "/", "[", "/", "]", "").Replace(path)
		list[i] = &activation.FieldError{Pointer: at + "/" + path, Detail: detail(f)}
	}
	return errors.Join(list...)
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

// detail says what a rule asks for, to be read behind the pointer.
func detail(f validator.FieldError) string {
	many := f.Kind() == reflect.Slice
	switch number := f.Kind() >= reflect.Int && f.Kind() <= reflect.Float64; f.Tag() {
	case "required", "required_without", "required_with", "required_if":
		return "is required"
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
	case "iso3166_1_alpha2":
		return "must be the two upper-case letters of a country (ISO 3166)"
	default:
		return "is not valid"
	}
}
