package activation

import (
	"bytes"
	"errors"
	"iter"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// prepare checks settings, of which somebody gave the secrets given, and returns what is to be stored.
func prepare(p Partner, s Settings, given jsontext.Value) (Settings, error) {
	masked := checkMasked(given)
	s, err := p.Prepare(s)
	if err = onePerPlace(errors.Join(masked, err)); err != nil {
		return Settings{}, err
	}
	return s, nil
}

// checkMasked refuses secrets in the form in which they are shown: what was read must not be written back.
func checkMasked(secrets jsontext.Value) error {
	var errs []error
	for at, text := range eachText(secrets) {
		if strings.Contains(text, "…") {
			errs = append(errs, &FieldError{
				Pointer: "/secrets" + string(at), Detail: "is the masked form; send the real secret, or leave secrets out",
			})
		}
	}
	return errors.Join(errs...)
}

// eachText returns the strings in a JSON value, names aside, and where they are.
func eachText(v jsontext.Value) iter.Seq2[jsontext.Pointer, string] {
	return func(yield func(jsontext.Pointer, string) bool) {
		d := jsontext.NewDecoder(bytes.NewReader(v))
		for {
			token, err := d.ReadToken()
			if err != nil { // its end, or no JSON any more
				return
			}
			kind, length := d.StackIndex(d.StackDepth())
			if name := kind == '{' && length%2 == 1; token.Kind() != '"' || name {
				continue
			}
			if !yield(d.StackPointer(), token.String()) {
				return
			}
		}
	}
}

// onePerPlace keeps the first [*FieldError] about each place, and none about what is inside of one that is wrong itself.
// Errors of other kinds stay.
func onePerPlace(err error) error {
	var kept []error
	var wrong []string
	for _, err := range leaves(err) {
		field, ok := err.(*FieldError)
		if ok && slices.ContainsFunc(wrong, func(at string) bool { return strings.HasPrefix(field.Pointer+"/", at+"/") }) {
			continue
		}
		if ok {
			wrong = append(wrong, field.Pointer)
		}
		kept = append(kept, err)
	}
	return errors.Join(kept...)
}

// leaves returns the errors that are joined in one.
func leaves(err error) (list []error) {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range several.Unwrap() {
			list = append(list, leaves(e)...)
		}
	} else if err != nil {
		list = append(list, err)
	}
	return list
}
