package webhook

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxDeliveries bounds what one request may bring.
const MaxDeliveries = 2500

var jsonOptions = []jsontext.Options{jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)}

var (
	errEmpty   = errors.New("the body is empty; send JSON")
	errNotJSON = errors.New("the body is not JSON")
	errMany    = fmt.Errorf("the body has more than %d items", MaxDeliveries)
)

// identified reads a body that is one delivery, JSON or a form. The id is derived from the body if id is nil or finds none.
func identified(id func(h http.Header, body []byte) string) func(*http.Request, []byte) ([]Delivery, error) {
	return func(r *http.Request, body []byte) ([]Delivery, error) {
		payload, err := payloadOf(r, body)
		if err != nil {
			return nil, err
		}
		d := Delivery{Body: payload}
		if id != nil {
			d.ID = id(r.Header, payload)
		}
		return []Delivery{d}, nil
	}
}

func inHeader(name string) func(http.Header, []byte) string {
	return func(h http.Header, _ []byte) string { return h.Get(name) }
}

func inBody(name string) func(http.Header, []byte) string {
	return func(_ http.Header, body []byte) string { return member(body, name) }
}

// derivedID returns an id for what has none: what is sent again has the same.
func derivedID(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha256-" + hex.EncodeToString(sum[:16])
}

// payloadOf returns the JSON of a body, which may be a form: of its fields, or of the one called payload.
func payloadOf(r *http.Request, body []byte) ([]byte, error) {
	if mediaType(r) == "application/x-www-form-urlencoded" {
		return formJSON(body)
	}
	return checked(body)
}

// checked returns the one JSON value that body is.
func checked(body []byte) ([]byte, error) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	switch {
	case len(body) == 0:
		return nil, errEmpty
	case !jsontext.Value(body).IsValid(jsonOptions...):
		return nil, errNotJSON
	}
	return body, nil
}

func mediaType(r *http.Request) string {
	t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return t
}

// elements returns the elements of a JSON array, or the value itself if it is none.
func elements(body []byte) ([][]byte, error) {
	body, err := checked(body)
	if err != nil {
		return nil, err
	}
	if body[0] != '[' {
		return [][]byte{body}, nil
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), jsonOptions...)
	_, _ = dec.ReadToken()
	var list [][]byte
	for dec.PeekKind() != ']' {
		if len(list) == MaxDeliveries {
			return nil, errMany
		}
		value, err := dec.ReadValue()
		if err != nil {
			return nil, errNotJSON
		}
		list = append(list, bytes.Clone(value))
	}
	return list, nil
}

// member returns the text of a member of a JSON object that is a string or a number, and otherwise nothing.
func member(object []byte, name string) string {
	dec := jsontext.NewDecoder(bytes.NewBuffer(object), jsonOptions...)
	if dec.PeekKind() != '{' {
		return ""
	}
	_, _ = dec.ReadToken()
	for dec.PeekKind() == '"' {
		key, err := dec.ReadToken()
		if err != nil {
			return ""
		}
		if key.String() != name {
			if dec.SkipValue() != nil {
				return ""
			}
			continue
		}
		switch value, _ := dec.ReadValue(); value.Kind() {
		case '"':
			text, _ := jsontext.AppendUnquote(nil, value) // what is not UTF-8 in it is replaced
			return strings.ToValidUTF8(string(text), "\uFFFD")
		case '0':
			return string(value)
		}
		return ""
	}
	return ""
}

// Bounds of forms.
const (
	maxFormFields = 1000
	maxFormDepth  = 16
)

// formJSON returns the object that a form stands for: a[b][c]=d is {"a":{"b":{"c":"d"}}}. If it has a field called payload
// that holds JSON, that is all there is to it: GitHub and Slack send such.
func formJSON(body []byte) ([]byte, error) {
	fields, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, errors.New("the body is not a form")
	}
	if payload := fields.Get("payload"); strings.HasPrefix(payload, "{") {
		return checked([]byte(payload))
	}
	if len(fields) == 0 {
		return nil, errEmpty
	}
	if len(fields) > maxFormFields {
		return nil, fmt.Errorf("the form has more than %d fields", maxFormFields)
	}
	root := map[string]any{}
	for name, values := range fields {
		path := strings.Split(strings.ReplaceAll(name, "]", ""), "[")
		if len(path) > maxFormDepth {
			return nil, fmt.Errorf("a field of the form is nested more than %d deep", maxFormDepth)
		}
		if !put(root, path, values) {
			return nil, errors.New("the form has fields that contradict each other")
		}
	}
	return json.Marshal(root)
}

// put sets what is at a path. It is false if something else is there, or in its way.
func put(object map[string]any, path, values []string) bool {
	for _, name := range path[:len(path)-1] {
		if path[len(path)-1] == "" && name == path[len(path)-2] {
			break // a[]=1&a[]=2 is a list
		}
		child, ok := object[name]
		if !ok {
			child = map[string]any{}
			object[name] = child
		}
		if object, ok = child.(map[string]any); !ok {
			return false
		}
	}
	last, list := path[len(path)-1], len(values) > 1
	if last == "" && len(path) > 1 {
		last, list = path[len(path)-2], true
	}
	if _, ok := object[last]; ok {
		return false
	}
	if list {
		object[last] = values
	} else {
		object[last] = values[0]
	}
	return true
}

// values returns the JSON values of data one after the other: a record of a stream may have several, with or without
// anything between them but white space. More than most are errMany.
func values(data []byte, most int) ([][]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))), jsonOptions...)
	var list [][]byte
	for {
		value, err := dec.ReadValue()
		switch {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, errNotJSON
		case len(list) == most:
			return nil, errMany
		}
		list = append(list, bytes.Clone(value))
	}
}
