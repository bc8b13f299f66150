package collector

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/api/problem"
)

// envelope is where the parts of a body lie.
type envelope struct {
	writeKey     string
	hasBatch     bool
	count        int    // of events
	events       []span // of no more than are allowed
	context      span
	integrations span
	sentAt       span
}

// jsonOptions let pass what the cleaner repairs or reports event by event.
var jsonOptions = []jsontext.Options{jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)}

// parseEnvelope reads a body once: it finds out whether it is JSON, and where what concerns the whole request lies. Of
// a batch it looks into the list of events, but not into them. An error is a *problem.Problem.
func parseEnvelope(text []byte, batch bool, maxEvents int) (envelope, error) {
	var env envelope
	dec := jsontext.NewDecoder(bytes.NewBuffer(text), jsonOptions...)
	if dec.PeekKind() != '{' {
		if _, err := dec.ReadValue(); err != nil {
			return env, syntaxProblem(text, err)
		}
		return env, malformed("wrong_type", "#", "must be an object")
	}
	if err := env.read(dec, batch, maxEvents); err != nil {
		var p *problem.Problem
		if errors.As(err, &p) {
			return env, p
		}
		return env, syntaxProblem(text, err)
	}
	if _, err := dec.ReadToken(); err == nil {
		return env, malformed("malformed_json", "#", "has something behind the end of the object")
	} else if !errors.Is(err, io.EOF) {
		return env, syntaxProblem(text, err)
	}
	return env, nil
}

func (env *envelope) read(dec *jsontext.Decoder, batch bool, maxEvents int) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	var seen [5]bool
	for dec.PeekKind() != '}' {
		name, err := dec.ReadValue()
		if err != nil {
			return err
		}
		part := envelopePart(name)
		if part < 0 || !batch && part != partWriteKey {
			if err := dec.SkipValue(); err != nil {
				return err
			}
			continue
		}
		if batch && seen[part] {
			return malformed("duplicate_member", "#/"+partNames[part], "is there twice")
		}
		seen[part] = true
		if part == partBatch {
			if err := env.readBatch(dec, maxEvents); err != nil {
				return err
			}
			continue
		}
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		end := int(dec.InputOffset())
		at := span{end - len(value), end}
		switch part {
		case partWriteKey:
			if value.Kind() == '"' {
				key, _ := jsontext.AppendUnquote(nil, value) // if it is not UTF-8 it is not a key either
				env.writeKey = string(key)
			}
		case partContext:
			env.context = at
		case partIntegrations:
			env.integrations = at
		case partSentAt:
			env.sentAt = at
		}
	}
	_, err := dec.ReadToken()
	return err
}

func (env *envelope) readBatch(dec *jsontext.Decoder, maxEvents int) error {
	if kind := dec.PeekKind(); kind != '[' {
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		if string(value) == "null" {
			return nil
		}
		return malformed("wrong_type", "#/batch", "must be an array")
	}
	env.hasBatch = true
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		if env.count++; env.count <= maxEvents {
			end := int(dec.InputOffset())
			env.events = append(env.events, span{end - len(value), end})
		}
	}
	_, err := dec.ReadToken()
	return err
}

const (
	partWriteKey = iota
	partBatch
	partContext
	partIntegrations
	partSentAt
)

var partNames = [...]string{"writeKey", "batch", "context", "integrations", "sentAt"}

// envelopePart returns which part of a request a name in quotes begins, or -1.
func envelopePart(quoted []byte) int {
	for part, name := range partNames {
		if len(quoted) == len(name)+2 && string(quoted[1:len(quoted)-1]) == name {
			return part
		}
	}
	return -1
}

// maxPointer bounds the place that a problem names, in bytes: of what lies deeper it names what it is in.
const maxPointer = 512

// syntaxProblem says where text stops being JSON.
func syntaxProblem(text []byte, err error) *problem.Problem {
	if len(bytes.TrimSpace(text)) == 0 {
		return malformed("malformed_json", "#", "is empty; send a JSON object")
	}
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return malformed("malformed_json", "#", "ends before the JSON is complete, at byte %d", len(text))
	}
	reason := "is not JSON"
	switch {
	case errors.Is(syntax.Err, io.ErrUnexpectedEOF):
		reason = "ends before the JSON is complete"
	case syntax.Err != nil:
		reason = "is not JSON: " + syntax.Err.Error()
	}
	pointer := "#"
	if syntax.JSONPointer != "" {
		var tokens []string
		size := 0
		for token := range syntax.JSONPointer.Tokens() {
			if size += len(token) + 1; size > maxPointer {
				break
			}
			tokens = append(tokens, token)
		}
		pointer = problem.Pointer(tokens...)
	}
	return malformed("malformed_json", pointer, "%s, at byte %d", reason, syntax.ByteOffset)
}

// peekMessageID returns the messageId of an event that was rejected, if it has one.
func peekMessageID(raw []byte) string {
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsonOptions...)
	if dec.PeekKind() != '{' {
		return ""
	}
	_, _ = dec.ReadToken()
	for dec.PeekKind() == '"' {
		name, _ := dec.ReadValue()
		if string(name) != `"messageId"` {
			if dec.SkipValue() != nil {
				return ""
			}
			continue
		}
		if value, _ := dec.ReadValue(); value.Kind() == '"' {
			id, _ := jsontext.AppendUnquote(nil, value)
			return string(id)
		}
		return ""
	}
	return ""
}

// malformed returns the problem of a body that is not what it should be as a whole.
func malformed(code, pointer, format string, args ...any) *problem.Problem {
	p := problem.New(http.StatusBadRequest, code, "The body is not valid.")
	p.Detail = "Nothing was stored. Correct what is named and send it again."
	p.Errors = []problem.FieldError{{Pointer: pointer, Code: code, Detail: fmt.Sprintf(format, args...)}}
	return p
}

func trimBOM(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) }
