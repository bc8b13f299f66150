package activation

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// personMembers are the members of messages that hold what a person is known by, or is like, as lower-case letters.
var personMembers = []string{
	"traits", "usertraits", "identifiers", "identities", "user", "userdata", "userinfo", "userids", "useridentifiers",
	"userproperties", "userid", "anonymousid", "previousid", "clientid", "appinstanceid", "externalid", "externalids", "person",
	"profile", "profileid", "email", "emails", "phone", "phones", "phonenumber", "phonenumbers", "firstname", "lastname",
	"addressinfo", "ip", "ipaddress", "clientipaddress", "useragent", "clientuseragent", "customerlistitems",
}

// kindMembers are those of a person's members that say what another one is.
var kindMembers = []string{"kind", "type", "idtype"}

var (
	word = regexp.MustCompile(`^[A-Za-z0-9_]{1,32}$`)
	date = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?$`)
)

// redactJSON returns JSON values as they may be shown: their members' names, numbers, dates and words, and those texts that
// are open, but nothing of what stands where a person is described, and nothing that looks personal or secret. ok is false
// if it is not JSON.
func redactJSON(body []byte, open []string) (shown []byte, ok bool) {
	lenient := []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}
	var out bytes.Buffer
	in, enc := jsontext.NewDecoder(bytes.NewReader(body), lenient...), jsontext.NewEncoder(&out, lenient...)
	for n := 0; ; n++ {
		if in.PeekKind() == 0 {
			_, err := in.ReadToken()
			return bytes.TrimSpace(out.Bytes()), n > 0 && errors.Is(err, io.EOF)
		}
		if err := redactValue(in, enc, "", false, open); err != nil {
			return nil, false
		}
	}
}

// redactValue copies one value, that of a member of some name, redacted. Of a person's nothing is left but what it is.
func redactValue(in *jsontext.Decoder, out *jsontext.Encoder, name string, personal bool, open []string) error {
	kind := in.PeekKind()
	switch kind {
	case '{', '[':
		begin, err := in.ReadToken()
		if err != nil {
			return err
		}
		if err := out.WriteToken(begin); err != nil {
			return err
		}
		for in.PeekKind() != '}' && in.PeekKind() != ']' {
			member, person := name, personal
			if kind == '{' {
				token, err := in.ReadToken()
				if err != nil {
					return err
				}
				member = token.String()
				plain := letters(member)
				person = personal || slices.Contains(personMembers, plain)
				if err := out.WriteToken(jsontext.String(member)); err != nil {
					return err
				}
			}
			if err := redactValue(in, out, member, person, open); err != nil {
				return err
			}
		}
		end, err := in.ReadToken()
		if err != nil {
			return err
		}
		return out.WriteToken(end)
	}
	v, err := in.ReadValue()
	if err != nil {
		return err
	}
	var text string
	if kind == '"' {
		if err := json.Unmarshal(v, &text, jsontext.AllowInvalidUTF8(true)); err != nil {
			return err
		}
	}
	switch {
	case kind == 'n':
	case kind == '"' && hashLike.MatchString(text):
		return out.WriteToken(jsontext.String(text[:4] + "…"))
	case personal && kind == '"' && slices.Contains(kindMembers, letters(name)) && word.MatchString(text):
	case personal:
		return out.WriteToken(jsontext.String("…"))
	case kind == '"' && !slices.Contains(open, text) && !date.MatchString(text):
		return out.WriteToken(jsontext.String(redactText(text)))
	}
	return out.WriteValue(v)
}

// letters returns the letters of a name, in lower case.
func letters(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsLetter(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// redactText returns a text without what looks personal or secret.
func redactText(text string) string {
	return personal.ReplaceAllStringFunc(text, func(s string) string {
		if hashLike.MatchString(s) {
			return s[:4] + "…"
		}
		return "…"
	})
}

// textsIn returns the texts in a JSON value.
func textsIn(v jsontext.Value) (list []string) {
	for in := jsontext.NewDecoder(bytes.NewReader(v)); ; {
		token, err := in.ReadToken()
		if err != nil {
			return list
		}
		if token.Kind() == '"' {
			list = append(list, token.String())
		}
	}
}
