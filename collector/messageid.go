package collector

import (
	"bytes"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// WithMessageID returns an event in our shape as it is if it says its messageId, which may be a number; else with id in its
// place, so that the same event is known again when it is brought again: null and "" say nothing, and the cleaner would make
// one up. What is no object is returned as it is, too: the cleaner says what is wrong with it. The bytes of event are not
// changed.
func WithMessageID(event []byte, id string) []byte {
	dec := jsontext.NewDecoder(bytes.NewBuffer(event), jsonOptions...)
	if token, err := dec.ReadToken(); err != nil || token.Kind() != '{' {
		return event
	}
	quoted, _ := jsontext.AppendQuote(nil, strings.ToValidUTF8(id, "\uFFFD")) // never fails for valid UTF-8
	first := dec.InputOffset()
	empty := dec.PeekKind() == '}'
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return event
		}
		if name.String() != "messageId" {
			if dec.SkipValue() != nil {
				return event
			}
			continue
		}
		value, err := dec.ReadValue()
		if err != nil || value.Kind() != 'n' && string(value) != `""` {
			return event
		}
		end := int(dec.InputOffset())
		return slices.Concat(event[:end-len(value)], quoted, event[end:])
	}
	member := slices.Concat([]byte(`"messageId":`), quoted)
	if !empty {
		member = append(member, ',')
	}
	return slices.Concat(event[:first], member, event[first:])
}
